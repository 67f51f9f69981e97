# SPDX-License-Identifier: Apache-2.0
"""Noise schedule of PSDiff, and the signals that boxes and embeddings are encoded as.

Shape shorthand in this file:
    N: proposals of one image. K: ground truths of one image. D: embedding dimension.
    T: steps of the diffusion process (1000).

Frames (see docs/notation.md):
    boxes: XYXY, pixels of the input image.
    boxes_norm: (cx, cy, w, h) divided by the width and height of the image.
    boxes_signal: boxes_norm scaled to [-s1, s1]; noise is added in this frame.
    reid_signal: embedding scaled by EMBED_NORM and s2; noise is added in this frame.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from psdiff.config import check_choice

NUM_TRAIN_TIMESTEPS = 1000
EMBED_NORMS = ("l2", "rms", "max")
_MAX_BETA = 0.999
_COSINE_OFFSET = 0.008
_MIN_SIZE_NORM = 1e-4
# Distribution of center and size of random padding boxes, in the normalized frame.
_PAD_MEAN, _PAD_STD = 0.5, 1.0 / 6.0


def cosine_betas(num_steps: int = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """Returns the betas of the cosine schedule, offset 0.008, at most 0.999; (T,) float64."""
    grid = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    level = torch.cos((grid + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - level[1:] / level[:-1]).clamp(max=_MAX_BETA)


def cosine_alphas_cumprod(num_steps: int = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """Returns the signal variance remaining after step t ("alpha_t", Eq. 10); (T,) float64."""
    return torch.cumprod(1 - cosine_betas(num_steps), dim=0)


def add_noise(x_start: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Computes the forward process, PSDiff Eq. 7: sqrt(ab) x_start + sqrt(1 - ab) noise.

    Args:
        x_start: Clean signal (..., C).
        noise: Standard normal noise of the same shape.
        alpha_cumprod: Scalar, or a tensor that broadcasts to ``x_start``.
    """
    ab = alpha_cumprod.to(x_start.dtype)
    return ab.sqrt() * x_start + (1 - ab).sqrt() * noise


def image_whwh(image_size: tuple[int, int], like: Tensor) -> Tensor:
    """Returns (w, h, w, h) for an image size (h, w), with device and dtype of ``like``."""
    h, w = image_size
    return like.new_tensor([w, h, w, h])


def boxes_to_norm(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Converts XYXY pixels (N, 4) to (cx, cy, w, h) relative to the image size (h, w)."""
    x1, y1, x2, y2 = (boxes / image_whwh(image_size, boxes)).unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def norm_to_boxes(boxes_norm: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Converts relative (cx, cy, w, h) (..., 4) to XYXY pixels; sizes are at least 1e-4."""
    cx, cy, w, h = boxes_norm.unbind(-1)
    half_w = w.clamp(min=_MIN_SIZE_NORM) / 2
    half_h = h.clamp(min=_MIN_SIZE_NORM) / 2
    boxes = torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=-1)
    return boxes * image_whwh(image_size, boxes)


@dataclass(frozen=True)
class SignalCodec:
    """Encodes boxes and embeddings as diffusion signals, and decodes boxes.

    Attributes:
        snr_box: Signal scale s1 of boxes, half the range of the box signal.
        snr_reid: Signal scale s2 of embeddings.
        embed_norm: Norm of an embedding before scaling: ``l2`` (length one), ``rms`` (length
            sqrt(D)) or ``max`` (largest absolute entry one).
    """

    snr_box: float = 2.0
    snr_reid: float = 3.0
    embed_norm: str = "l2"

    def __post_init__(self) -> None:
        check_choice("EMBED_NORM", self.embed_norm, EMBED_NORMS)
        if self.snr_box <= 0 or self.snr_reid <= 0:
            raise ValueError(
                "MODEL.PSDIFF.SNR_BOX and SNR_REID must be above 0, "
                f"but are {self.snr_box} and {self.snr_reid}."
            )

    def encode_boxes(self, boxes_norm: Tensor) -> Tensor:
        """Encodes boxes_norm (..., 4) as boxes_signal, s1 (2 b - 1) in Eq. 10."""
        return self.snr_box * (2 * boxes_norm - 1)

    def decode_boxes(self, boxes_signal: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Decodes boxes_signal (..., 4), clamped to +-s1, to XYXY pixels of an image (h, w)."""
        boxes_norm = (self.clamp_boxes(boxes_signal) / self.snr_box + 1) / 2
        return norm_to_boxes(boxes_norm, image_size)

    def clamp_boxes(self, boxes_signal: Tensor) -> Tensor:
        """Clamps boxes_signal to [-s1, s1], the range of clean boxes."""
        return boxes_signal.clamp(-self.snr_box, self.snr_box)

    def encode_reid(self, reid_feats: Tensor) -> Tensor:
        """Encodes embeddings of any norm (..., D) as reid_signal, s2 Norm(e) in Eq. 10."""
        if self.embed_norm == "max":
            return self.snr_reid * F.normalize(reid_feats, p=torch.inf, dim=-1)
        unit = F.normalize(reid_feats, dim=-1)
        return unit * self.reid_length(reid_feats.shape[-1])

    def wiener_gain(self, alpha_cumprod: Tensor, dim: int) -> Tensor:
        """Returns the factor for the best linear estimate of a clean embedding from a noisy one.

        It is sqrt(ab) v / (ab v + 1 - ab) with v the variance of a clean entry (s2^2 / D for
        ``l2``, s2^2 for ``rms``, see :meth:`reid_length` for ``max``): close to 1 without noise, 0
        for pure noise.
        """
        variance = self.reid_length(dim) ** 2 / dim
        ab = alpha_cumprod
        return ab.sqrt() * variance / (ab * variance + 1 - ab)

    def reid_length(self, dim: int) -> float:
        """Returns the norm of a clean embedding signal with ``dim`` entries.

        For ``max`` it depends on the embedding; this is the value for the median largest entry of
        an embedding in a random direction, about 5.6 s2 with 256 entries.
        """
        if self.embed_norm == "l2":
            return self.snr_reid
        largest = 1.0
        if self.embed_norm == "max":  # P(all of D normal entries within +-x) = 1/2
            largest = NormalDist().inv_cdf(0.5 + 0.5 ** (1 + 1 / dim))
        return self.snr_reid * math.sqrt(dim) / largest


def random_boxes_norm(count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Samples padding boxes (count, 4); each of cx, cy, w, h is drawn from N(0.5, (1/6)^2)."""
    boxes = torch.randn(count, 4, generator=generator, device=like.device, dtype=like.dtype)
    boxes = boxes * _PAD_STD + _PAD_MEAN
    return torch.cat([boxes[:, :2], boxes[:, 2:].clamp(min=_MIN_SIZE_NORM)], dim=1)


def pad_ground_truth(
    boxes_norm: Tensor,
    reid_feats: Tensor,
    num_proposals: int,
    mode: str,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pads the ground truths of an image to N clean proposals (Section IV-A, "padding").

    Args:
        boxes_norm: Ground-truth boxes (K, 4).
        reid_feats: Unit embeddings (K, D) of the teacher.
        num_proposals: Number of proposals N. A random subset is taken if K > N.
        mode: ``repeat`` the ground truths in turn; ``noise``: random boxes with random unit
            embeddings; ``mix``: repeat up to N / 2, then noise. Without ground truths: noise.
        generator: Random generator. Default: PyTorch's global one.

    Returns:
        boxes_norm (N, 4) and unit embeddings (N, D).
    """
    check_choice("PAD", mode, ("repeat", "noise", "mix"))
    num_gt, dim = reid_feats.shape
    if num_gt > num_proposals:
        keep = torch.randperm(num_gt, generator=generator, device=boxes_norm.device)
        keep = keep[:num_proposals]
        return boxes_norm[keep], reid_feats[keep]
    repeats = {"repeat": num_proposals, "noise": num_gt, "mix": max(num_gt, num_proposals // 2)}
    num_real = repeats[mode] if num_gt else 0
    index = torch.arange(num_real, device=boxes_norm.device) % max(num_gt, 1)
    num_noise = num_proposals - num_real
    noise_reid = torch.randn(
        num_noise, dim, generator=generator, device=reid_feats.device, dtype=reid_feats.dtype
    )
    return (
        torch.cat([boxes_norm[index], random_boxes_norm(num_noise, boxes_norm, generator)]),
        torch.cat([reid_feats[index], F.normalize(noise_reid, dim=-1)]),
    )
