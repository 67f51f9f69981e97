#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Visualizes how PSDiff turns random boxes into persons, step by step.

    python projects/PSDiff/tools/visualize_denoising.py \
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml \
        --image street.jpg --query-image other.jpg --query-box 120 40 160 170 \
        --output output/denoising MODEL.WEIGHTS output/demo/train/model_final_ema.pth

Writes denoising.png, all steps side by side as in Fig. 6 of the paper, and denoising.gif, the same
as an animation. With a query, each box shows its similarity to the query. The number of steps is
MODEL.PSDIFF.STEPS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from person_search.cli import program_parser, run_program

if TYPE_CHECKING:
    import numpy as np

    from person_search.search import PersonEmbedder
    from psdiff.denoising_strip import DenoisingPanel


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = program_parser(__doc__, config=True)
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="input image")
    parser.add_argument(
        "--query-image", type=Path, metavar="FILE", help="image of the query (default: --image)"
    )
    parser.add_argument(
        "--query-box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"),
        help="bounding box of the query in --query-image, in pixels (default: no query)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("output/denoising"), metavar="DIR",
        help="output folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--score-thresh", type=float, metavar="SCORE",
        help="minimum score of a detection, 0 to 1; boxes with lower scores are drawn faintly "
        "(default: TEST.PERSON_SEARCH.SCORE_THRESH)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the noise (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.query_image and not args.query_box:
        parser.error("--query-image requires --query-box, the bounding box of the person in it")
    if args.score_thresh is not None and not 0 <= args.score_thresh <= 1:
        parser.error(f"--score-thresh is {args.score_thresh}; it must be between 0 and 1")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Runs the model and writes both files."""
    from person_search.config import build_config
    from person_search.search import PersonEmbedder, clip_box, read_image
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image
    from psdiff.denoising_strip import (
        StripQuery,
        draw_denoising_frames,
        draw_denoising_strip,
        encode_animation,
    )

    cfg = build_config(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "PSDiff":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; this program is for "
            "PSDiff."
        )
    image = read_image(args.image)
    query = query_feat = None
    if args.query_box:
        query_image = read_image(args.query_image) if args.query_image else image
        height, width = query_image.shape[:2]
        query = StripQuery(query_image, clip_box(args.query_box, width, height).tolist())
    embedder = PersonEmbedder.from_config(cfg)
    if query:
        (query_feat,) = embedder.embed(args.query_image or args.image, [query.box])
    thresh = embedder.score_thresh if args.score_thresh is None else args.score_thresh
    panels = denoising_panels(embedder, args.image, args.seed, query_feat, thresh)

    caption = (
        f"{len(panels[0].boxes)} random boxes are denoised in {len(panels) - 1} steps "
        f"({embedder.model.settings.sampler}). Detections are the boxes that score at least "
        f"{thresh:g}, after non-maximum suppression; all others are thin."
    )
    title = f"Denoising: {args.image.name}"
    strip = draw_denoising_strip(image, panels, query, title=title, caption=caption)
    frames = draw_denoising_frames(image, panels, query)
    args.output.mkdir(parents=True, exist_ok=True)
    png, gif = args.output / "denoising.png", args.output / "denoising.gif"
    write_atomically(png, encode_image(strip, ".png", max_bytes=3_000_000))
    write_atomically(gif, encode_animation(frames))
    for panel in panels:
        print(f"{panel.title}: {panel.note}")
    print(f"{png}\n{gif}")


def denoising_panels(
    embedder: "PersonEmbedder",
    path: Path,
    seed: int,
    query_feat: "np.ndarray | None",
    score_thresh: float,
) -> "list[DenoisingPanel]":
    """Returns the noise and the predictions of each step, in pixels of the image.

    Args:
        embedder: Embedder with a PSDiff model.
        path: Image file.
        seed: Seed of the noise.
        query_feat: Embedding (D,) of the query, of unit norm.
        score_thresh: Minimum score of a detection.
    """
    import numpy as np
    import torch
    from detectron2.layers import batched_nms

    from person_search.search import read_image
    from psdiff.denoising_strip import DenoisingPanel

    model = embedder.model
    image = read_image(path, embedder.image_format)
    item, _ = embedder.model_input(image)
    height, width = np.array(image.shape[:2]) / item["image"].shape[1:]
    scale = np.array([width, height, width, height])
    steps = model.denoising_steps([item], generator=seed)
    noise = steps[0].boxes[0].cpu().numpy() * scale
    panels = [DenoisingPanel(f"Start: pure noise, t = {steps[0].t}", noise)]
    for number, step in enumerate(steps, 1):
        boxes, scores = step.output.boxes[0], step.output.logits[0].sigmoid()
        sims = None
        if query_feat is not None:
            feats = torch.nn.functional.normalize(step.output.reid_feats[0], dim=1)
            sims = feats.cpu().numpy() @ query_feat
        final = number == len(steps)
        strong = (scores >= score_thresh).nonzero().flatten()
        classes, nms_thresh = torch.zeros_like(strong), model.settings.nms_thresh
        kept = strong[batched_nms(boxes[strong], scores[strong], classes, nms_thresh)]
        panels.append(
            DenoisingPanel(
                f"{'Result: step' if final else 'Step'} {number} of {len(steps)}, t = {step.t}",
                boxes.cpu().numpy() * scale,
                scores.cpu().numpy(),
                sims,
                kept.tolist(),
                final,
            )
        )
    return panels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
