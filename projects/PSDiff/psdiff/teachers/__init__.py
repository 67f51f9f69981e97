# SPDX-License-Identifier: Apache-2.0
"""Teachers: networks that give PSDiff the embedding e_0 of a person crop (Section V-D)."""
