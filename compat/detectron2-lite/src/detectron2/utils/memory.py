# SPDX-License-Identifier: Apache-2.0
"""Retries of functions that run out of GPU memory."""

import functools
import logging

import torch


def _to_cpu(value):
    if getattr(getattr(value, "device", None), "type", None) == "cuda" and hasattr(value, "to"):
        return value.to(device="cpu")
    return value


def retry_if_cuda_oom(func):
    """Wraps a function so that it is retried after a CUDA out-of-memory error.

    The second try clears the cache of the allocator first. The third one moves the tensor arguments
    to the CPU and returns CPU tensors; tensors inside lists or dicts are not moved. The function
    must not have a state.
    """

    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        for is_second_try in (False, True):
            # not in the handler, where the exception holds the tensors of the failed call
            if is_second_try:
                torch.cuda.empty_cache()
            try:
                return func(*args, **kwargs)
            except RuntimeError as e:
                if "CUDA out of memory. " not in str(e):
                    raise
        logging.getLogger(__name__).info(f"Out of GPU memory: retrying {func} on the CPU")
        args = [_to_cpu(value) for value in args]
        kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    return wrapped
