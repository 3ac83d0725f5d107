"""Token ids against the golden ones, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffclip import tokenize

GOLDEN = Path(__file__).parent / "golden"
STRINGS = json.loads((GOLDEN / "protocols.json").read_text(encoding="utf-8"))["tokenizer"]["strings"]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def ids():
    return load_file(GOLDEN / "protocols.safetensors")["tokenizer.ids"]


@pytest.mark.parametrize("i", [i for i, text in enumerate(STRINGS) if text.strip()])
def test_golden_ids(i, ids):
    found, expected = tokenize(STRINGS[i])[0], ids[i]
    if END not in expected:
        # The released tokenizer cuts a long caption without keeping the end of text; open_clip's, and ours, keep it.
        assert len(STRINGS[i].split()) > 77 and found[-1] == END
        found, expected = found[:-1], expected[:-1]
    assert torch.equal(found, expected)


def test_exactly_one_golden_string_is_longer_than_the_context(ids):
    assert [len(text.split()) for text, row in zip(STRINGS, ids, strict=True) if END not in row] == [120]


def test_many_at_once_are_as_good_as_one_by_one():
    texts = [text for text in STRINGS if text.strip()]
    together = tokenize(texts)
    assert together.dtype == torch.int64 and together.shape == (len(texts), 77)
    assert torch.equal(together, torch.cat([tokenize(text) for text in texts]))
    assert tokenize([]).shape == (0, 77)


@pytest.mark.parametrize("length", [3, 5, 24, 32])
def test_a_short_context_keeps_both_ends(length):
    text = "a red star above two blue boats at sea and more words than would fit into so small a context"
    row = tokenize(text, length)[0]
    assert row.shape == (length,) and row[0] == START
    assert (row == END).sum() == 1 and row[row.argmax()] == END
    words = row[: row.argmax()]
    assert len(words) == min(length - 1, 21) and torch.equal(words, tokenize(text)[0, : len(words)])


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_captions_are_refused(text):
    with pytest.raises(ValueError, match="Caption number 0 is empty"):
        tokenize(text)
    with pytest.raises(ValueError, match="Caption number 1 is empty"):
        tokenize(["a dog", text])


def test_misuse():
    with pytest.raises(TypeError, match="number 1 is of type NoneType"):
        tokenize(["a dog", None])
    with pytest.raises(ValueError, match="context length of 2 has no room"):
        tokenize("a dog", 2)
