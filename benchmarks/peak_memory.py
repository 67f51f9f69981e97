# SPDX-License-Identifier: Apache-2.0
"""Measures the peak memory of a call."""

import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

_KINETO_SILENT = "6"  # above "error": no message that there is no GPU


def peak_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Calls a function and returns its peak memory in bytes, beyond what was allocated before.

    Memory is that of PyTorch's allocators; on a CPU it is read from the profiler, because the
    resident size of the process depends on what its heap kept from earlier work.

    Args:
        function: Function to call.
        device: Device on which it allocates.
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
    events.sort(key=lambda event: event.start_ns())  # stable, hence in order of occurrence
    return max([0, *accumulate(event.nbytes() for event in events)])
