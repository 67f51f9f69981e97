# SPDX-License-Identifier: Apache-2.0
"""Results of the frozen model, kept on disk.

    <root>/<kind>-<identity>/identity.json       what made these entries, in words
    <root>/<kind>-<identity>/3f/3f9c....safetensors   one entry, in one of 256 folders

An entry is found by the digest of the image as the model gets it: resized, flipped and whatever
else was done to it. So it can be wrong for no image and no transform, and a flipped image is an
entry of its own. ``identity`` is a digest of all that the values depend on beside the image
(weights, layers, timestep, ...), so another model never sees these entries.

Every entry carries its identity, its key and a checksum; one that is damaged or was moved here from
elsewhere is removed and made anew. Entries are written under another name and then renamed, so
several processes can fill and read one cache, and a run that was killed leaves at most a
``*.tmp`` file, which a later run removes.
"""

import errno
import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

CACHE_KINDS = ("none", "latent", "feature", "compact")
_FORMAT = 1  # raise it when the meaning of entries changes
_SUFFIX = ".safetensors"
_READERS = 4
_OLD_SECONDS = 3600  # a *.tmp file older than this belongs to no process that is alive
_RECOUNT = 256  # entries after which to look what other processes have added
_KEY = re.compile(r"[0-9a-f]{8,}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class TensorCache:
    """Named tensors by key, on disk. Whatever goes wrong with the disk costs time, not the run."""

    def __init__(
        self, root: str | os.PathLike, kind: str, identity: dict[str, Any], max_bytes: int = 0
    ) -> None:
        """
        Args:
            root: folder of all caches; made if it is not there.
            kind: name for people, e.g. ``latent``.
            identity: everything that the values depend on except the key; goes through JSON.
            max_bytes: no entry is added beyond; 0: no limit. Nothing is ever thrown out: with
                images in random order that would replace every entry before it is used.

        Raises:
            OSError: the folder cannot be made.
        """
        identity = {"format": _FORMAT, "kind": kind, **identity}
        text = json.dumps(identity, indent=2, sort_keys=True)
        self.identity = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        self.root, self.kind, self.max_bytes = Path(root), kind, max_bytes
        self.folder = self.root / f"{kind}-{self.identity}"
        self.hits = self.misses = 0
        self._writable = True
        self._since_count = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_identity(text)
        self._remove_leftovers()
        self.bytes, count = self._count()
        logger.info(f"{kind} cache {self.folder}: {count} entries, {self.bytes / 1e9:.2f} GB")
        self._mention_others()

    @property
    def is_writable(self) -> bool:
        """False once the limit was reached or the disk did not take an entry."""
        return self._writable

    def path(self, key: str) -> Path:
        """Where the entry of a key lies. Keys are lower-case hexadecimal digests."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a cache; they are hexadecimal digests")
        return self.folder / key[:2] / (key + _SUFFIX)

    # ---- reading ------------------------------------------------------------------------------
    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a key, on the CPU; None if there is no sound entry."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            self.misses += 1
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as e:
            self._reject(path, f"damaged ({e})")
            return None
        if (metadata.get("identity"), metadata.get("key")) != (self.identity, key):
            self._reject(path, "of another model or image")
            return None
        if metadata.get("checksum") != checksum(tensors):
            self._reject(path, "damaged (wrong checksum)")
            return None
        self.hits += 1
        return tensors

    def get_many(self, keys: Iterable[str]) -> list[dict[str, Tensor] | None]:
        """Like :meth:`get` for several keys, read at the same time."""
        keys = list(keys)
        if len(keys) <= 1:
            return [self.get(key) for key in keys]
        with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
            return list(pool.map(self.get, keys))

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, sound or not."""
        return self.path(key).is_file()

    def count(self) -> int:
        """Number of entries on disk."""
        return self._count()[1]

    def _reject(self, path: Path, why: str) -> None:
        logger.warning(f"removing the cache entry {path}, which is {why}; it will be made anew")
        path.unlink(missing_ok=True)
        self.misses += 1

    # ---- writing ------------------------------------------------------------------------------
    def put(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Adds or replaces an entry, whole or not at all.

        Returns:
            Whether it is there now. False once the limit is reached or the disk does not take it;
            the first time this is logged.
        """
        if not self._writable:
            return False
        tensors = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
        size = sum(x.nbytes for x in tensors.values())
        if not self._has_room(size):
            return False
        path = self.path(key)
        metadata = {"identity": self.identity, "key": key, "checksum": checksum(tensors)}
        try:
            # through Python's own files, which say what is wrong with the disk
            write_atomically(path, save(tensors, metadata))
        except OSError as e:
            self._stop_writing(e)
            return False
        self.bytes += size
        self._since_count += 1
        return True

    def _has_room(self, size: int) -> bool:
        if not self.max_bytes:
            return True
        if self._since_count >= _RECOUNT:
            self.bytes, self._since_count = self._count()[0], 0
        if self.bytes + size <= self.max_bytes:
            return True
        logger.warning(
            f"the {self.kind} cache {self.folder} has reached its limit of "
            f"{self.max_bytes / 1e9:.2f} GB (MODEL.DIFFPS.BACKBONE.CACHE.MAX_GB): it is read but "
            "not added to any more"
        )
        self._writable = False
        return False

    def _stop_writing(self, error: OSError) -> None:
        what = "the disk is full" if error.errno in _FULL else "writing fails"
        logger.warning(
            f"{what} ({error}): the {self.kind} cache "
            f"{self.folder} is read but not added to any more. The run goes on and computes what "
            "is missing. Make room, or set MODEL.DIFFPS.BACKBONE.CACHE.DIR to another disk or "
            "CACHE.MAX_GB to a limit."
        )
        self._writable = False

    # ---- housekeeping -------------------------------------------------------------------------
    def _write_identity(self, text: str) -> None:
        path = self.folder / "identity.json"
        if path.is_file():
            return
        try:
            write_atomically(path, (text + "\n").encode())
        except OSError as e:
            self._stop_writing(e)

    def _remove_leftovers(self) -> None:
        for path in self.folder.rglob("*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()
            except OSError:
                continue  # another process was faster

    def _count(self) -> tuple[int, int]:
        """Bytes and number of all entries."""
        sizes = []
        for folder in self.folder.iterdir():
            if folder.is_dir():
                with os.scandir(folder) as files:
                    sizes += [f.stat().st_size for f in files if f.name.endswith(_SUFFIX)]
        return sum(sizes), len(sizes)

    def _mention_others(self) -> None:
        others = [p for p in self.root.glob(f"{self.kind}-*") if p != self.folder and p.is_dir()]
        if others:
            logger.info(
                f"{self.root} also holds {self.kind} caches of {len(others)} other models or "
                "settings, which are not used here (identity.json says what each is of); delete "
                f"what you do not need: {', '.join(sorted(p.name for p in others)[:5])}"
            )


def checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 of names and bytes; guards against a failing disk, not against malice."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


@torch.no_grad()
def weights_digest(module: nn.Module, per_tensor: int = 64) -> str:
    """Returns a digest of names, shapes, types and of a sample of the values of all weights.

    Takes milliseconds for a model of a billion weights; fine-tuning changes the sample.
    """
    digest = hashlib.blake2b(digest_size=20)
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.flatten()
        sample = flat[:: max(1, len(flat) // per_tensor)][: per_tensor + 1]
        digest.update(sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Returns a digest of the values of one tensor."""
    data = tensor.detach().double().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=20).hexdigest()
