# SPDX-License-Identifier: Apache-2.0
"""Assertions that survive torch.fx symbolic tracing."""

import torch
from torch.fx import _symbolic_trace

# The older of the two names logs a warning at every process start where the newer one exists.
_is_fx_tracing = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)


def is_fx_tracing() -> bool:
    """Whether a torch.fx tracer is running this code."""
    return _is_fx_tracing()


def assert_fx_safe(condition: bool, message: str) -> torch.Tensor:
    """Assert, except under torch.fx tracing, where values are symbols and have no truth.

    Returns:
        A tensor, so that the call can stand as a leaf of a traced graph: zeros of shape (1,).
    """
    if is_fx_tracing():
        return torch.zeros(1)
    if isinstance(condition, str):
        # A caller that wants to be traceable may hand over the expression as text.
        condition = eval(condition)  # noqa: S307
    assert condition, message
    return torch.ones(1)


torch.fx.wrap("assert_fx_safe")
