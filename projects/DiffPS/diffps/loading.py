# SPDX-License-Identifier: Apache-2.0
"""Loads the parts of a Stable Diffusion model from a folder or from the Hugging Face hub."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import load_file
from torch import nn

logger = logging.getLogger(__name__)

_KEY = "MODEL.DIFFPS.BACKBONE"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.([a-z]\w*))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class UNetShape:
    """Properties that make two UNets interchangeable for the modules behind them.

    Attributes:
        channels: Channels per resolution, the highest resolution first.
        heads: Attention heads per resolution.
        text_width: Width of the text condition.
    """

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    text_width: int

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> "UNetShape":
        """Returns the shape that a config of ``UNet2DConditionModel`` describes."""
        channels = tuple(config["block_out_channels"])
        # diffusers names the number of heads "attention_head_dim" for historical reasons
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        heads = (heads,) * len(channels) if isinstance(heads, int) else tuple(heads)
        return cls(channels, heads, config["cross_attention_dim"])


FAMILIES = {
    "sd15": UNetShape((320, 640, 1280, 1280), (8, 8, 8, 8), 768),
    "sd21": UNetShape((320, 640, 1280, 1280), (5, 10, 20, 20), 1024),
    "sdxl": UNetShape((320, 640, 1280), (5, 10, 20), 2048),
}


def parse_dtype(name: str) -> torch.dtype:
    """Returns the dtype that ``BACKBONE.DTYPE`` names."""
    if name not in DTYPES:
        raise ValueError(f"{_KEY}.DTYPE is {name!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


class ModelDownloadError(OSError):
    """The model is neither a local folder nor available from the hub."""


@dataclass(frozen=True)
class DiffusionFolder:
    """A model in diffusers format, on disk or on the Hugging Face hub.

    The constructor checks what can be checked without loading weights.

    Attributes:
        model: Folder, or id on the hub.
        revision: Revision on the hub; empty for the default.
        variant: Variant of the weight files, for example ``fp16``; empty for the default. In a
            folder that has one variant only, that one is loaded.
        local_files_only: Whether the hub must not be contacted.
        needs_text: Whether the tokenizer and the text encoder are required.

    Raises:
        FileNotFoundError: If the folder does not exist, is not such a model, or lacks a part.
    """

    model: str
    revision: str = ""
    variant: str = ""
    local_files_only: bool = False
    needs_text: bool = True

    def __post_init__(self) -> None:
        if not self.is_local:
            _check_hub_id(self.model)
            return
        folder = Path(self.model)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{_KEY}.MODEL {self.model!r} is not a model in diffusers format: it has no "
                f"model_index.json. It contains: {_listing(folder)}. {_CONVERT}"
            )
        text = ("text_encoder", "tokenizer") if self.needs_text else ()
        for part in ("unet", "vae", *text, "scheduler"):
            self._check_part(part)

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder on disk."""
        return os.path.isdir(self.model)

    def _check_part(self, part: str) -> None:
        if not (Path(self.model) / part).is_dir():
            raise FileNotFoundError(
                f"{_KEY}.MODEL {self.model!r} lacks the subfolder {part!r}; it contains: "
                f"{_listing(Path(self.model))}. The download may be incomplete, or the model may "
                "not have a UNet (Stable Diffusion 3, for example)."
            )

    def has(self, part: str) -> bool:
        """Returns whether the index of the model lists a part, for example ``text_encoder_2``."""
        from diffusers import DiffusionPipeline

        with self._explained("model_index.json"):
            index = DiffusionPipeline.load_config(self.model, **self._options())
        entry = index.get(part)
        return bool(entry and entry[0])  # an index marks an absent part by [null, null]

    def load_unet(self, dtype: torch.dtype, family: str) -> nn.Module:
        """Loads the UNet, frozen, if it is of the family (a key of :data:`FAMILIES`, or ``any``).

        Raises:
            ValueError: If the UNet is of another family, or its weights do not fit its config.
        """
        from diffusers import UNet2DConditionModel

        with self._explained("unet"):
            config = UNet2DConditionModel.load_config(self.model, **self._options("unet"))
        check_family(UNetShape.of_config(config), family, self.model)
        return self._load(UNet2DConditionModel, "unet", dtype)

    def load_vae(self, dtype: torch.dtype) -> nn.Module:
        """Loads the VAE, frozen and without its decoder."""
        from diffusers import AutoencoderKL

        vae = self._load(AutoencoderKL, "vae", dtype)
        vae.decoder = vae.post_quant_conv = None
        return vae

    def load_text_encoder(self, second: bool = False) -> tuple[Any, nn.Module]:
        """Loads the first or second tokenizer and text encoder (float32, frozen)."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        suffix = "_2" if second else ""
        name = "tokenizer" + suffix
        if self.is_local:
            self._check_part(name)
        with self._explained(name):
            tokenizer = CLIPTokenizer.from_pretrained(self.model, **self._options(name))
        model_class = CLIPTextModelWithProjection if second else CLIPTextModel
        return tokenizer, self._load(model_class, "text_encoder" + suffix, torch.float32)

    def load_alphas_cumprod(self) -> torch.Tensor:
        """Returns the share of signal power at each timestep, (1000,), from the scheduler."""
        from diffusers import DDPMScheduler

        with self._explained("scheduler"):
            config = DDPMScheduler.load_config(self.model, **self._options("scheduler"))
            return DDPMScheduler.from_config(config).alphas_cumprod

    def _load(self, model_class: Any, part: str, dtype: torch.dtype) -> nn.Module:
        options, variant = self._options(part), self.variant
        if self.is_local:
            self._check_part(part)
            variant = self._local_variant(part)
        if variant:
            options["variant"] = variant
        if model_class.__module__.startswith("diffusers"):
            from diffusers.utils import is_accelerate_available

            # explicit, because diffusers warns where accelerate is not installed
            options["low_cpu_mem_usage"] = is_accelerate_available()
            options["torch_dtype"] = dtype  # transformers has another name for it in each version
        quiet = no_progress_bars() if self.is_local else nullcontext()
        with self._explained(part), quiet:
            model, info = model_class.from_pretrained(
                self.model, output_loading_info=True, **options
            )
            missing = sorted(info["missing_keys"])
            if missing and self.is_local and part.startswith("text_encoder"):
                missing = _load_unprefixed(model, Path(self.model, part))
            if missing:
                # the libraries only warn and leave these at random values
                raise ValueError(f"{len(missing)} weights are not in the file, e.g. {missing[0]}")
        if "torch_dtype" not in options:
            model = model.to(dtype)
        return model.eval().requires_grad_(False)

    def _local_variant(self, part: str) -> str:
        """Returns the variant to load of a part: the configured one, or the only one on disk."""
        names = os.listdir(Path(self.model, part))
        found = {match[1] or "" for match in map(_WEIGHTS.fullmatch, names) if match}
        if self.variant in found or not found:
            return self.variant
        variants = sorted(found - {""})
        if self.variant or len(variants) > 1:
            has = "no default weight files" if not self.variant else f"no variant {self.variant!r}"
            names = ["'' (the default)"] * ("" in found) + list(map(repr, variants))
            raise FileNotFoundError(
                f"{_KEY}.MODEL {self.model!r}: its part {part!r} has {has}. Set {_KEY}.VARIANT to "
                f"{' or '.join(names)}."
            )
        logger.info(f"{self.model}: loading {part} from its only variant, {variants[0]!r}")
        return variants[0]

    def _options(self, part: str = "") -> dict[str, Any]:
        """Returns arguments of ``from_pretrained`` and ``load_config``."""
        options: dict[str, Any] = {"subfolder": part} if part else {}
        if self.is_local or self.local_files_only:
            options["local_files_only"] = True
        if self.revision:
            options["revision"] = self.revision
        return options

    @contextmanager
    def _explained(self, part: str) -> Iterator[None]:
        """Turns the errors of the libraries into one that names the model and the part."""
        from huggingface_hub import constants

        try:
            yield
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as e:
            reason = " ".join(str(e).strip().splitlines()[:4]) or type(e).__name__
            if self.is_local:
                raise ValueError(
                    f"{_KEY}.MODEL {self.model!r}: its part {part!r} cannot be loaded; files are "
                    f"damaged, missing or do not fit together: {reason} Download or convert this "
                    "part again."
                ) from e
            if _is_not_cached(e):  # the libraries report a file that the model does not have
                offline = "there is no network"
                if self.local_files_only:
                    offline = f"{_KEY}.LOCAL_FILES_ONLY is True"
                elif constants.HF_HUB_OFFLINE:
                    offline = "the environment variable HF_HUB_OFFLINE is set"
                reason = f"it is not in the cache, and {offline}."
            raise ModelDownloadError(
                f"{_KEY}.MODEL {self.model!r} is not a folder ({_relative_to()}), and its part "
                f"{part!r} is not available from the hub: {reason} If the repository has only a "
                f"variant such as fp16, set {_KEY}.VARIANT. To work offline, download the model "
                f"elsewhere (hf download) and set {_KEY}.MODEL to its folder."
            ) from e


_CONVERT = (
    "A single-file checkpoint (.safetensors, .ckpt) must be converted to a folder first, once and "
    'with network access: python -c "from diffusers import StableDiffusionPipeline as P; '
    "P.from_single_file('FILE').save_pretrained('FOLDER')\". "
    "projects/DiffPS/tools/make_tiny_diffusion.py writes a tiny model."
)


def _check_hub_id(model: str) -> None:
    """Raises FileNotFoundError if the name of a model cannot be an id on the hub."""
    if os.path.isfile(model):
        raise FileNotFoundError(f"{_KEY}.MODEL {model!r} is a file. {_CONVERT}")
    suffix = Path(model).suffix.lower()
    if not _HUB_ID.fullmatch(model) or suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        raise FileNotFoundError(
            f"{_KEY}.MODEL is {model!r}: there is no such file or folder ({_relative_to()}), and "
            "it is not the id of a model on the Hugging Face hub (owner/name)."
        )


def _relative_to() -> str:
    return f"relative paths start at the current directory, {os.getcwd()}"


def _load_unprefixed(model: nn.Module, folder: Path) -> list[str]:
    """Loads a text encoder that transformers 5 saved into the model of an older version.

    Version 5 leaves out the prefix ``text_model.`` of the names.

    Returns:
        The names of the weights that are still missing.
    """
    file = folder / "model.safetensors"
    wanted = model.state_dict()
    saved = load_file(file) if file.is_file() else {}
    saved = {name if name in wanted else f"text_model.{name}": x for name, x in saved.items()}
    return sorted(model.load_state_dict(saved, strict=False).missing_keys)


def _is_not_cached(error: BaseException) -> bool:
    """Returns whether a file is missing in the cache and the hub was not reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LocalEntryNotFoundError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def open_folder(config: CfgNode) -> DiffusionFolder:
    """Returns the model that ``MODEL.DIFFPS.BACKBONE`` names."""
    return DiffusionFolder(
        os.path.expanduser(config.MODEL),
        config.REVISION,
        config.VARIANT,
        config.LOCAL_FILES_ONLY,
        needs_text=not config.TEXT_EMBEDS_FILE,
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hides the bars for local files, which clutter logs; downloads keep theirs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()


def check_family(shape: UNetShape, family: str, model: str) -> None:
    """Raises ValueError unless a UNet has the shape of the family; ``any`` allows every shape."""
    if family == "any":
        return
    if family not in FAMILIES:
        raise ValueError(f"{_KEY}.FAMILY is {family!r}; allowed: {', '.join(FAMILIES)}, any")
    if shape != FAMILIES[family]:
        same = [name for name, known in FAMILIES.items() if known == shape]
        raise ValueError(
            f"{_KEY}.FAMILY is {family!r}, that is {FAMILIES[family]}, but the UNet of {model!r} "
            f"has {shape}. Set FAMILY to {same[0] if same else 'any'!r}, or set another MODEL."
        )


def check_parts(unet: nn.Module, vae: nn.Module, text_width: int, model: str) -> None:
    """Raises ValueError unless the parts of a model belong together."""
    if unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(
            f"{_KEY}.MODEL {model!r}: its UNet takes {unet.config.in_channels} channels, its VAE "
            f"gives {vae.config.latent_channels}. Inpainting and depth models cannot be used."
        )
    if unet.config.cross_attention_dim != text_width:
        raise ValueError(
            f"{_KEY}.MODEL {model!r}: its UNet takes text of width "
            f"{unet.config.cross_attention_dim}, its text encoder gives {text_width}."
        )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing"
