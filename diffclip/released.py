"""The authors' checkpoints: where they are, how to open them safely, and their key names in both directions."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from diffclip.files import write_tensors
from diffclip.model import CLIP, SIZES, ModelConfig, create_model, get_size, load_exactly
from diffclip.towers import TextConfig, VisionConfig

RELEASED = {
    "diffclip-cc3m": "hammh0a/DiffCLIP_ViTB16_CC3M",
    "diffclip-cc12m": "hammh0a/DiffCLIP_ViTB16_CC12M",
}
"""Short name -> hub repository. The baselines' names are not certain: pass a repository or a path instead of a name, or set
DIFFCLIP_RELEASED_<NAME> (DIFFCLIP_RELEASED_CLIP_CC3M=owner/name, say)."""
RELEASED_FILE = "checkpoint_best.pt"

# A stretch of a key in our model -> the same stretch in a released state dict, one pattern a line, first match wins.
_TO_RELEASED = (
    (r"^vision\.trunk\.", "visual."),
    (r"^vision\.projection$", "image_projection"),
    (r"^text\.projection$", "text_projection"),
    (r"^text\.norm\.", "ln_final."),
    (r"^text\.blocks\.(\d+)\.norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^text\.blocks\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^text\.blocks\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^text\.blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"^text\.blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^text\.blocks\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"^text\.", ""),
)


def to_released_key(key: str) -> str:
    """The released name of one of our parameters."""
    for pattern, replacement in _TO_RELEASED:
        name, hits = re.subn(pattern, replacement, key)
        if hits:
            return name
    return key


def DiffCLIP_VITB16() -> CLIP:
    """DiffCLIP with a ViT-B/16, fresh weights: the constructor of the published code."""
    return create_model("diffclip", "vit_b_16")


def CLIP_VITB16() -> CLIP:
    """The baseline that the published code leaves out: CLIP with a ViT-B/16, fresh weights."""
    return create_model("clip", "vit_b_16")


def load_released(
    source: str | Path,
    *,
    size: str | ModelConfig | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> CLIP:
    """A model from a checkpoint with the released key names, in evaluation mode.

    source: a path (.pt as released, or .safetensors), a name in RELEASED, or a hub repository "owner/name". The variant is
    read off the weights; only DiffCLIP* cannot be told from DiffCLIP that way (lambda_init is not a weight), so pass
    variant="diffclip_dynamic" for it, unless the file says so itself. size: needed only where shapes leave it open, which
    is when ordinary attention has heads that are not 64 wide.
    Raises FileNotFoundError, or ValueError for a pickle with foreign types or a state dict that does not fit, naming them.
    """
    path = locate(source, revision=revision)
    state, notes = read_released(path)
    found = _variant_of(state, str(path))
    variant = variant or notes.get("variant") or found
    if found != ("diffclip" if variant == "diffclip_dynamic" else variant):
        raise ValueError(f"{path} holds the weights of a {found!r}, but {variant!r} was asked for.")
    if size is None and "config" in notes:
        config = ModelConfig.from_dict(notes["config"])
    else:
        config = get_size(size) if size is not None else _config_of(state, str(path))
    with torch.device("meta"):
        names = {to_released_key(k): k for k in CLIP(variant, config).state_dict()}
    model = CLIP(variant, config)
    load_exactly(model, {names.get(k, k): v for k, v in state.items()}, str(path))
    return model.eval()


def save_released(model: CLIP, path: str | Path) -> Path:
    """Write a model's weights under the released key names, as a safetensors file; `load_released` reads it bit-equal."""
    state = {to_released_key(k): v for k, v in model.state_dict().items()}
    notes = {"variant": model.variant, "config": model.config.to_dict()}
    return write_tensors(path, state, {"released": json.dumps(notes)})


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """The local file of a released checkpoint, fetched from the hub if need be."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in (RELEASED_FILE, "model.safetensors"):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"The folder {path} holds neither {RELEASED_FILE} nor model.safetensors.")
    name = str(source)
    repository = os.environ.get("DIFFCLIP_RELEASED_" + name.upper().replace("-", "_")) or RELEASED.get(name, name)
    if Path(repository).exists():
        return locate(repository)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or Path(name).suffix in (".pt", ".pth", ".safetensors"):
        raise FileNotFoundError(
            f"There is no checkpoint at {name!r}, and it is not the name of a released one ({', '.join(RELEASED)}) or of a "
            f"hub repository (owner/name)."
        )
    from diffclip import hub

    return hub.fetch(repository, RELEASED_FILE, revision=revision)


def read_released(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """(state dict with `module.` taken off its keys, what the file says of itself), from a .pt or .safetensors file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            state = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}). Fetch it again.") from None
        notes = json.loads(metadata.get("released", "{}"))
    else:
        content = _read_pickle(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint (a dict with 'state_dict').")
        state = content.get("state_dict", content)
        notes = {}
    strangers = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if strangers:
        raise ValueError(
            f"{path} is not a checkpoint as released: expected a dict with a 'state_dict' of tensors, but these entries are "
            f"none: {', '.join(strangers[:5])}."
        )
    return {k.removeprefix("module."): v for k, v in state.items()}, notes


def _allowed_globals() -> list:
    """Exactly what the released files hold besides tensors (FACTS, 'Released checkpoints')."""
    import _codecs

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # numpy's own scalar constructor, wherever this NumPy keeps it
    return [
        argparse.Namespace,
        # A PosixPath pickles its class and its parts; on Windows it would not unpickle, and the weights do not need it.
        pathlib.PosixPath,
        (pathlib.PosixPath, "pathlib._local.PosixPath"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype("float64")),
        type(np.dtype("float32")),
        type(np.dtype("int64")),
        _codecs.encode,
    ]


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global|class)\s+`?([\w.]+)`?\s+was not an allowed", str(error)) or re.search(
            r"Unsupported (?:global|class|operand)[:\s]+(?:GLOBAL )?`?([\w.]+)", str(error)
        )
        if refused:
            raise ValueError(
                f"{path} was not opened: besides weights it holds an object of type {refused.group(1)}, and unpickling "
                f"that could run code. Released checkpoints hold tensors, a Namespace, a PosixPath and NumPy scalars only. If "
                f"you trust the file, have its owner save the weights as safetensors."
            ) from None
        raise ValueError(f"{path} could not be read as a checkpoint: {str(error).splitlines()[0]}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint at {path}.") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a PyTorch checkpoint ({str(error).splitlines()[0]}). Fetch it again."
        ) from None


def _variant_of(state: dict[str, Tensor], source: str) -> str:
    vision = any(k.startswith("visual.") and k.endswith("lambda_q1") for k in state)
    text = any(k.startswith("transformer.") and k.endswith("lambda_q1") for k in state)
    if text and not vision:
        raise ValueError(
            f"{source} has differential attention in the text tower alone; no variant of the paper has that."
        )
    if not any(k.startswith("visual.") for k in state):
        raise ValueError(
            f"{source} is not a CLIP with the released key names: no key starts with 'visual.'. For a model that this kit "
            f"saved use diffclip.create_model(checkpoint=...)."
        )
    return {(True, True): "diffclip", (True, False): "diffclip_vision", (False, False): "clip"}[vision, text]


def _config_of(state: dict[str, Tensor], source: str) -> ModelConfig:
    """Read the size off the shapes; heads come from the lambda vectors, else they are taken to be 64 wide."""
    try:
        patches = state["visual.patch_embed.proj.weight"]  # [width, 3, p, p]
        tokens = state["visual.pos_embed"].shape[1]
        length, text_width = state["positional_embedding"].shape
        vocabulary = state["token_embedding.weight"].shape[0]
        embed_dim = state["image_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"The weights in {source} do not fit the model. 1 missing: {error.args[0]}.") from None
    width, patch = patches.shape[0], patches.shape[-1]
    grid = round((tokens - 1) ** 0.5)

    def depth(prefix: str) -> int:
        return 1 + max((int(m.group(1)) for k in state if (m := re.match(prefix + r"\.(\d+)\.", k))), default=-1)

    def heads(key: str, of_width: int, tower: str) -> int:
        if key in state:
            return of_width // state[key].shape[0]
        if of_width % 64:
            raise ValueError(
                f"{source}: the number of attention heads of the {tower} tower cannot be read off its weights. Pass "
                f"size=ModelConfig(...)."
            )
        return of_width // 64

    vision = VisionConfig(
        grid * patch, patch, width, depth(r"visual\.blocks"), heads("visual.blocks.0.attn.lambda_q1", width, "vision")
    )
    text = TextConfig(
        text_width,
        depth(r"transformer\.resblocks"),
        heads("transformer.resblocks.0.attn.lambda_q1", text_width, "text"),
        length,
        vocabulary,
    )
    config = ModelConfig("released", embed_dim, vision, text)
    return next((known for known in SIZES.values() if dataclasses.replace(config, name=known.name) == known), config)
