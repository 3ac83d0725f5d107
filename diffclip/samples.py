"""One captioned image as it comes from the world outside: made fit for training, or refused with a reason."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable

from PIL import Image, ImageOps, UnidentifiedImageError

JPEG_QUALITY = 95  # img2dataset's default
MAX_ASPECT = 20.0  # a banner of 5000 x 50 would be stored 224 high and 22 400 wide
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class BadSample(ValueError):
    """A sample that is left out: reason is one of a few (they are counted), detail is free text."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def normalise_image(content: bytes, size: int) -> bytes:
    """An image file of any kind -> a JPEG whose shorter edge is `size` pixels, upright, RGB.

    A JPEG that is so already is returned untouched, so that nothing is lost by a second compression. Transparency is
    laid over white. Raises BadSample for what is not a whole image or is longer than MAX_ASPECT times its width.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")
            image = Image.open(io.BytesIO(content))
            kind, orientation = image.format, image.getexif().get(0x0112, 1)
            width, height = image.size
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise BadSample("extreme aspect ratio", f"{width} x {height}")
            as_is = kind == "JPEG" and image.mode == "RGB" and orientation == 1 and min(width, height) == size
            if kind == "JPEG" and not as_is:
                # Let the decoder skip detail finer than twice the target; the resampling below does the rest.
                image.draft("RGB", (2 * size * width // min(width, height), 2 * size * height // min(width, height)))
            image.load()  # decodes every pixel: a file cut short fails here
            if as_is:
                return content
            image = ImageOps.exif_transpose(image)
            if "A" in image.getbands() or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB")
            scale = size / min(image.size)
            target = tuple(max(size, round(edge * scale)) for edge in image.size)
            if target != image.size:
                image = image.resize(target, Image.Resampling.BICUBIC)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=JPEG_QUALITY)
            return stream.getvalue()
    except BadSample:
        raise
    except UnidentifiedImageError as error:
        raise BadSample("broken image", "not an image of a known kind") from error
    except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
        raise BadSample("broken image", f"{type(error).__name__}: {error}"[:200]) from error


def read_captions(files: dict[str, bytes]) -> tuple[str, ...]:
    """The wordings of a sample as it stands in a shard; see `choose_captions`."""
    try:
        record = json.loads(files["json"]) if "json" in files else None
        text = files["txt"].decode("utf-8") if "txt" in files else None
    except ValueError as error:  # not JSON, or not UTF-8
        raise BadSample("unreadable caption", str(error)[:200]) from error
    return choose_captions(record, text)


def choose_captions(record: object, text: str | None) -> tuple[str, ...]:
    """The wordings of a sample: `captions` of its json where there is such a list, else its txt, else json's `caption`.

    A caption is stripped of surrounding white space and otherwise left as it is (the paper: tokenisation only).
    """
    record = record if isinstance(record, dict) else {}
    if isinstance(record.get("captions"), list):
        return clean_captions(record["captions"])
    if text is None and record.get("caption") is None:
        raise BadSample("no caption")
    return clean_captions([record["caption"] if text is None else text])


def clean_captions(wordings: Iterable) -> tuple[str, ...]:
    kept = tuple(text for wording in wordings if isinstance(wording, str) and (text := wording.strip()))
    if not kept:
        raise BadSample("empty caption")
    return kept
