# SPDX-License-Identifier: Apache-2.0
"""Pickling of lambdas and local functions for data loader workers."""

import cloudpickle


class PicklableWrapper:
    """Makes any callable picklable with cloudpickle.

    Args:
        obj: Callable to wrap; unpickling returns it without the wrapper.
    """

    def __init__(self, obj):
        # avoids nested wrappers
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        """Calls the wrapped object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, name):
        if name != "_obj" and hasattr(self._obj, name):
            return getattr(self._obj, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
