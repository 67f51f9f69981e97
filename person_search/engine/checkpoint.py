# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a crash and are never loaded into another architecture.

The file format is Detectron2's: ``{"model": …, "trainer": …, "iteration": …}`` as ``*.pth``, with a
model card beside the weights (docs/model_card.md).
"""

import errno
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from person_search.interface import AdaptsWeights, HasIdentityBuffers, named_hooks
from person_search.utils.files import write_atomically
from person_search.utils.model_card import CARD_KEY, NO_CARD, ModelCard, ModelCardError
from person_search.utils.weight_files import (
    WeightFileError,
    check_weight_file,
    fetch_weights,
    read_checkpoint,
)

TEMPORARY_SUFFIX = ".incomplete"
_NUM_EXAMPLES = 5


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. What was on disk before is untouched."""


class IncompatibleCheckpointError(ValueError):
    """A checkpoint belongs to another architecture."""


class AtomicCheckpointer(DetectionCheckpointer):
    """Extends Detectron2's checkpointer with all-or-nothing files and strict checks.

    A checkpoint is written under a temporary name, flushed to the disk and then renamed. After
    that, ``last_checkpoint`` is replaced in the same way, so that it always names a complete file.
    If a write fails, for example because the disk is full, the temporary file is removed.

    Args:
        model: As in Detectron2.
        save_dir: As in Detectron2.
        save_to_disk: As in Detectron2.
        allow_partial: Whether to accept a file that fills only a part of the model even where the
            whole model is needed (``cfg.MODEL.ALLOW_PARTIAL_LOAD``).
        tag_last: Whether ``last_checkpoint`` follows the files saved here.
        method: Method of the model, compared with the card of a file; "" for any.
        embed_dim: Embedding dimension of the model, compared likewise; 0 for any.
        **checkpointables: As in Detectron2.

    Attributes:
        card: Model card of the files saved here; None for no card.
        loaded_card: Model card of the file that was loaded; None if it has none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_partial: bool = False,
        tag_last: bool = True,
        method: str = "",
        embed_dim: int = 0,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_partial = allow_partial
        self.tag_last = tag_last
        self.method, self.embed_dim = method, embed_dim
        self.card: ModelCard | None = None
        self.loaded_card: ModelCard | None = None
        self._need_whole = False
        self._resuming = False
        self._source = ""
        self._logger = logging.getLogger(__name__)  # the inherited one is Detectron2's

    # ---- writing -----------------------------------------------------------------------------
    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` and makes it the last checkpoint.

        Args:
            name: File name without folder and suffix.
            **kwargs: Further entries of the file, for example ``iteration``.

        Raises:
            CheckpointWriteError: If the file could not be written. Nothing on disk has changed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        if self.card is not None:
            data[CARD_KEY] = self.card.to_json()
        data |= kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_safely(self.path_manager.get_local_path(path), lambda file: torch.save(data, file))
        if self.tag_last:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Records which file ``--resume`` starts from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_safely(self.path_manager.get_local_path(path), last_filename_basename.encode())

    # ---- reading -----------------------------------------------------------------------------
    def load(
        self,
        path: str,
        checkpointables: list[str] | None = None,
        *,
        need_whole: bool | None = None,
    ) -> dict[str, Any]:
        """Loads a file as Detectron2 does, after checks.

        Identity buffers (:class:`person_search.interface.HasIdentityBuffers`) of another training
        set are skipped with one log line, except on resuming.

        Args:
            path: File, or an address of :func:`fetch_weights`. Nothing is loaded if empty.
            checkpointables: Names of what to load beside the model. None loads all of them and
                means that a training is resumed.
            need_whole: Whether every parameter of the model must be in the file. By default, this
                is required on resuming only: a training may start from a backbone's weights.

        Returns:
            The entries of the file that were not used.

        Raises:
            FileNotFoundError: If there is no such file.
            WeightFileError: If the file is not a checkpoint, or is damaged.
            IncompatibleCheckpointError: If no parameter of the model is in the file, or one is
                missing although ``need_whole``, or its card describes another model.
        """
        self.loaded_card = None
        self._source = path
        address, mark, query = path.partition("?")  # Detectron2's matching_heuristics
        path = _fetch_in_all_processes(address) + mark + query
        if path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(
                f"There is no weight file {path!r}. It is named by MODEL.WEIGHTS (or by "
                f"'last_checkpoint' in {self.save_dir!r} when resuming)."
            )
        self._resuming = checkpointables is None
        self._need_whole = self._resuming if need_whole is None else need_whole
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads a file; ``.pkl`` is the format of Detectron2's model zoo."""
        check_weight_file(filename)
        try:
            return super()._load_file(filename)
        except (pickle.UnpicklingError, EOFError) as e:
            raise WeightFileError(
                f"The weight file {filename!r} is truncated or damaged ({e}); download it again."
            ) from e

    def _torch_load(self, f: str) -> dict[str, Any]:
        """Reads every file that is not a ``.pkl``; a hook of Detectron2's checkpointer."""
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any):
        """Loads the weights of a file that has been read; a hook of Detectron2's checkpointer."""
        self._read_card(checkpoint.pop(CARD_KEY, None))
        in_file = list(checkpoint["model"])
        for prefix, module in named_hooks(self.model, AdaptsWeights):
            try:
                checkpoint["model"] = module.adapt_weights(checkpoint["model"], prefix)
            except ValueError as e:
                raise IncompatibleCheckpointError(f"The weight file {self._source!r} {e}") from e
        if not self._resuming:
            self._drop_foreign_identities(checkpoint["model"])
        else:
            for key in self.checkpointables.keys() - checkpoint.keys():
                self.logger.warning(
                    "The checkpoint %s holds no state of the %s: optimizer and learning rate "
                    "schedule start afresh with the loaded weights.", self._source, key,
                )  # fmt: skip
        incompatible = super()._load_model(checkpoint)
        parameters = [name for name, _ in self.model.named_parameters()]
        wrong_shape = {name: (a, b) for name, a, b in incompatible.incorrect_shapes}
        absent = set(incompatible.missing_keys) | set(wrong_shape)
        missing = [name for name in parameters if name in absent]
        wrong_buffers = [name for name in wrong_shape if name not in set(parameters)]
        if parameters and len(missing) == len(parameters):
            problem = "is for another architecture: it has none of the model's parameters"
            remedy = "."
        elif self._need_whole and not self.allow_partial and (missing or wrong_buffers):
            found = len(parameters) - len(missing)
            problem = (
                f"does not fit the model: {found} of {len(parameters)} parameters "
                f"({100 * found / len(parameters):.0f} %) match"
            )
            remedy = ", or set MODEL.ALLOW_PARTIAL_LOAD True to load what matches."
        else:
            self._check_card()
            return incompatible
        # where nothing matched, Detectron2 has no list of them
        known = self.model.state_dict().keys()
        only_in_file = [k for k in incompatible.unexpected_keys or in_file if k not in known]
        shapes = [f"{k} {tuple(a)} in the file, {tuple(b)} in the model" for k, (a, b) in
                  wrong_shape.items()]  # fmt: skip
        raise IncompatibleCheckpointError(
            f"The weight file {self._source!r} {problem}.\n"
            f"  missing from the file: {_examples([k for k in missing if k not in wrong_shape])}\n"
            f"  different shape: {_examples(shapes)}\n"
            f"  only in the file: {_examples(only_in_file)}\n"
            f"Use the config that the file was trained with (config.yaml beside it){remedy}"
        )

    def _read_card(self, content: Any) -> None:
        """Reads the card of a file, and logs it where the whole model is needed."""
        try:
            self.loaded_card = None if content is None else ModelCard.from_json(content)
        except ModelCardError as e:
            self._logger.warning(
                "The model card of %s is unusable and is ignored: %s.", self._source, e
            )
            return
        if self._need_whole:
            text = self.loaded_card.describe() if self.loaded_card else NO_CARD
            self._logger.info("Model card of %s: %s.", self._source, text)

    def _check_card(self) -> None:
        """Checks that the card describes the model, whose weights fit."""
        card = self.loaded_card
        if card is None or not self._need_whole or self.allow_partial:
            return
        faults = [
            f"{what} {theirs}, but that of the model is {ours}"
            for what, theirs, ours in (
                ("method", card.method, self.method),
                ("embedding dimension", card.embed_dim, self.embed_dim),
            )
            if theirs and ours and theirs != ours
        ]
        if faults:
            raise IncompatibleCheckpointError(
                f"The model card of {self._source!r} describes another model: {'; '.join(faults)}. "
                "Use the config that the weights were trained with, or set "
                "MODEL.ALLOW_PARTIAL_LOAD True if the card is wrong."
            )

    def _drop_foreign_identities(self, weights: dict[str, Any]) -> None:
        """Replaces the identity buffers of another training set by the model's own."""
        dropped = []
        for prefix, module in named_hooks(self.model, HasIdentityBuffers):
            ours = {prefix + name: getattr(module, name) for name in module.identity_buffers}
            held = {key: own for key, own in ours.items() if key in weights}
            # table and queue are one memory: a part of it means nothing without the rest
            if any(tuple(weights[key].shape) != tuple(own.shape) for key, own in held.items()):
                dropped += [
                    f"{key} {tuple(weights[key].shape)} -> {tuple(own.shape)}"
                    for key, own in held.items()
                ]
                weights.update(held)
        if dropped:
            self.logger.info(
                "Identity tables of another training set in %s, not loaded: %s. Embeddings and "
                "detections do not depend on them.", self._source, ", ".join(dropped),
            )  # fmt: skip

    def find_resumable(self) -> str:
        """Returns the newest intact training checkpoint in ``save_dir``, or "" if there is none.

        The file that ``last_checkpoint`` names comes first. If it is damaged, the others are tried
        by descending iteration, with a warning. A checkpointer that saves to disk also removes what
        a killed process has left half written. The main process decides for all processes.

        Raises:
            IncompatibleCheckpointError: If checkpoints exist, but all of them are damaged.
        """
        # errors travel as values, so that all processes see them instead of waiting for each other
        found = comm.all_gather(self._find_resumable() if comm.is_main_process() else None)[0]
        if isinstance(found, Exception):
            raise found
        return found

    def _find_resumable(self) -> str | Exception:
        candidates = []
        if self.save_dir and self.has_checkpoint():
            try:
                candidates.append(self.get_checkpoint_file())
            except UnicodeDecodeError:
                self.logger.warning(
                    "%s is damaged.", os.path.join(self.save_dir, "last_checkpoint")
                )
        if self.save_dir and os.path.isdir(self.save_dir):
            others = [p for p in self.get_all_checkpoint_files() if p not in candidates]
            others = [p for p in others if _iteration(p) >= 0]
            candidates += sorted(others, key=_iteration, reverse=True)
            if self.save_to_disk:
                for name in os.listdir(self.save_dir):
                    if name.endswith(TEMPORARY_SUFFIX):
                        with suppress(OSError):
                            os.remove(os.path.join(self.save_dir, name))
        for i, path in enumerate(candidates):
            if is_intact(path):
                if i > 0:
                    self.logger.warning("Resuming from %s instead.", path)
                return path
            self.logger.warning("The checkpoint %s is damaged or missing.", path)
        if candidates:
            return IncompatibleCheckpointError(
                f"All checkpoints in {self.save_dir!r} are damaged: {_examples(candidates)}. "
                "Restore one of them, or start again without --resume."
            )
        return ""


def _fetch_in_all_processes(path: str) -> str:
    """Downloads a file in one process of each machine, before the others look for it."""
    if "://" not in path:
        return path
    found: Any = None
    if comm.get_local_rank() == 0:
        try:
            found = fetch_weights(path)
        except (OSError, ValueError) as e:  # travels as a value, so that no process waits
            found = e
    for other in comm.all_gather(found):
        if isinstance(other, Exception):
            raise other
    return found or fetch_weights(path)


def write_safely(path: str, write: bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file completely or not at all, flushed to the disk; see ``write_atomically``.

    What a killed process leaves behind ends in :data:`TEMPORARY_SUFFIX`; the next run removes it.

    Raises:
        CheckpointWriteError: If writing failed. ``path`` is as before.
    """
    try:
        write_atomically(path, write, durable=True, temporary=path + TEMPORARY_SUFFIX)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as RuntimeError
        raise CheckpointWriteError(_describe_write_failure(path, e)) from e


def is_intact(path: str) -> bool:
    """Returns whether a ``.pth`` file is complete and all checksums of its archive are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        pass
    except OSError:
        return False
    try:  # the format before torch 1.6 has no checksums
        read_checkpoint(path)
    except (OSError, WeightFileError):
        return False
    return True


def _iteration(path: str) -> int:
    """Returns the rank of ``model_0001999.pth``, …, ``model_final.pth``; -1 for other files."""
    name = os.path.basename(path)
    if name == "model_final.pth":
        return 10**9
    match = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(match[1]) if match else -1


def _examples(names: list[str]) -> str:
    if not names:
        return "-"
    more = f" and {len(names) - _NUM_EXAMPLES} more" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(names[:_NUM_EXAMPLES]) + more


def _describe_write_failure(path: str, error: BaseException) -> str:
    # torch hides the cause of a failed write behind its own error
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError) and id(cause) not in seen:
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number else str(cause or error).splitlines()[0]
    hints: dict[int | None, str] = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EFBIG: "raise the file size limit (ulimit -f)",
        errno.EACCES: "make the folder writable",
    }
    hint = hints.get(number, "check the disk of OUTPUT_DIR")
    return f"Could not write {path!r}: {reason}. Earlier checkpoints are intact; {hint}."
