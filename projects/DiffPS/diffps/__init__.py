# SPDX-License-Identifier: Apache-2.0
"""DiffPS: person search on the features of a frozen Stable Diffusion UNet.

Empty so far and registers nothing: the name and the place in the packaging are settled, the method
is not written yet (``projects/DiffPS/README.md``).
"""
