# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a crash, and that refuse to be loaded into another architecture.

The file format is Detectron2's: ``{"model": …, "trainer": …, "iteration": …}`` as ``*.pth``.
"""

import errno
import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from safetensors import SafetensorError
from safetensors.torch import load_file

from person_search.modeling import SwinWeightsError, adapt_swin_weights
from person_search.utils.files import write_atomically

TEMPORARY_SUFFIX = ".incomplete"
_NUM_EXAMPLES = 5


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. What was on disk before is untouched."""


class IncompatibleCheckpointError(ValueError):
    """A checkpoint belongs to another architecture."""


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with all-or-nothing files.

    A checkpoint is written under a temporary name, flushed to the disk and then renamed; only
    after that ``last_checkpoint`` is replaced, in the same way. So at any moment it names a
    complete file, whatever kills the process. If the write fails (disk full), the temporary file is
    removed and :class:`CheckpointWriteError` is raised.

    Args:
        model, save_dir, save_to_disk, checkpointables: as in Detectron2.
        allow_partial: accept a file that fills only a part of the model even where the whole is
            needed (``cfg.MODEL.ALLOW_PARTIAL_LOAD``).
        tag_last: whether ``last_checkpoint`` follows the files saved here.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_partial: bool = False,
        tag_last: bool = True,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_partial = allow_partial
        self.tag_last = tag_last
        self._need_whole = False
        self._resuming = False
        self._source = ""

    # ---- writing -----------------------------------------------------------------------------
    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` and makes it the last checkpoint.

        Args:
            name: file name without folder and ending.
            kwargs: further entries of the file, e.g. ``iteration``.

        Raises:
            CheckpointWriteError: the file could not be written; nothing on disk has changed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        self._write(path, lambda file: torch.save(data, file))
        if self.tag_last:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Records which file ``--resume`` starts from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        self._write(path, lambda file: file.write(last_filename_basename.encode()))

    def _write(self, path: str, writer: Callable[[BinaryIO], Any]) -> None:
        write_safely(self.path_manager.get_local_path(path), writer)

    # ---- reading -----------------------------------------------------------------------------
    def load(
        self,
        path: str,
        checkpointables: list[str] | None = None,
        *,
        need_whole: bool | None = None,
    ) -> dict[str, Any]:
        """Loads a file as Detectron2 does, after checks.

        Tables of identities (``identity_buffers`` of a module) that belong to another training set
        are left out with one log line, so that weights of one data set can be tested on another, or
        start a training there. Only a training that goes on needs its own tables.

        Args:
            path: file or URL; empty loads nothing.
            checkpointables: names of what to load beside the model; None for all.
            need_whole: every parameter of the model must be in the file. By default so if the
                training goes on (``checkpointables`` is None), and not if weights are only the
                start of a training, such as those of a backbone.

        Returns:
            The entries of the file that were not used.

        Raises:
            FileNotFoundError: no such file.
            IncompatibleCheckpointError: no parameter of the model is in the file, or one is missing
                although ``need_whole``.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(
                f"There is no weight file {path!r}. It is named by MODEL.WEIGHTS (or by "
                f"'last_checkpoint' in {self.save_dir!r} when resuming)."
            )
        self._resuming = checkpointables is None
        self._need_whole = self._resuming if need_whole is None else need_whole
        self._source = path
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Extends the hook that Detectron2's checkpointers provide for further file formats."""
        if not filename.endswith(".safetensors"):
            return super()._load_file(filename)
        try:
            return {"model": load_file(filename)}
        except SafetensorError as error:
            raise IncompatibleCheckpointError(
                f"The weight file {filename!r} is no whole safetensors file: {error}."
            ) from error

    def _load_model(self, checkpoint: Any):
        """Extends the hook that Detectron2's checkpointers provide for treating a read file."""
        in_file = list(checkpoint["model"])
        try:
            checkpoint["model"] = adapt_swin_weights(self.model, checkpoint["model"])
        except SwinWeightsError as e:
            raise IncompatibleCheckpointError(f"The weight file {self._source!r} {e}") from e
        if not self._resuming:
            self._drop_foreign_identities(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        parameters = [name for name, _ in self.model.named_parameters()]
        wrong_shape = {name: (a, b) for name, a, b in incompatible.incorrect_shapes}
        absent = set(incompatible.missing_keys) | set(wrong_shape)
        missing = [name for name in parameters if name in absent]
        wrong_buffers = [name for name in wrong_shape if name not in set(parameters)]
        if parameters and len(missing) == len(parameters):
            problem = "is of another architecture: none of the model's parameters is in it"
        elif self._need_whole and not self.allow_partial and (missing or wrong_buffers):
            found = len(parameters) - len(missing)
            problem = (
                f"does not fit the model: {found} of {len(parameters)} parameters "
                f"({100 * found / len(parameters):.0f} %) match"
            )
        else:
            return incompatible
        # where nothing matched, Detectron2 has no list of them
        known = self.model.state_dict().keys()
        only_in_file = [k for k in incompatible.unexpected_keys or in_file if k not in known]
        shapes = [f"{k} {tuple(a)} in the file, {tuple(b)} in the model" for k, (a, b) in
                  wrong_shape.items()]  # fmt: skip
        raise IncompatibleCheckpointError(
            f"The weight file {self._source!r} {problem}.\n"
            f"  missing from the file: {_examples([k for k in missing if k not in wrong_shape])}\n"
            f"  of another shape: {_examples(shapes)}\n"
            f"  only in the file: {_examples(only_in_file)}\n"
            "Use the config that the file was trained with (config.yaml beside it)"
            + (
                "."
                if len(missing) == len(parameters)
                else ", or set MODEL.ALLOW_PARTIAL_LOAD True to load what matches."
            )
        )

    def _drop_foreign_identities(self, weights: dict[str, Any]) -> None:
        """Puts the model's own identity tables in place of those of another training set."""
        dropped = []
        for prefix, module in self.model.named_modules():
            names = getattr(module, "identity_buffers", ())
            ours = {f"{prefix}.{name}" if prefix else name: name for name in names}
            held = {key: getattr(module, name) for key, name in ours.items() if key in weights}
            # tables and queue are one memory: what one of them holds means nothing without the rest
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

        Who saves checkpoints also removes what a killed process has left half written; an
        evaluation does not, a training may be writing it now. The file that ``last_checkpoint``
        names comes first. If that one is damaged (a failing disk,
        a copy cut short), the others are tried by descending iteration, with a warning. Checked by
        the main process, which all others follow.

        Raises:
            IncompatibleCheckpointError: checkpoints exist, but every one is damaged.
        """
        # errors travel as values, so that all processes see them instead of waiting for each other
        found = comm.all_gather(self._find_resumable() if comm.is_main_process() else None)[0]
        if isinstance(found, Exception):
            raise found
        return found

    def _find_resumable(self) -> str | Exception:
        candidates = []
        if self.save_dir and self.has_checkpoint():
            candidates.append(self.get_checkpoint_file())
        if self.save_dir and os.path.isdir(self.save_dir):
            others = [p for p in self.get_all_checkpoint_files() if p not in candidates]
            others = [p for p in others if _iteration(p) >= 0]
            candidates += sorted(others, key=_iteration, reverse=True)
            if self.save_to_disk:
                for name in os.listdir(self.save_dir):
                    if name.endswith(TEMPORARY_SUFFIX):
                        _remove(os.path.join(self.save_dir, name))
        for i, path in enumerate(candidates):
            if is_intact(path):
                if i > 0:
                    self.logger.warning("Resuming from %s instead.", path)
                return path
            self.logger.warning("The checkpoint %s is damaged or gone.", path)
        if candidates:
            return IncompatibleCheckpointError(
                f"No checkpoint in {self.save_dir!r} can be read: {_examples(candidates)}. Restore "
                "one of them, or start anew without --resume."
            )
        return ""


def write_safely(path: str, write: bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file completely or not at all, and onto the disk; see ``write_atomically``.

    What a killed process leaves behind has a name of its own, by which the next run finds it.

    Raises:
        CheckpointWriteError: writing failed; ``path`` is as before.
    """
    try:
        write_atomically(path, write, durable=True, temporary=path + TEMPORARY_SUFFIX)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as RuntimeError
        raise CheckpointWriteError(_describe_write_failure(path, e)) from e


def is_intact(path: str) -> bool:
    """Whether a ``.pth`` file is complete: all checksums of its archive are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        pass
    except OSError:
        return False
    try:  # the format before torch 1.6 has no checksums
        with open(path, "rb") as file:
            if file.read(1) != b"\x80":  # what every pickle starts with
                return False
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - a damaged pickle can raise anything
        return False
    return True


def _iteration(path: str) -> int:
    """Orders ``model_0001999.pth``, …, ``model_final.pth``; -1 for what cannot be resumed from."""
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


def _remove(path: str) -> None:
    with suppress(OSError):
        os.remove(path)
