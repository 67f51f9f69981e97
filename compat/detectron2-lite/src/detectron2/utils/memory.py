# SPDX-License-Identifier: Apache-2.0
"""Second and third tries for functions that run out of GPU memory."""

import functools
import logging
from contextlib import contextmanager

import torch

__all__ = ["retry_if_cuda_oom"]


@contextmanager
def _ignore_torch_cuda_oom():
    """Swallow CUDA out-of-memory errors, and those only."""
    try:
        yield
    except RuntimeError as e:
        if "CUDA out of memory. " not in str(e):
            raise


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
            if is_second_try:
                torch.cuda.empty_cache()
            with _ignore_torch_cuda_oom():
                return func(*args, **kwargs)
        logging.getLogger(__name__).info(f"Out of GPU memory: {func} goes on with CPU copies")
        args = [_to_cpu(value) for value in args]
        kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    return wrapped
