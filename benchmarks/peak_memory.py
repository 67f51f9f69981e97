# SPDX-License-Identifier: Apache-2.0
"""Memory that a call takes at its worst moment, measured."""

import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

_KINETO_SILENT = "6"  # beyond "error": that a machine without a GPU has none is no news


def peak_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Calls a function and returns the most bytes held meanwhile, beyond those held before.

    Counted is what PyTorch's allocators give out and take back. On a CPU its profiler tells; the
    resident size of the process would depend on what its heap kept from earlier work.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", _KINETO_SILENT)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())  # stable: the order they happened in
    return max([0, *accumulate(event.nbytes() for event in events)])
