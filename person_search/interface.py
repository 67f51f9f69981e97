# SPDX-License-Identifier: Apache-2.0
"""What the core expects of a person search model: one protocol, and six optional hooks.

A model is a ``torch.nn.Module`` in Detectron2's ``META_ARCH_REGISTRY``. It does not inherit from
anything here; :class:`person_search.testing.PersonSearchModelTests` checks a model against
:class:`PersonSearchModel`. A hook is found by its name, on the model or on any of its submodules.

Shape shorthand: D embedding, n boxes of one image, q queries of one image.
"""

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn


@runtime_checkable
class PersonSearchModel(Protocol):
    """Detects persons and embeds them, in one pass over each image.

    ``batched_inputs`` holds one dict per image, as ``PersonSearchMapper`` makes it:

    - ``image``: (C, H, W) uint8, in the channel order of ``INPUT.FORMAT``;
    - ``height``, ``width``: size of the image file, the frame of the returned boxes;
    - ``instances`` (training): ``gt_boxes`` in pixels of ``image``, ``gt_classes`` (all 0) and
      ``gt_pids`` (int64; :data:`person_search.schema.UNLABELED_PID` for an unknown identity);
    - ``queries`` (evaluation, optional): ``pred_boxes`` of the queries in pixels of ``image``.
    """

    training: bool

    def __call__(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Computes the losses of a batch in training mode, and its detections otherwise.

        Returns:
            In training mode, a dict of scalar losses whose sum is minimized. In evaluation mode,
            one dict per image: ``instances`` with ``pred_boxes`` (frame of the image file),
            ``scores``, ``pred_classes`` and ``reid_feats`` (n, D), and ``query_feats`` (q, D) in
            the order of ``queries``. Embeddings are float32 and of unit length.
        """

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Any]] | list[Instances]:
        """Detects persons, or embeds given boxes, as ``GeneralizedRCNN.inference`` does.

        Args:
            batched_inputs: Images, as above.
            detected_instances: ``pred_boxes`` of each image in pixels of ``image``. If given,
                nothing is detected and these boxes get ``reid_feats``.
            do_postprocess: Whether to return what evaluation mode returns. If False, returns the
                ``Instances`` in pixels of ``image``.
        """


@runtime_checkable
class LoadsInitialWeights(Protocol):
    """Optional hook of a model, called by the trainer where a training starts from iteration 0."""

    def load_initial_weights(self) -> None:
        """Loads weights for the parts that ``MODEL.WEIGHTS`` lacks.

        Called after ``MODEL.WEIGHTS`` has been loaded; neither on resuming nor in an evaluation.
        """


@runtime_checkable
class LoadsParts(Protocol):
    """Optional hook of a model whose parts load weights of their own if ``MODEL.WEIGHTS`` is empty.

    If all parts do, the model can be evaluated and used for a search as it is built.
    """

    @classmethod
    def part_weights(cls, cfg: CfgNode) -> dict[str, str]:
        """Returns the config key of the weights of each part with its value; "" means random."""


@runtime_checkable
class NormalizesLosses(Protocol):
    """Optional attribute of a model whose losses are sums with a common divisor.

    With ``SOLVER.ACCUMULATION_STEPS``, the divisors of all parts of a batch are combined, so that
    the step equals that of the whole batch.
    """

    loss_normalizer: tuple[Tensor, Tensor] | None
    """Divisor of the last losses, and its share of that of the whole batch. The latter may be 0, in
    a part without ground truths; if it is 0 in all parts, the sum of the divisors is used."""


@runtime_checkable
class SharesFrozenWeights(Protocol):
    """Optional hook of a module that holds frozen weights outside of its parameters."""

    def share_frozen(self, original: Self) -> None:
        """Makes this copy of ``original`` use the frozen weights of ``original``.

        Called on the copy that ``SOLVER.EMA`` averages, so that these weights are in memory once.
        """


@runtime_checkable
class HasIdentityBuffers(Protocol):
    """Optional attribute of a module whose buffers or parameters have one row per identity.

    If one of them has another shape in a weight file, none of them is loaded. The weights of one
    training set can then be evaluated on another data set, or start a training there.
    """

    identity_buffers: tuple[str, ...]


@runtime_checkable
class AdaptsWeights(Protocol):
    """Optional hook of a module that loads pre-trained weights under the names of their source."""

    def adapt_weights(self, weights: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
        """Renames the weights of a file to the names that the model gives them.

        Args:
            weights: All weights of the file by name.
            prefix: Name of this module in the model, with a trailing dot; "" for the model itself.

        Returns:
            The renamed weights, or ``weights`` itself if there is nothing to rename.

        Raises:
            ValueError: If the file is for another variant of this module. The message continues
                the sentence "The weight file X".
        """


def named_hooks(model: nn.Module, hook: type) -> list[tuple[str, Any]]:
    """Returns the modules of a model that have a hook, with their names and a trailing dot.

    Args:
        model: Model to search, itself included.
        hook: One of the protocols of this module.
    """
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules()
        if isinstance(module, hook)
    ]
