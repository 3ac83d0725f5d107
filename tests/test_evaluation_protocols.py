"""Zero-shot, retrieval, MMVP and POPE: golden values, plain readings of the definitions, and what must not matter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import normalize

from diffclip.evaluation import EvaluationError, mmvp, pope, retrieval, zero_shot
from diffclip.evaluation.checks import check_class_list

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "protocols.safetensors"), json.loads((GOLDEN / "protocols.json").read_text())


def random_gallery(seed, images=20, width=6, most=4):
    """Image and caption embeddings with one to `most` captions an image, in mixed order."""
    g = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(images), torch.randint(1, most + 1, (images,), generator=g))
    owner = owner[torch.randperm(len(owner), generator=g)]
    image = torch.randn(images, width, generator=g)
    return image, image[owner] + torch.randn(len(owner), width, generator=g), owner


# ---------------------------------------------------------------------------------------------------------- zero-shot
def test_zero_shot_equals_the_golden_values(golden):
    tensors, expected = golden
    result = zero_shot.score(tensors["zero_shot.logits"], tensors["zero_shot.labels"])
    assert result.accuracy[1] == pytest.approx(expected["zero_shot"]["acc1"], rel=1e-6)
    assert result.accuracy[5] == pytest.approx(expected["zero_shot"]["acc5"], rel=1e-6)
    assert result.mean_per_class_recall == pytest.approx(expected["zero_shot"]["mean_per_class_recall"], rel=1e-6)
    assert torch.equal(result.correct, result.prediction == tensors["zero_shot.labels"])


def test_class_embeddings_average_directions_not_lengths():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])
    embedded = zero_shot.class_embeddings(torch.stack([torch.stack([a, b]), torch.stack([b, b])]))
    assert torch.allclose(embedded, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


@given(st.integers(0, 1000), st.permutations(range(7)))
def test_zero_shot_does_not_depend_on_scale_or_on_the_order_of_classes(seed, order):
    g = torch.Generator().manual_seed(seed)
    image, text = torch.randn(30, 5, generator=g), torch.randn(7, 5, generator=g)
    labels = torch.randint(0, 7, (30,), generator=g)
    one = zero_shot.score(zero_shot.logits(image, text), labels)
    order = torch.tensor(order)
    other = zero_shot.score(zero_shot.logits(image * 7, text[order] * 0.1), order.argsort()[labels])
    assert one.accuracy == other.accuracy and torch.equal(one.rank, other.rank)


def test_a_collapsed_model_answers_the_first_class():
    result = zero_shot.score(torch.zeros(40, 8), torch.arange(40) % 8)
    assert result.accuracy == {1: 1 / 8, 5: 5 / 8}
    assert set(result.prediction.tolist()) == {0}


def test_zero_shot_refuses_what_has_no_meaning():
    scores, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 5])
    with pytest.raises(EvaluationError, match="runs from 0 to 6.*6 classes"):
        zero_shot.score(scores, torch.tensor([0, 1, 2, 6]))
    with pytest.raises(EvaluationError, match="3 entries for 4"):
        zero_shot.score(scores, labels[:3])
    with pytest.raises(EvaluationError, match="top 7.*6 items"):
        zero_shot.score(scores, labels, ks=(1, 7))
    scores[2, 3] = torch.nan
    with pytest.raises(EvaluationError, match="NaN.*1 of 4 rows.*row 2"):
        zero_shot.score(scores, labels)
    with pytest.raises(EvaluationError, match="same model"):
        zero_shot.logits(torch.randn(3, 4), torch.randn(3, 5))


def test_class_lists_are_checked_against_labels():
    check_class_list(["dog", "cat"], ["a {c}"], [0, 1, 1], "pets")
    with pytest.raises(EvaluationError, match="pets runs from 0 to 2.*2 classes"):
        check_class_list(["dog", "cat"], ["a {c}"], [0, 1, 2], "pets")
    with pytest.raises(EvaluationError, match="no prompt templates.*zeroshot_classification_templates.txt"):
        check_class_list(["dog", "cat"], [], [0, 1], "pets")
    with pytest.raises(EvaluationError, match="'a photo' has no place for the class"):
        check_class_list(["dog", "cat"], ["a photo"], [0, 1], "pets")
    with pytest.raises(EvaluationError, match="no class names"):
        check_class_list([], ["a {c}"], [0, 1], "pets")


# ---------------------------------------------------------------------------------------------------------- retrieval
def test_retrieval_equals_the_golden_values(golden):
    tensors, expected = golden
    result = retrieval.score(*(tensors[f"retrieval.{k}"] for k in ("image_embed", "text_embed", "text_owner")))
    for name, value in expected["retrieval"].items():
        task, k = name.split("_recall@")
        assert result.recall(task, int(k)) == pytest.approx(value, rel=1e-6), name


@given(st.integers(0, 10_000))
def test_retrieval_agrees_with_a_plain_reading_of_the_definition(seed):
    image, text, owner = random_gallery(seed)
    scores = normalize(text, dim=1) @ normalize(image, dim=1).T
    result = retrieval.score(image, text, owner)
    for k in (1, 3):
        hits = [o in row.topk(k).indices for row, o in zip(scores, owner, strict=True)]
        assert result.recall("image_retrieval", k) == pytest.approx(np.mean(hits))
        hits = [(owner[column.topk(k).indices] == i).any() for i, column in enumerate(scores.T)]
        assert result.recall("text_retrieval", k) == pytest.approx(np.mean(hits))


@given(st.integers(0, 10_000))
def test_retrieval_does_not_depend_on_order_scale_or_blocks(seed):
    image, text, owner = random_gallery(seed)
    g = torch.Generator().manual_seed(seed)
    plain = retrieval.score(image, text, owner)
    i, t = torch.randperm(len(image), generator=g), torch.randperm(len(text), generator=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK", 3 * len(image))
        mixed = retrieval.score(image[i] * 5, text[t] * 0.2, i.argsort()[owner[t]])
    assert torch.equal(mixed.image_rank, plain.image_rank[t])
    assert torch.equal(mixed.text_rank, plain.text_rank[i])


@given(st.integers(0, 10_000), st.integers(1, 19))
def test_more_places_never_lose_a_hit_and_the_whole_gallery_finds_all(seed, k):
    result = retrieval.score(*random_gallery(seed))
    for task in retrieval.DIRECTIONS:
        assert result.recall(task, k) <= result.recall(task, k + 1)
    assert result.recall("image_retrieval", 20) == 1
    assert result.recall("text_retrieval", len(result.owner)) == 1


def test_a_collapsed_model_finds_nothing():
    owner = torch.arange(60) // 3
    result = retrieval.score(torch.ones(20, 16) / 3, torch.ones(60, 16) * 0.7, owner)
    for task in retrieval.DIRECTIONS:
        assert result.recall(task, 10) == 0


def test_a_caption_that_two_images_share_is_found_by_neither_first():
    image, text = torch.eye(3), torch.eye(3)
    text[1] = text[0]  # the second image's caption reads as the first image's
    result = retrieval.score(image, text, torch.arange(3))
    assert result.text_rank.tolist() == [1, 2, 0]  # image 0 ties with the other's caption; image 1 has none that fits


def test_retrieval_refuses_what_has_no_meaning():
    image, text, owner = random_gallery(0)
    with pytest.raises(EvaluationError, match="1 of 21 images have no caption.*image 20"):
        retrieval.score(torch.cat([image, image[:1]]), text, owner)
    with pytest.raises(EvaluationError, match="0 to 18"):
        retrieval.score(image[:19], text, owner)
    with pytest.raises(EvaluationError, match="top 21.*20 items"):
        retrieval.score(image, text, owner).recall("image_retrieval", 21)
    with pytest.raises(EvaluationError, match="Unknown direction"):
        retrieval.score(image, text, owner).recall("sideways", 1)
    with pytest.raises(EvaluationError, match="caption embeddings.*NaN"):
        retrieval.score(image, text * torch.nan, owner)


# --------------------------------------------------------------------------------------------------------------- MMVP
def test_mmvp_equals_the_golden_values(golden):
    tensors, expected = golden
    result = mmvp.score(tensors["mmvp.logits_text_image"])
    assert torch.equal(result.correct.long(), tensors["mmvp.correct"])
    assert 100 * result.accuracy == expected["mmvp"]["pair_accuracy"]


def test_mmvp_counts_by_pattern():
    right, wrong = torch.eye(2), torch.eye(2).flip(0)
    half = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # both statements pick the first image
    result = mmvp.score(torch.stack([right, half, wrong, right]), ["state", "state", "count", "count"])
    assert result.pattern_counts == {"state": (1, 2), "count": (1, 2)}
    assert result.correct.tolist() == [True, False, False, True]


def test_mmvp_gives_nothing_for_a_tie_and_a_quarter_for_guessing():
    assert mmvp.score(torch.ones(5, 2, 2)).accuracy == 0
    guesses = mmvp.score(torch.randn(20_000, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert guesses.accuracy == pytest.approx(0.25, abs=0.01)


def test_mmvp_from_embeddings():
    g = torch.Generator().manual_seed(1)
    image, text = torch.randn(9, 2, 4, generator=g), torch.randn(9, 2, 4, generator=g)
    scores = mmvp.similarities(image, text)
    assert torch.allclose(scores[3, 1, 0], torch.cosine_similarity(text[3, 1], image[3, 0], dim=0), atol=1e-6)
    with pytest.raises(EvaluationError, match="two images and two statements"):
        mmvp.similarities(image, text[:, 0])
    with pytest.raises(EvaluationError, match="3 pattern names.*9 pairs"):
        mmvp.score(scores, ["a"] * 3)


# --------------------------------------------------------------------------------------------------------------- POPE
@pytest.mark.parametrize(
    "answer, yes",
    [
        ("Yes, there is a dog.", True),
        ("No.", False),
        ("no, I see none", False),
        ("There is not a dog. Yes.", False),
        ("Yes. No other animal is there.", True),  # only the first sentence counts
        ("Nothing of the kind", True),  # the word, not the letters
        ("", True),
        ("A knot in a rope", True),
        ("I do\nnot know", True),
    ],
)
def test_reading_an_answer(answer, yes):
    assert pope.says_yes(answer) is yes


def test_pope_scores_by_hand():
    answers = ["yes", "yes", "no", "yes", "no", "Yes, it is"]
    labels = ["yes", "no", "yes", "yes", "no", "no"]
    result = pope.score(answers, labels)
    assert (result.accuracy, result.precision, result.recall) == (0.5, 0.5, pytest.approx(2 / 3))
    assert result.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3)) and result.yes_ratio == pytest.approx(4 / 6)
    assert result.correct.tolist() == [True, False, False, True, True, False]


def test_a_model_that_always_says_yes():
    result = pope.score(["yes"] * 10, [True, False] * 5)
    assert (result.accuracy, result.precision, result.recall, result.yes_ratio) == (0.5, 0.5, 1, 1)
    silent = pope.score(["no"] * 10, [True, False] * 5)
    assert (silent.precision, silent.recall, silent.f1, silent.accuracy) == (0, 0, 0, 0.5)


def test_pope_refuses_labels_that_are_none():
    with pytest.raises(EvaluationError, match="'maybe'"):
        pope.score(["yes"], ["maybe"])
    with pytest.raises(EvaluationError, match="2 answers and 1 questions"):
        pope.score(["yes", "no"], ["yes"])
