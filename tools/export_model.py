#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a trained PSDiff as an ONNX file, or as a program of torch.export.

    python tools/export_model.py --config-file CONFIG --weights model_final.pth --output model.onnx
    person-search index --gallery galleries/street --source images/ \
        --config-file CONFIG --weights model.onnx

The suffix of the output selects the format: .onnx (docs/deployment.md; its metadata contain all
settings and the identity of the model) or .pt2. --int8 quantizes the weights of linear layers.
--evaluate compares the search results of the written file with those of PyTorch on DATASETS.TEST.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from person_search.cli import program_parser, run_program

if TYPE_CHECKING:
    from detectron2.config import CfgNode

SUFFIXES = (".onnx", ".pt2")
DEFAULT_SIDE = 2048
"""Default of --max-side for models that do not resize images."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__, config=True)
    add = parser.add_argument
    add("--weights", default="", metavar="FILE", help="checkpoint (default: MODEL.WEIGHTS)")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write (.onnx or .pt2)")
    add("--max-side", type=int, default=0, metavar="PIXELS",
        help="largest side of a resized image (default: INPUT.MAX_SIZE_TEST)")  # fmt: skip
    add("--int8", action="store_true", help="quantize the weights of linear layers (.onnx)")
    add("--evaluate", action="store_true", help="evaluate the file and the model (.onnx)")
    args = parser.parse_args(argv)
    if args.output.suffix not in SUFFIXES:
        parser.error(f"--output is {args.output}; its name must end in {' or '.join(SUFFIXES)}")
    if args.output.suffix != ".onnx" and (args.int8 or args.evaluate):
        parser.error(f"--int8 and --evaluate require an .onnx file; --output is {args.output}")
    return args


def export(args: argparse.Namespace) -> None:
    """Writes the file and prints its size."""
    import torch

    from person_search.config import build_config
    from person_search.search.embedder import PersonEmbedder
    from person_search.search.onnx_model import FORMAT_VERSION
    from psdiff.export import describe, export_graph, export_onnx
    from psdiff.meta_arch import PSDiff

    opts = [*args.opts, "MODEL.DEVICE", "cpu", "TEST.PRECISION", "eager"]
    cfg = build_config(args.config_file, opts)
    if args.output.suffix == ".onnx":
        require_onnx()
    embedder = PersonEmbedder.from_config(cfg, args.weights)
    model = embedder.model
    if not isinstance(model, PSDiff):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only PSDiff can be "
            "exported."
        )
    divisor = model.backbone.size_divisibility
    side = args.max_side or max(cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) or DEFAULT_SIDE
    side = -(-side // divisor) * divisor
    program = export_graph(model, side)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.suffix == ".pt2":
        torch.export.save(program, args.output)
    else:
        values = {
            "version": FORMAT_VERSION,
            "precision": "int8" if args.int8 else "float32",
            "image_format": cfg.INPUT.FORMAT,
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "identity": embedder.identity.to_json(),
            "model_card": embedder.card.to_json() if embedder.card else None,
            **describe(model, side),
        }
        export_onnx(program, args.output, values)
        if args.int8:
            quantize(args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, sides up to {side} pixels")
    if args.evaluate:
        compare(cfg, model, args.output)


def require_onnx() -> None:
    """Checks that the libraries for ONNX are installed, before the model is built.

    Raises:
        ModuleNotFoundError: If one is missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"an .onnx file is written with {e.name}, which is not installed: "
            "pip install 'person-search[onnx]'."
        ) from e


def quantize(path: Path) -> None:
    """Replaces the weights of the linear layers of a file by 8-bit integers."""
    import logging

    from onnxruntime.quantization import quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # advice on preprocessing
    quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"])


def compare(cfg: "CfgNode", model: Any, path: Path) -> None:
    """Prints the search results of PyTorch and of the file, and their difference."""
    import torch
    from detectron2.evaluation import inference_on_dataset
    from detectron2.structures import Boxes, Instances

    from person_search.engine import PersonSearchTrainer
    from person_search.search.onnx_model import OnnxModel

    exported = OnnxModel(path)

    def predict(batched_inputs: list[dict]) -> list[dict]:
        outputs = []
        for x in batched_inputs:
            image = x["image"].numpy()
            boxes, scores, feats = map(torch.from_numpy, exported.detect_in(image, x["image_id"]))
            instances = Instances(
                image.shape[1:],
                pred_boxes=Boxes(boxes.float()),
                scores=scores,
                pred_classes=torch.zeros(len(scores), dtype=torch.int64),
                reid_feats=feats,
            )
            factors = x["width"] / image.shape[2], x["height"] / image.shape[1]
            instances.pred_boxes.scale(*factors)
            output = {"instances": Instances((x["height"], x["width"]), **instances.get_fields())}
            if "queries" in x:
                given = x["queries"].pred_boxes.tensor.numpy()
                output["query_feats"] = torch.from_numpy(
                    exported.embed_in(image, given, x["image_id"])
                )
            outputs.append(output)
        return outputs

    trainer, results = PersonSearchTrainer, []
    for name in cfg.DATASETS.TEST:
        for label, predictor in (("PyTorch", model), ("ONNX", predict)):
            loader = trainer.build_test_loader(cfg, name)
            scored = inference_on_dataset(predictor, loader, trainer.build_evaluator(cfg, name))
            results.append(scored["search"]["mAP"])
            print(f"{name}, {label}: mAP {results[-1]:.2f}, top-1 {scored['search']['top1']:.2f}")
        print(f"{name}: the file costs {results[-2] - results[-1]:.2f} points of mAP")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(export, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
