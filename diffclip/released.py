"""The authors' checkpoints: where they are, how to open them safely, and their key names in both directions."""

from __future__ import annotations

import _codecs
import argparse
import dataclasses
import json
import os
import pathlib
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from diffclip.files import write_tensors
from diffclip.model import CLIP, SIZES, ModelConfig, create_model, empty_model, get_size, get_variant, load_exactly
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
    variant = get_variant(variant or notes.get("variant") or found).name
    if found != ("diffclip" if variant == "diffclip_dynamic" else variant):
        raise ValueError(f"{path} holds the weights of a {found!r}, but {variant!r} was asked for.")
    if size is None and "config" in notes:
        config = ModelConfig.from_dict(notes["config"])
    else:
        config = get_size(size) if size is not None else _config_of(state, str(path))
    model = empty_model(variant, config)
    ours = {to_released_key(k): k for k in model.state_dict()}
    load_exactly(model, {ours.get(k, k): v for k, v in state.items()}, str(path))
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
        state = content.get("state_dict", content) if isinstance(content, dict) else content
        notes = {}
    if not isinstance(state, dict):
        raise ValueError(  # noqa: TRY004  (what is wrong is the file, not the argument)
            f"{path} holds a {type(state).__name__}; expected a dict with a 'state_dict' of tensors."
        )
    strangers = [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if strangers:
        raise ValueError(
            f"{path} is not a checkpoint as released: expected a dict with a 'state_dict' of named tensors, but these "
            f"entries are none: {', '.join(strangers[:5])}."
        )
    return {k.removeprefix("module."): v for k, v in state.items()}, notes


def _allowed_types() -> list:
    """What the released files hold besides tensors (FACTS, "Released checkpoints"), under every name it goes by.

    Python 3.13 keeps its paths in another module, and so does NumPy 2 its scalars. Paths come back without access to a
    file system: so they open on Windows as well, and nothing here uses them.
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        _codecs.encode,
        *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
        *((scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
        np.dtype,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},  # the types of NumPy's plain numbers
    ]


def _read_pickle(path: Path) -> object:
    """Open a pickle without running anything that it names; ValueError says what was in the way."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    with torch.serialization.safe_globals(_allowed_types()):
        try:
            # Mapped, what is not asked for is never read: a released file is two thirds optimiser state.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            foreign = _foreign_types(path, str(error))
            reason = f"it names {foreign}" if foreign else "it is not pickled as PyTorch does"
            raise ValueError(
                f"{path} was not opened: {reason}, and unpickling that could run code. Released checkpoints hold tensors, a "
                f"Namespace, paths and NumPy numbers only. If you trust the file, have its owner save the weights as "
                f"safetensors."
            ) from None
        except Exception as error:  # noqa: BLE001  (torch raises whatever it stumbles over in a file that is none of its own)
            raise ValueError(
                f"{path} is damaged or not a PyTorch checkpoint ({type(error).__name__}: {_first_sentence(error)}). "
                f"Fetch it again."
            ) from None


def _foreign_types(path: Path, refusal: str) -> str:
    """The types in a refused pickle that are not allowed; from torch's message where it cannot list them."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, pickle.UnpicklingError):  # a file in torch's old format, or of a newer pickle protocol
        names = re.findall(r"GLOBAL ([\w.]+)", refusal)
    return ", ".join(sorted(names))


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or "it ends too early"


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


_RANKS = {  # what the size is read off: key -> number of dimensions
    "visual.patch_embed.proj.weight": 4,  # [width, 3, patch, patch]
    "visual.pos_embed": 3,  # [1, tokens, width]
    "positional_embedding": 2,  # [context length, width]
    "token_embedding.weight": 2,  # [vocabulary, width]
    "image_projection": 2,  # [width, embed_dim]
}


def _config_of(state: dict[str, Tensor], source: str) -> ModelConfig:
    """Read the size off the shapes; heads come from the lambda vectors, else they are taken to be 64 wide."""
    problems = [f"{key} is missing" for key in _RANKS if key not in state]
    problems += [
        f"{k} has shape {list(state[k].shape)}" for k, n in _RANKS.items() if k in state and state[k].ndim != n
    ]
    if problems:
        raise ValueError(f"The weights in {source} do not fit the model: {', '.join(problems)}.")
    patches, positions, text_positions, vocabulary, projection = (state[key].shape for key in _RANKS)

    def depth(prefix: str) -> int:
        return 1 + max((int(m.group(1)) for k in state if (m := re.match(prefix + r"\.(\d+)\.", k))), default=-1)

    def heads(prefix: str, width: int) -> int:
        key = f"{prefix}.0.attn.lambda_q1"  # one vector entry per channel of a head
        head_width = state[key].numel() if key in state else 64
        if not head_width or width % head_width:
            raise ValueError(f"a width of {width} gives no number of heads; pass size=ModelConfig(...)")
        return width // head_width

    try:
        vision = VisionConfig(
            image_size=round((positions[1] - 1) ** 0.5) * patches[3],
            patch_size=patches[3],
            width=patches[0],
            depth=depth(r"visual\.blocks"),
            heads=heads("visual.blocks", patches[0]),
        )
        text = TextConfig(
            width=text_positions[1],
            depth=depth(r"transformer\.resblocks"),
            heads=heads("transformer.resblocks", text_positions[1]),
            context_length=text_positions[0],
            vocab_size=vocabulary[0],
        )
    except ValueError as error:
        raise ValueError(f"The size of the model in {source} cannot be read off its weights: {error}") from None
    config = ModelConfig("released", projection[1], vision, text)
    return next((known for known in SIZES.values() if dataclasses.replace(config, name=known.name) == known), config)
