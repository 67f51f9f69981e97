# SPDX-License-Identifier: Apache-2.0
"""Memory that a call takes at its worst moment, measured."""

from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Calls a function and returns the most bytes held meanwhile, beyond those held before.

    On a GPU that is what PyTorch's allocator gave out; on a CPU the growth of the process, which
    includes what other threads of it take, and leaves out memory that was never written to.

    Raises:
        RuntimeError: a CPU under another system than Linux.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR_REFS.exists():
        raise RuntimeError("the memory of a CPU is measured under Linux only (/proc/self).")
    before = _process_bytes("VmRSS")
    _CLEAR_REFS.write_text("5")  # the highest mark starts anew
    function()
    return max(0, _process_bytes("VmHWM") - before)


def _process_bytes(key: str) -> int:
    """A line of the status of this process, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])
