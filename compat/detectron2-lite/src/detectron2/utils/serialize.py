# SPDX-License-Identifier: Apache-2.0
"""Pickling of lambdas and local functions, as data loader workers need it."""

import cloudpickle


class PicklableWrapper:
    """Makes any callable picklable by letting cloudpickle do the work; calls pass through."""

    def __init__(self, obj):
        # Wrapping twice would only cost time.
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self):
        # The other side receives the bare object: the wrapper has done its duty by then.
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, name):
        if name != "_obj" and hasattr(self._obj, name):
            return getattr(self._obj, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
