"""CLIP over two towers, its four variants, and the contrastive loss."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.attention import constant_lambda_init, dynamic_lambda_init
from diffclip.files import write_tensors
from diffclip.towers import TextConfig, TextTower, VisionConfig, VisionTower

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Variant:
    """Which tower has differential attention, and with which lambda_init (layer -> number); None is ordinary attention."""

    name: str
    label: str  # as the paper writes it
    vision: Callable[[int], float] | None
    text: Callable[[int], float] | None


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("clip", "CLIP", None, None),
        Variant("diffclip", "DiffCLIP", constant_lambda_init, constant_lambda_init),
        Variant("diffclip_dynamic", "DiffCLIP*", dynamic_lambda_init, dynamic_lambda_init),
        Variant("diffclip_vision", "DiffCLIP†", constant_lambda_init, None),
    )
}


def get_variant(name: str) -> Variant:
    """The variant of that name; ValueError names the four there are."""
    if name not in VARIANTS:
        raise ValueError(f"Unknown variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


@dataclass(frozen=True)
class ModelConfig:
    """A size: two towers and the width of their joint space."""

    name: str = "vit_b_16"
    embed_dim: int = 512
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        values = dict(values)
        return cls(vision=VisionConfig(**values.pop("vision")), text=TextConfig(**values.pop("text")), **values)


SIZES: dict[str, ModelConfig] = {
    size.name: size
    for size in (
        ModelConfig(),
        ModelConfig(
            "vit_s_16",
            384,
            VisionConfig(width=384, depth=12, heads=6, layer_norm_eps=1e-5, init="torch"),
            TextConfig(width=384, depth=12, heads=6),
        ),
        # The small sizes give both kinds of attention the same eps and initialisation, so that a comparison between
        # variants is one of attention alone. (At width 64 timm's truncated normal (0.02) is much smaller than nn.Linear's
        # own, and slows a baseline down; vit_b_16 keeps what the released models have.)
        ModelConfig(
            "mini",
            64,
            VisionConfig(48, patch_size=8, width=64, depth=3, heads=4, layer_norm_eps=1e-5, init="torch"),
            TextConfig(width=64, depth=2, heads=4, context_length=32),
        ),
        ModelConfig(
            "smoke",
            16,
            VisionConfig(32, patch_size=8, width=32, depth=2, heads=4, layer_norm_eps=1e-5, init="torch"),
            TextConfig(width=16, depth=2, heads=2, context_length=24),
        ),
    )
}


def get_size(size: str | ModelConfig) -> ModelConfig:
    """A size by name, or the one given."""
    if isinstance(size, ModelConfig):
        return size
    if size not in SIZES:
        raise ValueError(f"Unknown model size {size!r}; choose one of {', '.join(SIZES)}, or pass a ModelConfig.")
    return SIZES[size]


class CLIP(nn.Module):
    """Two towers into one space. Make one with `create_model`.

    encode_image(images), encode_text(tokens) and forward(images, tokens) give embeddings that are not normalised.
    """

    def __init__(self, variant: str, config: ModelConfig) -> None:
        super().__init__()
        chosen = get_variant(variant)
        self.variant = variant
        self.config = config
        self.vision = VisionTower(config.vision, config.embed_dim, chosen.vision)
        self.text = TextTower(config.text, config.embed_dim, chosen.text)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> [B, embed_dim]."""
        return self.vision(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [B, context_length] -> [B, embed_dim]."""
        return self.text(tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """-> {"image_embed" [B, D], "text_embed" [B, D], "logit_scale" []}; the scale is the factor itself, not its logarithm."""
        return {
            "image_embed": self.encode_image(images),
            "text_embed": self.encode_text(tokens),
            "logit_scale": self.logit_scale.exp(),
        }

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the logit scale in [1, 100], after each optimiser step (FACTS: joint space)."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def attention_layers(self, tower: str) -> list[nn.Module]:
        """The attention modules of the "vision" or "text" tower, first layer first."""
        if tower not in ("vision", "text"):
            raise ValueError(f"The towers are 'vision' and 'text'; got {tower!r}.")
        return [block.attn for block in (self.vision.trunk.blocks if tower == "vision" else self.text.blocks)]

    @torch.no_grad()
    def lambdas(self) -> dict[str, float]:
        """lambda of every differential layer, as {"vision.0": ..., "text.0": ...}; empty for CLIP."""
        return {
            f"{tower}.{i}": float(attn.effective_lambda())
            for tower in ("vision", "text")
            for i, attn in enumerate(self.attention_layers(tower))
            if attn.differential
        }

    def gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        self.vision.trunk.set_grad_checkpointing(enable)
        self.text.checkpointing = enable

    def set_attention_implementation(self, implementation: str) -> None:
        """Choose "auto", "fused" or "maps" in all layers (see attention.py); equal in value, for tests and benchmarks."""
        for tower in ("vision", "text"):
            for attn in self.attention_layers(tower):
                attn.implementation = implementation


def create_model(
    variant: str | None = None,
    size: str | ModelConfig = "vit_b_16",
    *,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
) -> CLIP:
    """A model with fresh weights, or one that this kit saved.

    variant: "clip", "diffclip", "diffclip_dynamic" or "diffclip_vision". size: a name in SIZES or a ModelConfig. seed: makes
    the fresh weights repeatable without touching torch's global generator. checkpoint: a `model.safetensors` or the
    folder that holds it; it knows its own variant and size, and if `variant` is given too it must be that one.
    Raises ValueError for an unknown variant or size, heads that do not divide a width, an odd number of differential
    heads, or a checkpoint of another variant.
    """
    if checkpoint is not None:
        model = load_model(checkpoint)
        if variant is not None and variant != model.variant:
            raise ValueError(f"{checkpoint} holds a {model.variant!r}, but {variant!r} was asked for.")
        return model
    if variant is None:
        raise ValueError(f"Say which variant to create ({', '.join(VARIANTS)}), or give a checkpoint.")
    config = get_size(size)
    if seed is None:
        return CLIP(variant, config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return CLIP(variant, config)


def empty_model(variant: str, config: ModelConfig) -> CLIP:
    """A model whose weights are yet to be loaded, whatever lies in memory: quick, and no random number is drawn."""
    with torch.device("meta"):
        model = CLIP(variant, config)
    return model.to_empty(device="cpu")


def contrastive_loss(image_embed: Tensor, text_embed: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy over one batch of pairs, and the share of images that find their caption.

    image_embed, text_embed: [B, D], normalised here; row i of one belongs to row i of the other. logit_scale: the factor.
    Returns (loss in nats, accuracy in [0, 1] without gradient).
    """
    image_embed, text_embed = F.normalize(image_embed, dim=-1), F.normalize(text_embed, dim=-1)
    logits = logit_scale * image_embed @ text_embed.T  # [B, B]
    labels = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
    return loss, accuracy


# Saved models: one safetensors file whose header says what it is, so that it can be loaded from the file alone.

_HEADER = "diffclip"
WEIGHTS_NAME = "model.safetensors"


def save_model(model: CLIP, path: str | Path, extra: dict | None = None) -> Path:
    """Write weights, variant and configuration to `path` (a .safetensors file, or a folder for model.safetensors in it).

    extra: anything JSON, kept in the header. The file appears whole or not at all.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / WEIGHTS_NAME
    header = {"variant": model.variant, "config": model.config.to_dict(), "extra": extra or {}}
    return write_tensors(path, model.state_dict(), {_HEADER: json.dumps(header)})


def read_header(path: str | Path) -> dict:
    """{"variant", "config", "extra"} of a file that `save_model` wrote."""
    path = Path(path)
    path = path / WEIGHTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Train one with `diffclip train`, or check the path."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It may have been cut short in a copy or download; fetch "
            f"or train it again."
        ) from None
    if _HEADER not in metadata:
        raise ValueError(
            f"{path} does not say which variant and size it holds, so it was not saved by this kit. For a file with the "
            f"released key names use diffclip.load_released(path)."
        )
    return json.loads(metadata[_HEADER])


def load_model(path: str | Path) -> CLIP:
    """The model that `save_model` wrote, in evaluation mode. Raises FileNotFoundError or ValueError with what is wrong."""
    header = read_header(path)
    path = Path(path)
    path = path / WEIGHTS_NAME if path.is_dir() else path
    model = empty_model(header["variant"], ModelConfig.from_dict(header["config"]))
    load_exactly(model, safetensors.torch.load_file(path), str(path))
    return model.eval()


def load_exactly(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit key for key and shape for shape; ValueError names what does not."""
    expected = model.state_dict()
    problems = []
    for title, keys in (
        ("missing", sorted(expected.keys() - state.keys())),
        ("not known to this model", sorted(state.keys() - expected.keys())),
    ):
        if keys:
            problems.append(f"{len(keys)} {title}: {_some(keys)}")
    misshapen = [
        f"{k} {list(state[k].shape)} instead of {list(expected[k].shape)}"
        for k in expected.keys() & state.keys()
        if state[k].shape != expected[k].shape
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} of another shape: {_some(sorted(misshapen))}")
    if problems:
        raise ValueError(f"The weights in {source} do not fit the model. {'; '.join(problems)}.")
    model.load_state_dict(state)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
