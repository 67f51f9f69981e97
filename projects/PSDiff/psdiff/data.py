# SPDX-License-Identifier: Apache-2.0
"""Training data of PSDiff: the shared mapper plus the teacher's embedding of every box."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import TransformList
from detectron2.structures import Instances
from fvcore.transforms.transform import HFlipTransform

from person_search.data import MAPPER_REGISTRY, PersonSearchMapper
from psdiff.teachers.advice import how_to_write
from psdiff.teachers.embeddings import TeacherEmbeddings, read_file


@MAPPER_REGISTRY.register()
class PSDiffMapper(PersonSearchMapper):
    """Adds ``gt_reid_feats`` (K, D), the unit embeddings e_0 of Eq. 10, to training instances.

    They come from a file that the teacher wrote once (``MODEL.PSDIFF.TEACHER.EMBEDDINGS``), with
    one embedding for the box as it is and one for its mirror image. A person that a crop
    (``INPUT.CROP``) has cut keeps the embedding of the whole person.
    """

    options: tuple[str, ...] = ()
    """Of the program that runs (:meth:`check_training_files`), for commands in messages."""

    @configurable
    def __init__(self, *, embeddings: TeacherEmbeddings | None, **kwargs) -> None:
        """
        Args:
            embeddings: of the training set; None in testing, where none are needed.
            **kwargs: of :class:`person_search.data.PersonSearchMapper`.
        """
        super().__init__(**kwargs)
        self.embeddings = embeddings

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        args = super().from_config(cfg, is_train)
        args["embeddings"] = None
        if is_train:
            if cfg.INPUT.RANDOM_FLIP == "vertical":
                raise ValueError(
                    "INPUT.RANDOM_FLIP is 'vertical', but the teacher has embedded persons as they "
                    "are and mirrored from left to right only; set it to 'horizontal' or 'none'."
                )
            args["embeddings"] = TeacherEmbeddings.load(
                *_expected(cfg), how_to_write(cfg, cls.options)
            )
        return args

    @classmethod
    def check_training_files(cls, cfg: CfgNode, options: Sequence[str] = ()) -> None:
        cls.options = tuple(options)
        read_file(*_expected(cfg), how_to_write(cfg, options))

    def instances_from_annotations(
        self,
        record: dict,
        annotations: list[dict],
        transforms: TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        instances = super().instances_from_annotations(record, annotations, transforms, image_size)
        if self.embeddings is not None:
            flips = sum(isinstance(t, HFlipTransform) for t in transforms.transforms)
            feats = self.embeddings.of_image(record, flipped=flips % 2 == 1)
            kept = [annotation["index"] for annotation in annotations]
            instances.gt_reid_feats = torch.as_tensor(feats[kept], dtype=torch.float32)
        return instances


def _expected(cfg: CfgNode) -> tuple[str, tuple[str, ...], int]:
    """File of embeddings, training sets and length of an embedding."""
    path = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
    return path, tuple(cfg.DATASETS.TRAIN), cfg.MODEL.REID.EMBED_DIM
