# SPDX-License-Identifier: Apache-2.0
"""``person-search export``: a trained model as an ONNX file, or as a program of torch.export.

    person-search export --config-file CONFIG --weights model_final.pth --output model.onnx
    person-search index --gallery galleries/street --source images/ \
        --config-file CONFIG --weights model.onnx

The suffix of the output selects the format: .onnx (docs/deployment.md; its metadata contain all
settings and the identity of the model) or .pt2.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from person_search.modeling.export import ExportedModel, Exports

if TYPE_CHECKING:
    from detectron2.config import CfgNode

DEFAULT_SIDE = 2048
"""Default of --max-side for models that do not resize images."""
MAX_BYTES = 2**31 - 2**20
"""Maximum size of the weights in an ONNX file, a message of protobuf; more go to another file."""


def run_export(args: argparse.Namespace) -> int:
    """Writes the file and prints its size."""
    import torch

    from person_search.config import build_config
    from person_search.search.embedder import PersonEmbedder
    from person_search.search.onnx_model import FORMAT_VERSION

    opts = [*args.opts, "MODEL.DEVICE", "cpu", "TEST.PRECISION", "eager"]
    cfg = build_config(args.config_file, opts)
    if args.output.suffix == ".onnx":
        require_onnx()
    embedder = PersonEmbedder.from_config(cfg, args.weights)
    model = embedder.model
    if not isinstance(model, Exports):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which cannot be exported."
        )
    divisor = model.backbone.size_divisibility
    rules = [a.describe() for a in embedder.augmentations.augs if hasattr(a, "describe")]
    resize = rules[0] if rules else None
    side = max(cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) or DEFAULT_SIDE
    if resize is not None:
        side = max(resize.get("size", [DEFAULT_SIDE]))
    side = -(-(args.max_side or side) // divisor) * divisor
    exported = model.export(side, args.heads_only)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.suffix == ".pt2":
        torch.export.save(exported.program, args.output)
    else:
        values = {
            "version": FORMAT_VERSION,
            "precision": "int8" if args.int8 else "float32",
            "image_format": cfg.INPUT.FORMAT,
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "resize": resize,
            "identity": embedder.identity.to_json(),
            "model_card": embedder.card.to_json() if embedder.card else None,
        }
        write_onnx(exported, args.output, values)
        if args.int8:
            quantize(args.output)
    size = sum(
        file.stat().st_size for file in (args.output, _weights_of(args.output)) if file.exists()
    )
    print(f"{args.output}: {size / 1e6:.1f} MB, sides up to {side} pixels")
    if args.heads_only:
        print(f"it takes {', '.join(exported.values['features'])} of the backbone, not an image")
    if args.evaluate:
        compare(cfg, model, args.output)
    return 0


def write_onnx(exported: ExportedModel, path: Path, values: dict[str, Any]) -> None:
    """Writes an exported model as an ONNX file.

    Weights of more than 2 GB are written to a second file, ``<name>.onnx.data``, that must stay
    beside the first.

    Args:
        exported: The model.
        path: File to write.
        values: Plain values for the metadata of the file, besides those of the model.
    """
    import torch

    onnx_program = torch.onnx.export(
        exported.program,
        dynamo=True,
        input_names=exported.input_names,
        output_names=exported.output_names,
        verbose=False,
    )
    entry = json.dumps({**values, **exported.values})
    onnx_program.model.metadata_props["person_search"] = entry
    size = sum(weight.nbytes for weight in exported.program.state_dict.values())
    _weights_of(path).unlink(missing_ok=True)  # of the file that is overwritten
    onnx_program.save(path, external_data=size > MAX_BYTES)


def _weights_of(path: Path) -> Path:
    """Returns the file that holds the weights of an ONNX file if they are too large for it."""
    return path.with_name(f"{path.name}.data")


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
