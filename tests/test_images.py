"""The views of a picture against torchvision's, and their reproducibility."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from diffclip import images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width, height, seed=0, mode="RGB"):
    """A smooth picture with some noise, so that neither resampling nor cropping could go unnoticed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + c) + c) * np.cos(y / (4 + c)) for c in range(3)]
    pixels = 127 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def torchvision_eval(image, size):
    return v2.Compose(
        [
            v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )(image)


@pytest.mark.parametrize("size", [32, 48, 224])
@pytest.mark.parametrize("shape", [(100, 100), (37, 91), (91, 37), (640, 427), (333, 500), (48, 49), (7, 3), (301, 2)])
def test_eval_view_is_torchvisions(shape, size):
    found = images.eval_view(picture(*shape), size)
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    torch.testing.assert_close(found, torchvision_eval(picture(*shape), size), rtol=0, atol=2e-6)


@given(width=st.integers(1, 120), height=st.integers(1, 120), size=st.integers(1, 60))
def test_eval_view_of_any_picture(width, height, size):
    found = images.eval_view(picture(width, height), size)
    torch.testing.assert_close(found, torchvision_eval(picture(width, height), size), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_other_modes_become_rgb(mode):
    image = picture(20, 30, mode=mode)
    torch.testing.assert_close(images.eval_view(image, 16), images.eval_view(image.convert("RGB"), 16), rtol=0, atol=0)
    assert images.train_view(image, 16, (0.5, 1), np.random.default_rng(0)).shape == (3, 16, 16)


def test_normalisation_and_its_inverse():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([pixels, pixels[::-1], pixels.T], axis=-1)
    tensor = images.to_tensor(Image.fromarray(pixels))
    for c in range(3):
        expected = (pixels[..., c] / 255 - MEAN[c]) / STD[c]
        np.testing.assert_allclose(tensor[c].numpy(), expected, rtol=0, atol=2e-6)
    assert np.array_equal(images.to_uint8(tensor), pixels)
    batch = torch.stack([tensor, tensor.flip(1)])
    assert np.array_equal(images.to_uint8(batch), np.stack([pixels, pixels[::-1]]))
    assert images.to_uint8(tensor * 100).min() == 0 and images.to_uint8(tensor * 100).max() == 255


def test_normalise_on_the_device_equals_to_tensor():
    image = picture(24, 24)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(images.normalise(pixels)[0], images.to_tensor(image), rtol=0, atol=1e-6)
    assert pixels.dtype == torch.uint8


def test_train_view_is_made_from_its_generator_alone():
    image = picture(80, 50)

    def views(seed):
        rng = np.random.default_rng(seed)
        return torch.stack([images.train_view(image, 32, (0.5, 1.0), rng) for _ in range(3)])

    np.random.seed(0)
    torch.manual_seed(0)
    first = views(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(first, views(1))
    assert not torch.equal(first, views(2)) and not torch.equal(first[0], first[1])


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    seed=st.integers(0, 99),
    low=st.floats(0.01, 1),
    size=st.just(8),
)
def test_train_view_of_any_picture(width, height, seed, low, size):
    view = images.train_view(picture(width, height), size, (low, 1.0), np.random.default_rng(seed))
    assert view.shape == (3, size, size) and torch.isfinite(view).all()


def test_train_crop_follows_random_resized_crop(monkeypatch):
    """Area share uniform in the scale, aspect ratio log-uniform in 3/4 to 4/3, anywhere inside the picture."""
    boxes, resize = [], Image.Image.resize

    def watched(self, size, resample=None, box=None, **options):
        boxes.append(box)
        return resize(self, size, resample, box=box, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    rng, image = np.random.default_rng(0), picture(400, 300)
    for _ in range(2000):
        assert images.train_crop(image, 4, (0.2, 0.6), rng).size == (4, 4)
    left, top, right, bottom = np.array(boxes).T
    assert min(left.min(), top.min()) == 0 and right.max() == 400 and bottom.max() == 300
    area, ratio = (right - left) * (bottom - top) / (400 * 300), (right - left) / (bottom - top)
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.2, 0.3, 0.4, 0.5, 0.6], atol=0.02)
    quarters = np.exp(np.linspace(np.log(3 / 4), np.log(4 / 3), 5))
    np.testing.assert_allclose(np.quantile(ratio, [0, 0.25, 0.5, 0.75, 1]), quarters, atol=0.03)


def test_train_crop_of_a_banner_is_central(monkeypatch):
    """No crop with an aspect ratio within bounds covers half of a strip: the largest central one that is within."""
    strip = Image.new("RGB", (300, 30), "black")
    strip.paste("white", (130, 0, 170, 30))
    view = np.asarray(images.train_crop(strip, 40, (0.9, 1.0), np.random.default_rng(0)))
    assert view.min() > 250
