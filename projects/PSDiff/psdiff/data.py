# SPDX-License-Identifier: Apache-2.0
"""Training data of PSDiff: the shared mapper plus the teacher embedding of each box."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import TransformList
from detectron2.structures import Instances
from fvcore.transforms.transform import HFlipTransform

from person_search.data import MAPPER_REGISTRY, PersonSearchMapper
from psdiff.teachers.embeddings import TeacherEmbeddings, read_file
from psdiff.teachers.folder import embeddings_hint


@MAPPER_REGISTRY.register()
class PSDiffMapper(PersonSearchMapper):
    """Adds ``gt_reid_feats`` (K, D), the unit embeddings e_0 of Eq. 10, to training instances.

    They come from a file written by the teacher (``MODEL.PSDIFF.TEACHER.EMBEDDINGS``), with one
    embedding of each box and one of its mirror image. A person that is cut by a crop
    (``INPUT.CROP``) keeps the embedding of the whole person.
    """

    options: tuple[str, ...] = ()
    """Command-line options of :meth:`check_training_files`, for commands in messages."""

    @configurable
    def __init__(self, *, embeddings: TeacherEmbeddings | None, **kwargs) -> None:
        """Stores the embeddings.

        Args:
            embeddings: Embeddings of the training set; None in testing.
            **kwargs: Arguments of :class:`person_search.data.PersonSearchMapper`.
        """
        super().__init__(**kwargs)
        self.embeddings = embeddings

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Returns the arguments of ``__init__``; reads the embeddings in training."""
        args = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.RANDOM_FLIP == "vertical":
            raise ValueError(
                "INPUT.RANDOM_FLIP is 'vertical', but the teacher has embedded the persons as they "
                "are and mirrored horizontally only; set it to 'horizontal' or 'none'."
            )
        load = TeacherEmbeddings.load
        args["embeddings"] = load(*_expected(cfg, cls.options)) if is_train else None
        return args

    @classmethod
    def check_training_files(cls, cfg: CfgNode, options: Sequence[str] = ()) -> None:
        """Raises an error if the file of embeddings is missing or does not fit the config.

        Args:
            cfg: Config of the training.
            options: Command-line options that make this config, for commands in messages.
        """
        cls.options = tuple(options)
        read_file(*_expected(cfg, options))

    def instances_from_annotations(
        self,
        record: dict,
        annotations: list[dict],
        transforms: TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        """Adds the embeddings to the instances of the base class; see there for the arguments."""
        instances = super().instances_from_annotations(record, annotations, transforms, image_size)
        if self.embeddings is not None:
            flips = sum(isinstance(t, HFlipTransform) for t in transforms.transforms)
            feats = self.embeddings.of_image(record, flipped=flips % 2 == 1)
            kept = [annotation["index"] for annotation in annotations]
            instances.gt_reid_feats = torch.as_tensor(feats[kept], dtype=torch.float32)
        return instances


def _expected(cfg: CfgNode, options: Sequence[str]) -> tuple[str, tuple[str, ...], int, str]:
    """Returns the arguments of ``read_file`` and of ``TeacherEmbeddings.load``."""
    path = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
    hint = embeddings_hint(cfg, options)
    return path, tuple(cfg.DATASETS.TRAIN), cfg.MODEL.REID.EMBED_DIM, hint
