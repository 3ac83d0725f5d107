"""One picture, some labels, any checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import picture

from diffclip.classify import classify, open_checkpoint
from diffclip.images import eval_view
from diffclip.model import create_model, save_model
from diffclip.released import save_released
from diffclip.tokenizer import tokenize

GOLDEN = Path(__file__).parent / "golden"
LABELS = ["dog", "cat", "elephant", "pink star", "house", "boat", "fish"]


@pytest.fixture(scope="module")
def model():
    return create_model("diffclip", "smoke", seed=1).eval()


@pytest.fixture
def image(tmp_path) -> Path:
    picture(1).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_probabilities_are_those_of_the_model(model, image):
    found = classify(image, LABELS, model, top=None)
    size, length = model.config.vision.image_size, model.config.text.context_length
    with torch.no_grad():
        out = model(eval_view(picture(1), size)[None], tokenize([f"a photo of a {x}" for x in LABELS], length))
    cosine = torch.nn.functional.cosine_similarity(out["image_embed"], out["text_embed"])
    expected = dict(zip(LABELS, (out["logit_scale"] * cosine).softmax(0).tolist(), strict=True))
    assert {label for label, _ in found} == set(LABELS)
    assert [p for _, p in found] == pytest.approx([expected[label] for label, _ in found])
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert classify(image, LABELS, model) == found[:5]


def test_the_template_is_used(model, image):
    plain = classify(image, LABELS, model, "{}")
    assert plain != classify(image, LABELS, model)
    assert dict(plain).keys() <= set(LABELS)
    whole = [f"a photo of a {label}" for label in LABELS]
    assert [p for _, p in classify(image, whole, model, "{}")] == [p for _, p in classify(image, LABELS, model)]


def test_every_kind_of_checkpoint_gives_the_same_answer(model, image, tmp_path):
    expected = classify(image, LABELS, model)
    save_model(model, tmp_path / "run")
    save_model(model, tmp_path / "copy.safetensors")
    save_released(model, tmp_path / "released.safetensors")
    for checkpoint in (tmp_path / "run", tmp_path / "copy.safetensors", tmp_path / "released.safetensors"):
        assert classify(image, LABELS, checkpoint) == expected
    assert open_checkpoint(tmp_path / "run").variant == "diffclip"


def test_a_picture_may_be_given_as_such_and_in_any_mode(model):
    grey = picture(2).convert("L")
    assert classify(grey, LABELS, model) == classify(grey.convert("RGB"), LABELS, model)


def test_wrong_use_is_explained(model, image, tmp_path):
    with pytest.raises(ValueError, match="needs labels to choose from"):
        classify(image, [], model)
    with pytest.raises(ValueError, match="none of them empty"):
        classify(image, ["dog", " "], model)
    with pytest.raises(ValueError, match="dog came twice"):
        classify(image, ["dog", "cat", " dog"], model)
    with pytest.raises(ValueError, match="no place for the label"):
        classify(image, LABELS, model, "a photo")
    with pytest.raises(FileNotFoundError, match="no image at"):
        classify(tmp_path / "none.png", LABELS, model)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not an image"):
        classify(tmp_path / "text.png", LABELS, model)
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:200])
    with pytest.raises(ValueError, match="not an image"):
        classify(tmp_path / "cut.png", LABELS, model)
    with pytest.raises(FileNotFoundError, match="no checkpoint at 'nothing'"):
        classify(image, LABELS, "nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        classify(image, LABELS, tmp_path / "broken.safetensors")
