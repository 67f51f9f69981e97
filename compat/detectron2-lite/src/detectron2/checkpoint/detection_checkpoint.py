# SPDX-License-Identifier: Apache-2.0
"""The checkpointer for detection models."""

import itertools
import logging
import os
import pickle
from urllib.parse import parse_qs, urlparse

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch.nn.parallel import DistributedDataParallel

from .c2_model_loading import align_and_update_state_dicts


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer, which also reads other formats and needs files on rank 0 only.

    Formats beside its own `.pth`: model zoo `.pkl` (`{"model": ..., "__author__": ...}`), Caffe2
    `.pkl` (a dict of blobs), pycls `.pyth`, and bare state dicts. A file that says
    `"matching_heuristics": True`, or a path ending in `?matching_heuristics=True`, gets its names
    matched to the model's by their endings.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        """
        Args:
            model: the model.
            save_dir: folder to save to and to resume from.
            save_to_disk: whether `save` writes; by default on rank 0 only.
            checkpointables: further objects with `state_dict()` and `load_state_dict()`.
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._parsed_url_during_load = None

    def load(self, path, *args, **kwargs):
        """Load a checkpoint.

        Args:
            path: file or URL; empty loads nothing.
            checkpointables: names of what to load beside the model; None for all.

        Returns:
            What the file held beyond the model and the checkpointables, such as `iteration`.

        Raises:
            OSError: under several processes, rank 0 does not have the file.
        """
        logger = logging.getLogger(__name__)
        logger.info(f"[DetectionCheckpointer] Loading from {path} ...")
        broadcast = False
        if path and isinstance(self.model, DistributedDataParallel):
            path, broadcast = self._agree_on_file(path)
        if path:
            url = urlparse(path)
            self._parsed_url_during_load = url
            path = self.path_manager.get_local_path(url._replace(query="").geturl())
        extra = super().load(path, *args, **kwargs)
        if broadcast:
            logger.info("Sending rank 0's parameters and buffers to the other processes")
            self._send_model_state()
        self._parsed_url_during_load = None
        return extra

    def _agree_on_file(self, path: str) -> tuple[str | None, bool]:
        """What this process should load, and whether rank 0 has to send its weights around."""
        local_path = self.path_manager.get_local_path(urlparse(path)._replace(query="").geturl())
        has_file = os.path.isfile(local_path)
        all_have_file = comm.all_gather(has_file)
        if not all_have_file[0]:
            raise OSError(f"rank 0 has no file {path}, and the others take their weights from it")
        if all(all_have_file):
            return path, False
        logging.getLogger(__name__).warning(
            f"Some processes have no file {path}. They get the model's weights from rank 0, but "
            "not the rest: a training that resumes from it may differ between the processes."
        )
        return (path if has_file else None), True

    def _send_model_state(self) -> None:
        """Overwrite all processes' parameters and buffers by rank 0's."""
        with torch.no_grad():
            for tensor in itertools.chain(self.model.parameters(), self.model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            loaded = self._torch_load(filename)
            assert "model_state" in loaded, f"{filename} is no pycls checkpoint: no 'model_state'"
            return {
                "model": _without_suffix(loaded["model_state"], "num_batches_tracked"),
                "__author__": "pycls",
                "matching_heuristics": True,
            }
        content = self._torch_load(filename)
        # A bare state dict has no "model".
        checkpoint = content if "model" in content else {"model": content}
        self._apply_query(checkpoint)
        return checkpoint

    def _torch_load(self, f):
        return super()._load_file(f)

    def _load_pickle(self, filename: str) -> dict:
        # Model zoo files are pickles by definition of the format; load those you trust.
        with self.path_manager.open(filename, "rb") as f:
            data = pickle.load(f, encoding="latin1")
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        blobs = data.get("blobs", data)
        return {
            "model": _without_suffix(blobs, "_momentum"),
            "__author__": "Caffe2",
            "matching_heuristics": True,
        }

    def _apply_query(self, loaded: dict) -> None:
        """Obey what follows the `?` of the path."""
        assert self._parsed_url_during_load is not None, "`_load_file` must be called by `load`"
        queries = parse_qs(self._parsed_url_during_load.query)
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            loaded["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"Unsupported query {queries} in {self._parsed_url_during_load.geturl()}: only "
                "'?matching_heuristics=True' is known"
            )

    def _load_model(self, checkpoint):
        if checkpoint.get("matching_heuristics"):
            self._match_names(checkpoint)
        incompatible = super()._load_model(checkpoint)
        # Older checkpoints lack these two, which the config sets, and may hold the anchors, which
        # it computes. Neither is worth a warning.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        for name in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in name:
                incompatible.unexpected_keys.remove(name)
        return incompatible

    def _match_names(self, checkpoint: dict) -> None:
        """Replace the weights of a checkpoint by the same weights under the model's names."""
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        checkpoint["model"] = align_and_update_state_dicts(
            self.model.state_dict(), weights, c2_conversion=is_caffe2
        )


def _without_suffix(state: dict, suffix: str) -> dict:
    return {name: value for name, value in state.items() if not name.endswith(suffix)}
