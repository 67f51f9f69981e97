#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws how PSDiff goes from random boxes to persons in an image, step by step.

    python projects/PSDiff/tools/visualize_denoising.py --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml \\
        --image street.jpg --query-image other.jpg --query-box 120 40 160 170 \\
        --output output/denoising MODEL.WEIGHTS output/demo/train/model_final_ema.pth

Writes denoising.png (all steps side by side, like Fig. 6 of the paper) and denoising.gif (the same
as an animation). With a query, every box shows how similar the person in it is; without
--query-image its box lies in --image. The number of steps is MODEL.PSDIFF.STEPS.
"""

import argparse
import sys
from pathlib import Path

from person_search.cli import run_program


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the one the weights are trained with")
    parser.add_argument("--image", required=True, type=Path, help="image to search")
    parser.add_argument("--query-image", type=Path, help="image of the query; default: --image")
    parser.add_argument(
        "--query-box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"),
        help="the person in it, in pixels",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("output/denoising"))
    parser.add_argument(
        "--score-thresh", type=float,
        help="boxes that score less are drawn faintly; default: TEST.PERSON_SEARCH.SCORE_THRESH",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE pairs")
    args = parser.parse_args()
    if args.query_image and not args.query_box:
        parser.error("--query-image needs --query-box: where in it is the person?")
    if args.score_thresh is not None and not 0 <= args.score_thresh <= 1:
        parser.error(f"--score-thresh is {args.score_thresh}; it must be between 0 and 1")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Runs the model and writes both images."""
    from person_search.config import build_config
    from person_search.search import PersonEmbedder, clip_box, read_image
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
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; only PSDiff denoises."
        )
    image = read_image(args.image)
    query = None
    if args.query_box:
        query_image = read_image(args.query_image) if args.query_image else image
        height, width = query_image.shape[:2]
        query = StripQuery(query_image, clip_box(args.query_box, width, height).tolist())
    embedder = PersonEmbedder.from_config(cfg)
    query_feat = None
    if query:
        (query_feat,) = embedder.embed(args.query_image or args.image, [query.box])
    thresh = embedder.score_thresh if args.score_thresh is None else args.score_thresh
    panels = denoising_panels(embedder, args.image, args.seed, query_feat, thresh)

    settings = embedder.model.settings
    caption = (
        f"{len(panels[0].boxes)} random boxes become persons in {len(panels) - 1} steps "
        f"({settings.sampler}). Person: a box that scores at least {thresh:g}, the best of those "
        "on the same spot; all others are thin."
    )
    sheet = draw_denoising_strip(
        image, panels, query, title=f"Denoising: {args.image.name}", caption=caption
    )
    args.output.mkdir(parents=True, exist_ok=True)
    write(args.output / "denoising.png", encode_image(sheet, ".png", max_bytes=3_000_000))
    frames = draw_denoising_frames(image, panels, query)
    write(args.output / "denoising.gif", encode_animation(frames))
    for panel in panels:
        print(f"{panel.title}: {panel.note}")
    print(f"{args.output / 'denoising.png'}\n{args.output / 'denoising.gif'}")


def denoising_panels(embedder, path: Path, seed: int, query_feat, score_thresh: float) -> list:
    """The noise, and the predictions of every step, in the frame of the image.

    Args:
        embedder: a PersonEmbedder with a PSDiff model. path: of the image.
        seed: of the noise.
        query_feat: (D,) of unit length, or None.
        score_thresh: least score of a detection.
    """
    import numpy as np
    import torch

    from person_search.search import read_image
    from psdiff.denoising_strip import DenoisingPanel

    model = embedder.model
    picture = read_image(path, embedder.image_format)
    item, _ = embedder.model_input(picture)
    height, width = (
        old / new for old, new in zip(picture[..., 0].shape, item["image"].shape[1:], strict=True)
    )
    scale = np.array([width, height, width, height])
    steps = model.denoising_steps([item], generator=seed)
    panels = [
        DenoisingPanel(
            f"Start: pure noise, t = {steps[0].t}", steps[0].boxes[0].cpu().numpy() * scale
        )
    ]
    for number, step in enumerate(steps, 1):
        boxes, scores = step.output.boxes[0], step.output.logits[0].sigmoid()
        sims = None
        if query_feat is not None:
            feats = torch.nn.functional.normalize(step.output.reid_feats[0], dim=1)
            sims = feats.cpu().numpy() @ query_feat
        final = number == len(steps)
        panels.append(
            DenoisingPanel(
                f"{'Result: step' if final else 'Step'} {number} of {len(steps)}, t = {step.t}",
                boxes.cpu().numpy() * scale,
                scores.cpu().numpy(),
                sims,
                persons_among(boxes, scores, score_thresh, model.settings.nms_thresh),
                final,
            )
        )
    return panels


def persons_among(boxes, scores, score_thresh: float, nms_thresh: float) -> list[int]:
    """Rows of (N, 4) boxes that become detections, best first."""
    import torch
    from detectron2.layers import batched_nms

    strong = (scores >= score_thresh).nonzero().flatten()
    classes = torch.zeros_like(strong)
    return strong[batched_nms(boxes[strong], scores[strong], classes, nms_thresh)].tolist()


def write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    from person_search.utils.files import write_atomically

    write_atomically(path, content)


def main() -> int:
    return run_program(visualize, parse_args())


if __name__ == "__main__":
    sys.exit(main())
