"""Zero-shot classification of one picture, from any checkpoint: the demonstration that the authors published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn.functional import normalize

from diffclip import hub
from diffclip.images import eval_view
from diffclip.model import CLIP, WEIGHTS_NAME, create_model
from diffclip.released import RELEASED, RELEASED_FILE, load_released
from diffclip.tokenizer import tokenize


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> CLIP:
    """A model from anything that holds one, in evaluation mode.

    source: a run's folder or model.safetensors, a file with the released key names, a name in released.RELEASED, or a
    hub repository (owner/name, at `revision`) with either kind of file.
    Raises FileNotFoundError, ValueError or hub.HubError with what is wrong.
    """
    path = Path(source)
    if not path.exists() and str(source) not in RELEASED and hub.is_repo_id(str(source)):
        names = {file.path for file in hub.list_files(str(source), revision=revision)[1]}
        if WEIGHTS_NAME in names and RELEASED_FILE not in names:
            path = hub.fetch(str(source), WEIGHTS_NAME, revision=revision)
    if path.is_dir() and (path / WEIGHTS_NAME).is_file():
        path = path / WEIGHTS_NAME
    if path.suffix == ".safetensors" and path.is_file() and not _has_released_keys(path):
        return create_model(checkpoint=path).eval()
    return load_released(path if path.exists() else source, revision=revision)


def classify(
    image: str | Path | Image.Image,
    labels: Sequence[str],
    checkpoint: str | Path | CLIP,
    template: str = "a photo of a {}",
    *,
    top: int | None = 5,
    revision: str | None = None,
) -> list[tuple[str, float]]:
    """The likeliest labels of a picture with their probabilities, best first.

    Each label is put into the template; the probabilities are a softmax over all labels of the scaled cosine
    similarities. top: how many to return, None for all. checkpoint: a model, or what `open_checkpoint` takes.
    """
    labels = [label.strip() for label in labels]
    if not labels or not all(labels):
        raise ValueError("Classification needs labels to choose from, and none of them empty: dog, cat, elephant, say.")
    if len(set(labels)) != len(labels):
        raise ValueError(
            f"Each label once, please: {', '.join(sorted({x for x in labels if labels.count(x) > 1}))} came twice."
        )
    if "{}" not in template:
        raise ValueError(f"The template {template!r} has no place for the label: write {{}} where it belongs.")
    picture = image if isinstance(image, Image.Image) else _open_image(Path(image))
    model = checkpoint if isinstance(checkpoint, CLIP) else open_checkpoint(checkpoint, revision=revision)
    device = model.logit_scale.device
    with torch.inference_mode():
        view = eval_view(picture, model.config.vision.image_size)[None].to(device)
        tokens = tokenize([template.replace("{}", label) for label in labels], model.config.text.context_length)
        image_embed = normalize(model.encode_image(view), dim=-1)
        text_embed = normalize(model.encode_text(tokens.to(device)), dim=-1)
        probabilities = (model.logit_scale.exp() * image_embed @ text_embed.T)[0].softmax(0)
    best = probabilities.sort(descending=True, stable=True)
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(labels[i], score) for i, score in ranked][:top]


def _has_released_keys(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "logit_scale" in file.keys() and "image_projection" in file.keys()  # noqa: SIM118
    except (safetensors.SafetensorError, OSError):
        return False  # damaged: create_model says so


def _open_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"There is no image at {path}.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is not an image that can be opened ({error}). JPEG, PNG and WebP files can."
        ) from None
