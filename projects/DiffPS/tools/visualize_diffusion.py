#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what goes on inside DiffPS for one image, as in the figures of the paper.

    python projects/DiffPS/tools/visualize_diffusion.py --config-file configs/DiffPS/tiny/diffps_tiny_synthetic.yaml \\
        --image street.jpg --box 120 40 160 170 --output output/inside \\
        MODEL.WEIGHTS output/diffps_tiny/model_final.pth

    attention   where each word looks, per layer and head
    pca         what the activations hold, per level of the UNet and timestep
    dgrpn       attention, its peaks and Gaussians, and the detection map before and after
    msfrn       one level before and after its refinement, with wavelet bands and gates
    sfan        which cells of a person look like which part of the body

Each becomes <name>.png in --output, and all together overview.png. The first two need no trained
weights; the others say in the image if there are none. Attention is drawn at
MODEL.DIFFPS.BACKBONE.TIMESTEP.
"""

import argparse
import re
import sys
from pathlib import Path

from person_search.cli import run_program

FIGURES = ("attention", "pca", "dgrpn", "msfrn", "sfan")
MAX_BOXES = 4
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="of DiffPS")
    add("--image", required=True, type=Path, help="image to look at")
    add("--output", type=Path, default=Path("output/inside"))
    add("--figures", nargs="+", choices=FIGURES, help="default: all that can be drawn")
    add("--box", type=float, nargs=4, action="append", metavar=("X1", "Y1", "X2", "Y2"),
        help="a person, in pixels of the image; several times for several")  # fmt: skip
    add("--dataset", help="take the boxes that this data set has for the image")
    add("--words", nargs="+", help="default: person and the parts of SFAN")
    add("--prompt", default="", help="--words are words of it; default: each is its own prompt")
    add("--layers", nargs="+", help="of attention, e.g. u1r2 u3r0; default: ATTN.LAYERS")
    add("--heads", nargs="+", default=["config"],
        help="indices, 'all', or 'mean' of all; default: mean of ATTN.HEADS")  # fmt: skip
    add("--scale", choices=("map", "shared"), default="map", help="of attention's colors")
    add("--features", nargs="+", help="for pca, a row each; default: OUT_FEATURES by level")
    add("--timesteps", type=int, nargs="+", default=[0, 100, 300, 600], help="of pca")
    add("--noise", choices=("seeded", "none"), default="seeded", help="added for pca")
    add("--fit", choices=("level", "cell"), default="level",
        help="one PCA for all timesteps of a row, or for each panel")  # fmt: skip
    add("--msfrn-level", type=int, default=-1, help="index into MSFRN.LEVELS; default: the finest")
    add("--size", type=int, default=300, help="width of a panel in pixels")
    add("--traceback", action="store_true", help="show where an error was raised")
    add("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE pairs")
    # an option of several values would take the overrides behind it for values of its own
    words = sys.argv[1:]
    keys = [i for i, word in enumerate(words) if CONFIG_KEY.fullmatch(word)]
    start = keys[0] if keys else len(words)
    args = parser.parse_args(words[:start])
    args.opts += words[start:]
    if not 120 <= args.size <= 2000:
        parser.error(f"--size is {args.size}; it must be from 120 to 2000")
    if args.box and args.dataset:
        parser.error("--box and --dataset both give boxes; choose one")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Draws the figures one after another and writes each at once."""
    from diffps.vis import make_subject, stack_sheets
    from person_search.config import build_config
    from person_search.search import read_image

    cfg = build_config(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "DiffPS":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; this tool is for DiffPS."
        )
    picture = read_image(args.image)
    boxes, source = known_boxes(args, picture)
    subject = make_subject(cfg, args.image, picture, boxes, source)
    wanted = args.figures or FIGURES
    panel = args.size, max(1, round(args.size * picture.shape[0] / picture.shape[1]))
    sheets = {}
    if {"attention", "pca"} & set(wanted) and has_diffusion(cfg, needed=bool(args.figures)):
        for name, sheet in draw_backbone(args, cfg, subject, wanted, panel):
            sheets[name] = write(args.output / f"{name}.png", sheet)
    if {"dgrpn", "msfrn", "sfan"} & set(wanted):
        for name, sheet in draw_heads(args, cfg, subject, wanted, panel):
            sheets[name] = write(args.output / f"{name}.png", sheet)
    if len(sheets) > 1:
        page = stack_sheets(list(sheets.values()), f"Inside DiffPS: {subject.name}")
        write(args.output / "overview.png", page)


def known_boxes(args: argparse.Namespace, picture) -> tuple[list, str]:
    """Boxes of --box or --dataset inside the image, and where they are from."""
    from person_search.search import clip_box

    height, width = picture.shape[:2]
    if args.box:
        return [clip_box(box, width, height) for box in args.box], "given"
    if not args.dataset:
        return [], "given"
    from detectron2.data import DatasetCatalog

    import person_search.data  # noqa: F401  registers the data sets

    if args.dataset not in DatasetCatalog.list():
        names = [name for name in DatasetCatalog.list() if "cuhk_sysu" in name or "prw" in name]
        raise ValueError(f"there is no data set '{args.dataset}'; there are {sorted(names)}.")
    wanted = args.image.resolve()
    for record in DatasetCatalog.get(args.dataset):
        if Path(record["file_name"]).resolve() == wanted:
            found = [clip_box(a["bbox"], width, height) for a in record["annotations"]]
            return sorted(found, key=box_area, reverse=True), "annotated"
    raise ValueError(f"the image '{args.image}' is none of the data set '{args.dataset}'.")


def box_area(box) -> float:
    """Pixels of an XYXY box."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def has_diffusion(cfg, needed: bool) -> bool:
    """Whether the backbone is a diffusion model; a warning, or an error if needed, where not."""
    import logging

    if cfg.MODEL.BACKBONE.NAME == "DiffusionBackbone":
        return True
    message = (
        f"MODEL.BACKBONE.NAME is '{cfg.MODEL.BACKBONE.NAME}': attention and pca look into a "
        "DiffusionBackbone."
    )
    if needed:
        raise ValueError(f"{message} Leave them out of --figures.")
    logging.getLogger("person_search").warning("%s They are left out.", message)
    return False


def draw_backbone(args, cfg, subject, wanted, panel):
    """Gives the figures of the frozen model; its memory is free again afterwards."""
    from diffps.vis import (
        AttentionOptions,
        DiffusionProbe,
        draw_attention,
        draw_pca,
        group_by_level,
    )

    backbone = cfg.MODEL.DIFFPS.BACKBONE
    probe = DiffusionProbe.from_config(cfg)
    image = probe.encode(subject.item["image"])
    if "attention" in wanted:
        heads, average = parse_heads(args.heads, list(backbone.ATTN.HEADS))
        words = args.words or args.prompt.split() or ["person", *cfg.MODEL.DIFFPS.SFAN.PARTS]
        options = AttentionOptions(
            words=list(dict.fromkeys(words)),
            prompt=args.prompt,
            places=args.layers or list(backbone.ATTN.LAYERS) or ["u3r0"],
            heads=heads,
            average=average,
            scale=args.scale,
            timestep=backbone.TIMESTEP,
        )
        yield "attention", draw_attention(probe, image, subject, options, panel)
    if "pca" in wanted:
        probe.noise = args.noise
        groups = group_by_level(list(backbone.OUT_FEATURES))
        if args.features:
            groups = {name: [name] for name in args.features}
        prompt = backbone.PROMPT
        sheet = draw_pca(probe, image, subject, groups, prompt, args.timesteps, args.fit, panel)
        yield "pca", sheet


def parse_heads(texts: list[str], configured: list[int]) -> tuple[list[int], bool]:
    """Heads to show, empty for all, and whether to average them."""
    if texts == ["config"]:
        return configured, True
    if texts in (["all"], ["mean"]):
        return [], texts == ["mean"]
    if not all(text.isdecimal() for text in texts):
        raise ValueError(f"--heads is {' '.join(texts)}; allowed: indices, 'all' or 'mean'.")
    return [int(text) for text in texts], False


def draw_heads(args, cfg, subject, wanted, panel):
    """Gives the figures of the trainable parts."""
    import logging

    from diffps.vis import HeadsView, draw_dgrpn, draw_msfrn, draw_sfan

    model, trained = load_model(cfg)
    if not trained:
        logging.getLogger("person_search").warning(
            "No MODEL.WEIGHTS: dgrpn, msfrn and sfan are drawn with untrained weights."
        )
    if not len(subject.boxes) and trained:
        subject = with_detections(cfg, args.image, subject, model)
    view = HeadsView.run(model, subject, trained)
    tile = round(0.45 * args.size), round(1.05 * args.size)
    parts = list(cfg.MODEL.DIFFPS.SFAN.PARTS)
    drawers = {
        "dgrpn": lambda: draw_dgrpn(view, panel),
        "msfrn": lambda: draw_msfrn(view, panel, args.msfrn_level),
        "sfan": lambda: draw_sfan(view, parts, tile, MAX_BOXES),
    }
    for name, draw in drawers.items():
        if name not in wanted:
            continue
        try:
            sheet = draw()
        except ValueError as e:
            if args.figures:  # asked for by name
                raise
            logging.getLogger("person_search").warning("Left out %s: %s", name, e)
        else:
            yield name, sheet


def load_model(cfg) -> tuple:
    """The model in eval mode, and whether it has trained weights."""
    from detectron2.modeling import build_model

    from person_search.search import PersonEmbedder

    path = cfg.MODEL.WEIGHTS
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = "none"  # that of a training is for its images
    # the size of the look-up table, which no figure shows, is the one of the weights
    cfg.MODEL.REID.NUM_PIDS = saved_identities(path) or cfg.MODEL.REID.NUM_PIDS or 1
    if path:
        return PersonEmbedder.from_config(cfg).model, True
    return build_model(cfg).eval(), False


def saved_identities(path: str) -> int:
    """Rows of the look-up table in a weight file; 0 if the file does not tell."""
    from person_search.utils.weight_files import WeightFileError, read_weights

    try:
        return len(read_weights(path).get("roi_heads.reid_head.oim.lut", ()))
    except (OSError, WeightFileError):
        return 0


def with_detections(cfg, path, subject, model):
    """The subject with the best detections as boxes."""
    import numpy as np

    from diffps.vis import make_subject

    (found,) = model.inference([subject.item])
    found = found["instances"].to("cpu")
    found = found[found.scores >= cfg.TEST.PERSON_SEARCH.SCORE_THRESH]
    boxes = found[found.scores.argsort(descending=True)].pred_boxes.tensor.numpy()[:MAX_BOXES]
    return make_subject(cfg, path, subject.picture, np.asarray(boxes), "detected")


def write(path: Path, sheet):
    """Writes a PNG completely or not at all, says where, and returns the sheet."""
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image

    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode_image(sheet, path.suffix, max_bytes=3_000_000)
    write_atomically(path, content)
    print(path, flush=True)
    return sheet


def main() -> int:
    return run_program(visualize, parse_args())


if __name__ == "__main__":
    sys.exit(main())
