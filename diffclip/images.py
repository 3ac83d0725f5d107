"""Images to tensors: the training view and the evaluation view.

Both normalise with ImageNet's mean and standard deviation, as the released models expect (FACTS: upstream transforms).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_SCALE = 1 / (255 * np.array(STD, dtype=np.float32))[:, None, None]
_SHIFT = -(np.array(MEAN, dtype=np.float32) / np.array(STD, dtype=np.float32))[:, None, None]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture -> float32 [3, H, W], normalised."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
    return torch.from_numpy(pixels * _SCALE + _SHIFT)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32, normalised as `to_tensor` does; where the pixels lie, a GPU say, so that a byte travels."""
    scale, shift = (torch.from_numpy(x).to(pixels.device) for x in (_SCALE, _SHIFT))
    return pixels.float().mul_(scale).add_(shift)


def to_uint8(images: Tensor) -> np.ndarray:
    """The inverse, for display: normalised [..., 3, H, W] -> uint8 [..., H, W, 3]."""
    mean, std = (torch.tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (MEAN, STD))
    pixels = (images.detach().cpu().float() * std + mean).clamp(0, 1)
    return (pixels * 255).round().byte().movedim(-3, -1).numpy()


def eval_view(image: Image.Image, size: int) -> Tensor:
    """The evaluation view: shorter edge to `size` (bicubic), centre crop, normalised; float32 [3, size, size]."""
    image = image.convert("RGB")
    width, height = image.size
    if (width, height) != (size, size):
        # To the pixel as torchvision's Resize and CenterCrop: the longer edge rounded down, the crop's corner to even.
        width, height = (size * edge // min(width, height) for edge in (width, height))
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return to_tensor(image)


def train_crop(image: Image.Image, size: int, crop_scale: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """The picture of the training view: a random resized crop of size x size.

    As torchvision's RandomResizedCrop (area share uniform in `crop_scale`, log-uniform aspect ratio in 3/4 to 4/3, ten
    tries, then the largest central crop; bilinear), but drawn from the generator it is given, so that a sample can be made again.
    """
    image = image.convert("RGB")
    width, height = image.size
    left, top, w, h = _central_crop(width, height)
    for _ in range(10):
        area = width * height * rng.uniform(*crop_scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        try_w, try_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < try_w <= width and 0 < try_h <= height:
            w, h = try_w, try_h
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))


def train_view(image: Image.Image, size: int, crop_scale: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """The training view: `train_crop`, normalised; float32 [3, size, size]."""
    return to_tensor(train_crop(image, size, crop_scale, rng))


def _central_crop(width: int, height: int) -> tuple[int, int, int, int]:
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h
