# SPDX-License-Identifier: Apache-2.0
"""DiffPS: person search on the features of a frozen Stable Diffusion UNet."""
