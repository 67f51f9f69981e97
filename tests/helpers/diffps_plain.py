# SPDX-License-Identifier: Apache-2.0
"""The frozen UNet with a whole forward pass, explicit attention and all maps.

The reference for the fast path of DiffPS.
"""

from diffusers.models.attention_processor import AttnProcessor

# layer -> module path, channels and stride in SD 2.1, written out from the specification
SD21_LAYERS = {
    "u1r2_q": ("up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q", 1280, 32),
    "u2r1_v": ("up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_v", 640, 16),
    "u2r2_q": ("up_blocks.2.attentions.2.transformer_blocks.0.attn1.to_q", 640, 16),
    "u3r0_q": ("up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q", 320, 8),
    "u3r0_k": ("up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k", 320, 8),
    "u3r0_v": ("up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_v", 320, 8),
    "u3r1_k": ("up_blocks.3.attentions.1.transformer_blocks.0.attn1.to_k", 320, 8),
}


class KeepingMaps(AttnProcessor):
    """Explicit softmax attention that keeps the probabilities."""

    def __call__(self, attn, *args, **kwargs):
        compute = type(attn).get_attention_scores

        def keep(*scores_args):
            self.probs = compute(attn, *scores_args)
            return self.probs

        attn.get_attention_scores = keep
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            del attn.get_attention_scores


def plain_features(unet, latents, timestep, context, paths, map_path=None):
    """Runs the whole UNet with hooks; its attention processors do not change.

    Returns:
        Path -> (B, HW, C) for ``paths``, and the (B, heads, HW, T) maps of the attention at
        ``map_path``, whose processor this replaces, or None.
    """
    outputs, handles = {}, []
    for path in paths:
        handles.append(
            unet.get_submodule(path).register_forward_hook(
                lambda module, args, output, path=path: outputs.__setitem__(path, output)
            )
        )
    processor = KeepingMaps()
    if map_path is not None:
        unet.get_submodule(map_path).set_processor(processor)
    unet(latents, timestep, encoder_hidden_states=context.expand(len(latents), -1, -1))
    for handle in handles:
        handle.remove()
    maps = None
    if map_path is not None:
        maps = processor.probs.unflatten(0, (len(latents), -1))
    return outputs, maps
