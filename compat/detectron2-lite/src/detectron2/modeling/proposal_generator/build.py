# SPDX-License-Identifier: Apache-2.0
"""The registry of proposal generators."""

from fvcore.common.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Proposal generators, called as `obj(cfg, input_shape)` with a dict from feature name to
`ShapeSpec`. They return an `nn.Module` that maps (images, features, gt_instances or None) to
(list of `Instances`, dict of losses).
"""


def build_proposal_generator(cfg, input_shape):
    """The generator named by `cfg.MODEL.PROPOSAL_GENERATOR.NAME`.

    "PrecomputedProposals" gives None: the data loader then brings the proposals.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    is_precomputed = name == "PrecomputedProposals"
    return None if is_precomputed else PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
