# SPDX-License-Identifier: Apache-2.0
"""Second and third tries for functions that run out of GPU memory."""

import functools
import logging

import torch

__all__ = ["retry_if_cuda_oom"]


_MESSAGE = "CUDA out of memory. "
"""What PyTorch's error begins with; other errors are not survived."""


def _to_cpu(value):
    if getattr(getattr(value, "device", None), "type", None) == "cuda" and hasattr(value, "to"):
        return value.to(device="cpu")
    return value


def retry_if_cuda_oom(func):
    """Wrap `func` so that it survives a CUDA out-of-memory error.

    The second try comes after the allocator's cache was emptied, the third with the tensor
    arguments moved to the CPU, which returns CPU tensors. `func` must not keep state between
    calls; tensors inside lists or dicts are not moved.
    """

    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        for is_second_try in (False, True):
            # Outside of the handler, whose exception holds on to the tensors of the failed call.
            if is_second_try:
                torch.cuda.empty_cache()
            try:
                return func(*args, **kwargs)
            except RuntimeError as e:
                if _MESSAGE not in str(e):
                    raise
        logging.getLogger(__name__).info(f"Out of GPU memory: {func} goes on with CPU copies")
        args = [_to_cpu(value) for value in args]
        kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    return wrapped
