"""Looking into a model without running it: shapes station by station, and where its parameters and operations are.

A model on PyTorch's `meta` device has shapes but no numbers, so that a ViT-B/16 is made and walked through in a moment and
without memory.
"""

from __future__ import annotations

import re

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffclip.model import CLIP, ModelConfig, get_size


def skeleton(variant: str, size: str | ModelConfig = "vit_b_16") -> CLIP:
    """The model of that variant and size without memory: shapes only, nothing to compute with."""
    with torch.device("meta"):
        return CLIP(variant, get_size(size))


def inputs(config: ModelConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, tokens) on the meta device, as the towers of `config` take them."""
    images = torch.empty(batch, 3, config.vision.image_size, config.vision.image_size, device="meta")
    return images, torch.empty(batch, config.text.context_length, dtype=torch.int64, device="meta")


def shapes(variant: str, size: str | ModelConfig, tower: str, batch: int = 2) -> pd.DataFrame:
    """What each station of a tower gives, in the order of the forward pass: columns station, output, parameters.

    The first block is shown in detail, each later one as a whole.
    """
    model = skeleton(variant, size)
    root = model.vision if tower == "vision" else model.text
    rows: list[tuple[str, list[int], int]] = []

    def watch(name: str, module: nn.Module, parameters: int) -> None:
        module.register_forward_hook(lambda _m, _i, out: rows.append((name, list(out.shape), parameters)))

    for name, module in root.named_modules():
        station = name.removeprefix("trunk.")
        parameters = sum(p.numel() for p in module.parameters())
        block = re.match(r"blocks\.(\d+)(\.|$)", station)
        if (
            station == "pos_drop"
        ):  # without numbers of its own, but what comes out of it has its class token and positions
            watch("class token, positions", module, root.trunk.cls_token.numel() + root.trunk.pos_embed.numel())
        elif station == "patch_embed" or block and not block[2] and int(block[1]) < 2:
            later = block and block[1] == "1" and len(model.attention_layers(tower)) > 2
            watch(
                f"each later block, to {len(model.attention_layers(tower)) - 1}" if later else station,
                module,
                parameters,
            )
        elif (
            not list(module.children())
            and parameters
            and (not block or block[1] == "0")
            and "patch_embed" not in station
        ):
            watch(station, module, parameters)
    images, tokens = inputs(model.config, batch)
    output = root(images if tower == "vision" else tokens)
    rows.append(("projection", list(output.shape), root.projection.numel()))
    return pd.DataFrame(rows, columns=["station", "output", "parameters"])


def parts(model: CLIP) -> dict[str, int]:
    """Parameters by what they do, tower by tower; the sum is the whole model."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        tower = name.split(".")[0]
        if name == "logit_scale":
            part = "logit scale"
        elif "lambda_" in name or "diff_norm" in name:
            part = f"{tower}: differential extras"
        elif ".attn." in name:
            part = f"{tower}: attention"
        elif ".mlp." in name:
            part = f"{tower}: MLP"
        elif "norm" in name:
            part = f"{tower}: layer norms"
        elif name.endswith(".projection"):
            part = f"{tower}: projection"
        else:
            part = f"{tower}: embeddings"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def extras(model: CLIP) -> pd.DataFrame:
    """The parameters that differential attention adds: columns tower, parameter, shape, layers, numbers (all layers)."""
    rows: dict[tuple[str, str, int], int] = {}
    for name, parameter in model.named_parameters():
        if "lambda_" in name or "diff_norm" in name:
            key = (name.split(".")[0], name.split(".attn.")[1], parameter.numel())
            rows[key] = rows.get(key, 0) + 1
    return pd.DataFrame(
        [(tower, what, [width], layers, layers * width) for (tower, what, width), layers in rows.items()],
        columns=["tower", "parameter", "shape", "layers", "numbers"],
    )


def counted_flops(variant: str, size: str | ModelConfig, implementation: str = "maps") -> dict[str, int]:
    """Floating-point operations of one image and one caption, forward, by torch's own counter: {"vision", "text"}.

    Matrix products and convolutions only, a multiplication and an addition as two operations.
    """
    model = skeleton(variant, size)
    model.set_attention_implementation(implementation)
    images, tokens = inputs(model.config, 1)
    found = {}
    for tower, module, given in (("vision", model.vision, images), ("text", model.text, tokens)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(given)
        found[tower] = counter.get_total_flops()
    return found
