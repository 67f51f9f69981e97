# SPDX-License-Identifier: Apache-2.0
"""Loads the parts of a Stable Diffusion model from a folder or the hub, with clear refusals."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from torch import nn

_KEY = "MODEL.DIFFPS.BACKBONE"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class UNetShape:
    """What makes two UNets interchangeable for the modules behind them."""

    channels: tuple[int, ...]
    """Per resolution, the highest first."""
    heads: tuple[int, ...]
    """Attention heads per resolution."""
    text_width: int
    """Of the condition."""

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> "UNetShape":
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
    """A model is neither a folder here nor to be had from the hub."""


class _ModelClass(Protocol):
    """A class of models of diffusers or transformers."""

    __module__: str

    def from_pretrained(self, model: str, /, **options: Any) -> Any:
        """With ``output_loading_info``: the model, and what its files lacked."""


@dataclass(frozen=True)
class DiffusionFolder:
    """A model in diffusers format, on disk or on the Hugging Face hub.

    Making one checks what can be checked without loading weights.

    Raises:
        FileNotFoundError: a folder that is no such model, or lacks a part.
    """

    model: str
    """Folder, or id on the hub."""
    revision: str = ""
    variant: str = ""
    local_files_only: bool = False
    needs_text: bool = True
    """Whether tokenizer and text encoder must be there."""

    def __post_init__(self) -> None:
        looks_like_path = self.model.startswith((".", "/", "~")) or self.model.count("/") != 1
        if not self.is_local:
            if not self.model or looks_like_path:
                raise FileNotFoundError(
                    f"{_KEY}.MODEL is {self.model!r}: there is no such folder, and it is not the "
                    "id of a model on the Hugging Face hub (owner/name) either."
                )
            return
        folder = Path(self.model)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{_KEY}.MODEL {self.model!r} is no model in diffusers format: it has no "
                f"model_index.json. It holds: {_listing(folder)}. Single-file checkpoints "
                "(.ckpt, .safetensors) must be converted with diffusers first; "
                "projects/DiffPS/tools/make_tiny_diffusion.py writes a tiny model."
            )
        text = ("text_encoder", "tokenizer") if self.needs_text else ()
        for part in ("unet", "vae", *text, "scheduler"):
            self._check_part(part)

    @property
    def is_local(self) -> bool:
        return os.path.isdir(self.model)

    def _check_part(self, part: str) -> None:
        if not (Path(self.model) / part).is_dir():
            raise FileNotFoundError(
                f"{_KEY}.MODEL {self.model!r} lacks the sub-folder {part!r}; it has: "
                f"{_listing(Path(self.model))}. The download may be incomplete, or the model is "
                "not one with a UNet, such as Stable Diffusion 3."
            )

    def has(self, part: str) -> bool:
        """Whether the model states a part, e.g. ``text_encoder_2``, in its index."""
        entry = self._index().get(part)
        return bool(entry and entry[0])  # [null, null] is how an index says that there is none

    def load_unet(self, dtype: torch.dtype, family: str) -> nn.Module:
        """Loads the UNet, frozen.

        Raises:
            ValueError: it is not of the family, or its weights do not fit its config.
        """
        from diffusers import UNet2DConditionModel

        with self._explained("unet"):
            config = UNet2DConditionModel.load_config(self.model, **self._where("unet"))
        check_family(UNetShape.of_config(config), family, self.model)
        return self._load(UNet2DConditionModel, "unet", dtype)

    def load_vae(self, dtype: torch.dtype) -> nn.Module:
        """Loads the VAE, frozen and without its decoder."""
        from diffusers import AutoencoderKL

        vae = self._load(AutoencoderKL, "vae", dtype)
        vae.decoder = vae.post_quant_conv = None
        return vae

    def load_text_encoder(self, second: bool = False) -> tuple[Any, nn.Module]:
        """Loads the first or the second tokenizer and text encoder (float32, frozen)."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        suffix = "_2" if second else ""
        name = "tokenizer" + suffix
        if self.is_local:
            self._check_part(name)
        with self._explained(name):
            tokenizer = CLIPTokenizer.from_pretrained(self.model, **self._where(name))
        model_class = CLIPTextModelWithProjection if second else CLIPTextModel
        return tokenizer, self._load(model_class, "text_encoder" + suffix, torch.float32)

    def load_alphas_cumprod(self) -> torch.Tensor:
        """Returns the (1000,) share of signal power at each timestep, from the scheduler's file."""
        from diffusers import DDPMScheduler

        with self._explained("scheduler"):
            config = DDPMScheduler.load_config(self.model, **self._where("scheduler"))
            return DDPMScheduler.from_config(config).alphas_cumprod

    def _load(self, model_class: _ModelClass, part: str, dtype: torch.dtype) -> nn.Module:
        if self.is_local:
            self._check_part(part)
        options = self._where(part)
        if self.variant:
            options["variant"] = self.variant
        if model_class.__module__.startswith("diffusers"):
            from diffusers.utils import is_accelerate_available

            # asked for explicitly, or diffusers complains where accelerate is not installed
            options["low_cpu_mem_usage"] = is_accelerate_available()
        quiet = no_progress_bars() if self.is_local else nullcontext()
        with self._explained(part), quiet:
            model, info = model_class.from_pretrained(
                self.model, torch_dtype=dtype, output_loading_info=True, **options
            )
            if info["missing_keys"]:
                # the libraries would leave these at random values and only warn
                names = sorted(info["missing_keys"])
                raise ValueError(f"{len(names)} weights are not in the file, e.g. {names[0]}")
        return model.eval().requires_grad_(False)

    def _where(self, part: str) -> dict[str, Any]:
        options: dict[str, Any] = {"subfolder": part}
        if self.is_local or self.local_files_only:
            options["local_files_only"] = True
        if self.revision:
            options["revision"] = self.revision
        return options

    def _index(self) -> dict[str, Any]:
        from diffusers import DiffusionPipeline

        options = {key: value for key, value in self._where("").items() if key != "subfolder"}
        with self._explained("model_index.json"):
            return DiffusionPipeline.load_config(self.model, **options)

    @contextmanager
    def _explained(self, part: str) -> Iterator[None]:
        """Turns what the libraries raise into an error that names the model and the part."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as e:
            lines = str(e).strip().splitlines()
            reason = " ".join(lines[:4]) or type(e).__name__
            if self.is_local:
                raise ValueError(
                    f"{_KEY}.MODEL {self.model!r}: its part {part!r} cannot be loaded, files are "
                    f"damaged, missing or do not fit together: {reason} Download or convert this "
                    "part again."
                ) from e
            if _not_cached(e):  # the libraries speak of a file that the model does not have
                offline = "LOCAL_FILES_ONLY is True" if self.local_files_only else "no network"
                reason = f"it is not in the cache, and the hub cannot be asked ({offline})."
            raise ModelDownloadError(
                f"{_KEY}.MODEL {self.model!r} is no folder here, and {part!r} of it could not be "
                f"had from the hub: {reason} To work offline, download it elsewhere "
                f"(hf download) and give the folder as {_KEY}.MODEL."
            ) from e


def _not_cached(error: BaseException) -> bool:
    """Whether an error comes from a file that is not in the cache while the hub was not reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LocalEntryNotFoundError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def open_folder(config: CfgNode) -> DiffusionFolder:
    """The model that ``MODEL.DIFFPS.BACKBONE`` names."""
    return DiffusionFolder(
        config.MODEL,
        config.REVISION,
        config.VARIANT,
        config.LOCAL_FILES_ONLY,
        needs_text=not config.TEXT_EMBEDS_FILE,
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Bars for files that take seconds to read or write spoil logs; downloads keep theirs."""
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
            f"has {shape}. Set FAMILY to {same[0] if same else 'any'!r}, or give another MODEL."
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
