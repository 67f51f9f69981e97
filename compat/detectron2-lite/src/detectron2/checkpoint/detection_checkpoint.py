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
    """fvcore's checkpointer with support for more formats and for files on rank 0 only.

    The formats are ``.pth`` of the checkpointer, ``.pkl`` of the model zoo
    (``{"model": ..., "__author__": ...}``) and of Caffe2 (a dict of blobs), ``.pyth`` of pycls, and
    state dicts. If a file contains ``"matching_heuristics": True``, or the path ends with
    ``?matching_heuristics=True``, the names are matched with those of the model by their suffixes.

    Args:
        model: Model to save and load.
        save_dir: Folder of the checkpoints.
        save_to_disk: Whether to save checkpoints; by default on rank 0 only.
        **checkpointables: Further objects with ``state_dict()`` and ``load_state_dict()``.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._parsed_url_during_load = None

    def load(self, path, *args, **kwargs):
        """Loads a checkpoint.

        Args:
            path: Path or URL; nothing is loaded from an empty path.
            *args: See ``fvcore.common.checkpoint.Checkpointer.load``.
            **kwargs: See ``fvcore.common.checkpoint.Checkpointer.load``.

        Returns:
            Dict of the remaining content of the file, such as ``iteration``.

        Raises:
            OSError: In distributed training, the file does not exist on rank 0.
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
            logger.info("Broadcasting the model of rank 0 ...")
            with torch.no_grad():
                for tensor in itertools.chain(self.model.parameters(), self.model.buffers()):
                    dist.broadcast(tensor.data, src=0)
        self._parsed_url_during_load = None
        return extra

    def _agree_on_file(self, path: str) -> tuple[str | None, bool]:
        """Returns the path for this process, and whether rank 0 must broadcast its model."""
        local_path = self.path_manager.get_local_path(urlparse(path)._replace(query="").geturl())
        has_file = os.path.isfile(local_path)
        all_have_file = comm.all_gather(has_file)
        if not all_have_file[0]:
            raise OSError(f"{path} does not exist on rank 0")
        if all(all_have_file):
            return path, False
        logging.getLogger(__name__).warning(
            f"{path} does not exist on some ranks. They receive the model from rank 0, but not the "
            "rest of the checkpoint, so a resumed training may differ between ranks."
        )
        return (path if has_file else None), True

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            loaded = self._torch_load(filename)
            assert "model_state" in loaded, (
                f"{filename} is not a pycls checkpoint: it has no 'model_state'"
            )
            return {
                "model": _without_suffix(loaded["model_state"], "num_batches_tracked"),
                "__author__": "pycls",
                "matching_heuristics": True,
            }
        loaded = self._torch_load(filename)
        # a plain state dict does not have the key "model"
        checkpoint = loaded if "model" in loaded else {"model": loaded}
        assert self._parsed_url_during_load is not None, "`_load_file` must be called by `load`"
        queries = parse_qs(self._parsed_url_during_load.query)
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"Unsupported query {queries} in {self._parsed_url_during_load.geturl()}; only "
                "'?matching_heuristics=True' is supported"
            )
        return checkpoint

    def _torch_load(self, f):
        return super()._load_file(f)

    def _load_pickle(self, filename: str) -> dict:
        # the format of the model zoo; unpickling runs code, so only load trusted files
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

    def _load_model(self, checkpoint):
        if checkpoint.get("matching_heuristics"):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(),
                checkpoint["model"],
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        incompatible = super()._load_model(checkpoint)
        # These buffers are set from the config; older checkpoints may hold the anchors, too.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        for name in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in name:
                incompatible.unexpected_keys.remove(name)
        return incompatible


def _without_suffix(state: dict, suffix: str) -> dict:
    return {name: value for name, value in state.items() if not name.endswith(suffix)}
