#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Visualizes the inside of DiffPS for one image, as in the figures of the paper.

    python projects/DiffPS/tools/visualize_diffusion.py \
        --config-file configs/DiffPS/tiny/diffps_tiny_synthetic.yaml \
        --image street.jpg --box 120 40 160 170 --output output/inside \
        MODEL.WEIGHTS output/diffps_tiny/model_final.pth

    attention   cross-attention of words, per layer and head
    pca         activations as colors, per level of the UNet and timestep
    dgrpn       attention, its peaks and Gaussians, and the detection map before and after
    msfrn       one level before and after its refinement, with wavelet bands and gates
    sfan        similarity of the cells of a person to the parts of the body

Each is written to <name>.png in --output, and all together to overview.png. The first two need no
trained weights; the others are marked if the weights are untrained. Attention is drawn at
MODEL.DIFFPS.BACKBONE.TIMESTEP.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from person_search.cli import program_parser, run_program

PANELS = ("attention", "pca", "dgrpn", "msfrn", "sfan")
MAX_BOXES = 4
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")
logger = logging.getLogger("person_search.diffps")


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__, config=True)
    add = parser.add_argument
    add("--image", required=True, type=Path, help="image to visualize")
    add("--output", type=Path, default=Path("output/inside"),
        help="output folder (default: output/inside)")  # fmt: skip
    add("--figures", nargs="+", choices=PANELS, help="what to draw (default: all that is possible)")
    add("--box", type=float, nargs=4, action="append", metavar=("X1", "Y1", "X2", "Y2"),
        help="box of a person in pixels of the image; can be repeated")  # fmt: skip
    add("--dataset", metavar="NAME", help="use the boxes of the image in this dataset")
    add("--words", nargs="+", help="words for attention (default: person and the parts of SFAN)")
    add("--prompt", default="", help="prompt with the words (default: each word is a prompt)")
    add("--layers", nargs="+", help="attention layers, e.g. u1r2 u3r0 (default: ATTN.LAYERS)")
    add("--heads", nargs="+", default=["config"],
        help="indices of attention heads, 'all', or 'mean' of all (default: mean of ATTN.HEADS)",
        )  # fmt: skip
    add("--scale", choices=("map", "shared"), default="map",
        help="color scale of attention: one per map, or a shared one (default: map)")  # fmt: skip
    add("--features", nargs="+", metavar="NAME",
        help="activations for pca, one row each (default: OUT_FEATURES by level)")  # fmt: skip
    add("--timesteps", type=int, nargs="+", default=[0, 100, 300, 600],
        help="timesteps for pca (default: 0 100 300 600)")  # fmt: skip
    add("--noise", choices=("seeded", "none"), default="seeded",
        help="noise added for pca (default: seeded)")  # fmt: skip
    add("--fit", choices=("level", "cell"), default="level",
        help="one PCA for all timesteps of a row, or for each panel (default: level)")  # fmt: skip
    add("--msfrn-level", type=int, default=-1, metavar="INDEX",
        help="index into MSFRN.LEVELS (default: -1, the finest)")  # fmt: skip
    add("--size", type=int, default=300,
        help="width of a panel in pixels, 120 to 2000 (default: 300)")  # fmt: skip
    # an option with several values would also take the config overrides after it
    words = sys.argv[1:]
    start = next((i for i, word in enumerate(words) if CONFIG_KEY.fullmatch(word)), len(words))
    args = parser.parse_args(words[:start])
    args.opts += words[start:]
    if not 120 <= args.size <= 2000:
        parser.error(f"--size is {args.size}; it must be from 120 to 2000")
    if args.box and args.dataset:
        parser.error("--box and --dataset cannot be combined")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Draws the sheets and writes each as soon as it is ready."""
    from diffps.vis.sheet import stack_sheets
    from diffps.vis.subject import make_subject
    from person_search.config import build_config
    from person_search.search import read_image

    cfg = build_config(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "DiffPS":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; this tool is for DiffPS."
        )
    image = read_image(args.image)
    boxes, source = known_boxes(args, image)
    subject = make_subject(cfg, args.image, image, boxes, source)
    wanted = args.figures or PANELS
    panel = args.size, max(1, round(args.size * image.shape[0] / image.shape[1]))
    sheets = []
    for names, draw in ((PANELS[:2], draw_backbone), (PANELS[2:], draw_heads)):
        for name, sheet in draw(args, cfg, subject, set(names) & set(wanted), panel):
            write(args.output / f"{name}.png", sheet)
            sheets.append(sheet)
    if len(sheets) > 1:
        page = stack_sheets(sheets, f"Inside DiffPS: {subject.name}")
        write(args.output / "overview.png", page)


def known_boxes(args: argparse.Namespace, image) -> tuple[list, str]:
    """Returns the boxes of --box or --dataset, clipped to the image, and their source."""
    from person_search.search import clip_box

    height, width = image.shape[:2]
    if not args.dataset:
        return [clip_box(box, width, height) for box in args.box or ()], "given"
    from detectron2.data import DatasetCatalog

    import person_search.data  # noqa: F401  registers the datasets

    if args.dataset not in DatasetCatalog.list():
        names = [name for name in DatasetCatalog.list() if "cuhk_sysu" in name or "prw" in name]
        raise ValueError(f"unknown dataset '{args.dataset}'; available: {sorted(names)}.")
    wanted = args.image.resolve()
    for record in DatasetCatalog.get(args.dataset):
        if Path(record["file_name"]).resolve() == wanted:
            found = [clip_box(a["bbox"], width, height) for a in record["annotations"]]
            area = [float((b[2] - b[0]) * (b[3] - b[1])) for b in found]
            order = sorted(range(len(found)), key=area.__getitem__, reverse=True)
            return [found[i] for i in order], "annotated"
    raise ValueError(f"the image '{args.image}' is not in the dataset '{args.dataset}'.")


def draw_backbone(args, cfg, subject, wanted: set[str], panel) -> Iterator[tuple]:
    """Yields the sheets of the frozen model; its memory is free afterwards."""
    from diffps.vis import backbone_panels as panels
    from diffps.vis.probe import DiffusionProbe

    if not wanted:
        return
    if cfg.MODEL.BACKBONE.NAME != "DiffusionBackbone":
        message = (
            f"MODEL.BACKBONE.NAME is '{cfg.MODEL.BACKBONE.NAME}': attention and pca need a "
            "DiffusionBackbone."
        )
        if args.figures:
            raise ValueError(f"{message} Remove them from --figures.")
        logger.warning("%s They are skipped.", message)
        return
    backbone = cfg.MODEL.DIFFPS.BACKBONE
    probe = DiffusionProbe(cfg)
    image = probe.encode(subject.item["image"])
    if "attention" in wanted:
        heads, average = parse_heads(args.heads, list(backbone.ATTN.HEADS))
        words = args.words or args.prompt.split() or ["person", *cfg.MODEL.DIFFPS.SFAN.PARTS]
        options = panels.AttentionOptions(
            words=list(dict.fromkeys(words)),
            prompt=args.prompt,
            places=args.layers or list(backbone.ATTN.LAYERS) or ["u3r0"],
            heads=heads,
            average=average,
            scale=args.scale,
            timestep=backbone.TIMESTEP,
        )
        yield "attention", panels.draw_attention(probe, image, subject, options, panel)
    if "pca" in wanted:
        probe.noise = args.noise
        groups = panels.group_by_level(list(backbone.OUT_FEATURES))
        if args.features:
            groups = {name: [name] for name in args.features}
        prompt = backbone.PROMPT
        sheet = panels.draw_pca(
            probe, image, subject, groups, prompt, args.timesteps, args.fit, panel
        )
        yield "pca", sheet


def parse_heads(texts: list[str], configured: list[int]) -> tuple[list[int], bool]:
    """Returns the heads to draw, empty for all, and whether to average them."""
    if texts == ["config"]:
        return configured, True
    if texts in (["all"], ["mean"]):
        return [], texts == ["mean"]
    if not all(text.isdecimal() for text in texts):
        raise ValueError(f"--heads is {' '.join(texts)}; allowed: indices, 'all' or 'mean'.")
    return [int(text) for text in texts], False


def draw_heads(args, cfg, subject, wanted: set[str], panel) -> Iterator[tuple]:
    """Yields the sheets of the trainable parts."""
    from diffps.vis.head_panels import HeadsView, draw_dgrpn, draw_msfrn, draw_sfan

    if not wanted:
        return
    model, trained = load_model(cfg)
    if not trained:
        logger.warning("No MODEL.WEIGHTS: dgrpn, msfrn and sfan are drawn with untrained weights.")
    elif not len(subject.boxes):
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
            if args.figures:  # requested explicitly
                raise
            logger.warning("Skipped %s: %s", name, e)
        else:
            yield name, sheet


def load_model(cfg) -> tuple:
    """Returns the model in eval mode, and whether it has trained weights."""
    from detectron2.modeling import build_model

    from person_search.search import PersonEmbedder

    path = cfg.MODEL.WEIGHTS
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = "none"  # the cache of a training is for its images
    # the look-up table, which is not drawn, must have the size of the saved one
    cfg.MODEL.REID.NUM_PIDS = saved_identities(path) or cfg.MODEL.REID.NUM_PIDS or 1
    if path:
        return PersonEmbedder.from_config(cfg).model, True
    return build_model(cfg).eval(), False


def saved_identities(path: str) -> int:
    """Returns the rows of the look-up table in a weight file; 0 if they are unknown."""
    from person_search.utils.weight_files import WeightFileError, read_weights

    try:
        return len(read_weights(path).get("roi_heads.reid_head.oim.lut", ()))
    except (OSError, WeightFileError):
        return 0


def with_detections(cfg, path, subject, model):
    """Returns the subject with the best detections as boxes."""
    from diffps.vis.subject import make_subject

    (found,) = model.inference([subject.item])
    found = found["instances"].to("cpu")
    found = found[found.scores >= cfg.TEST.PERSON_SEARCH.SCORE_THRESH]
    boxes = found[found.scores.argsort(descending=True)].pred_boxes.tensor.numpy()[:MAX_BOXES]
    return make_subject(cfg, path, subject.image, boxes, "detected")


def write(path: Path, sheet) -> None:
    """Writes a PNG atomically and prints its path."""
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode_image(sheet, path.suffix, max_bytes=3_000_000))
    print(path, flush=True)


def main() -> int:
    """Runs the program."""
    return run_program(visualize, parse_args())


if __name__ == "__main__":
    sys.exit(main())
