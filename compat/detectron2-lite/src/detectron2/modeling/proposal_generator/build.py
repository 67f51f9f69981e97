# SPDX-License-Identifier: Apache-2.0
"""The registry of proposal generators."""

from fvcore.common.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Proposal generators, called as `obj(cfg, input_shape)` with a dict from feature name to
`ShapeSpec`; they return an `nn.Module` that maps (images, features, gt_instances or None) to
(list of `Instances`, dict of losses).
"""


def build_proposal_generator(cfg, input_shape):
    """Builds the proposal generator named by cfg.MODEL.PROPOSAL_GENERATOR.NAME.

    "PrecomputedProposals" gives None: the proposals are inputs of the model.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
