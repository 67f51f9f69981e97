# SPDX-License-Identifier: Apache-2.0
"""PSDiff: person search by denoising boxes and re-ID embeddings together."""
