"""Order and views of the samples: functions of (seed, epoch, number), whoever computes them."""

import pickle

import numpy as np
import pytest
import torch
from training_helpers import Child, HookedCorpus, TinyCorpus

import diffclip.loader
from diffclip.images import normalise, train_view
from diffclip.loader import BatchOrder, TrainingViews, epoch_order, load, sample_generator
from diffclip.tokenizer import tokenize


def views(corpus=None, seed=5):
    return TrainingViews(corpus or TinyCorpus(), image_size=32, context_length=24, crop_scale=(0.5, 1.0), seed=seed)


def order(**changes):
    settings = {"seed": 5, "first": 0, "last": 12, "rank": 0, "world": 1, "piece": 16}
    return BatchOrder(70, 16, **{**settings, **changes})


def test_a_piece_is_the_training_view_of_its_samples():
    images, tokens = views()[2, np.array([7, 3])]
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 32, 32) and tokens.shape == (2, 24)
    for row, index in enumerate([7, 3]):
        rng, pair = sample_generator(5, 2, index), TinyCorpus()[index]
        caption = pair["captions"][rng.integers(3)]
        assert torch.equal(tokens[row], tokenize(caption, 24)[0])
        assert torch.equal(normalise(images)[row], train_view(pair["image"], 32, (0.5, 1.0), rng))


def test_views_differ_by_epoch_seed_and_sample_and_nothing_else():
    one, again = views()[0, np.array([7])], views()[0, np.array([3, 7, 9])]
    assert torch.equal(one[0][0], again[0][1]) and torch.equal(one[1][0], again[1][1])
    assert not torch.equal(one[0], views()[1, np.array([7])][0])
    assert not torch.equal(one[0], views(seed=6)[0, np.array([7])][0])
    draws = {tuple(sample_generator(s, e, i).integers(2**62, size=2)) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(draws) == 8


def test_an_epoch_takes_whole_batches_of_a_permutation():
    keys = list(order())
    assert len(keys) == len(order()) == 12
    assert [epoch for epoch, _ in keys] == [0] * 4 + [1] * 4 + [2] * 4
    for epoch in range(3):
        taken = np.concatenate([indices for e, indices in keys if e == epoch])
        assert len(set(taken)) == 64  # 6 of 70 fill no batch
        assert np.array_equal(taken, epoch_order(70, 5, epoch)[:64])
    left_out = [set(range(70)) - set(np.concatenate([i for e, i in keys if e == epoch])) for epoch in range(3)]
    assert left_out[0] != left_out[1] != left_out[2]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("piece", [16, 3, 1])
def test_processes_and_pieces_share_the_same_global_batches(world, piece):
    whole = [np.concatenate([epoch_order(70, 5, e)[b * 16 : b * 16 + 16]]) for e in range(3) for b in range(4)]
    for first in (0, 5):  # a run that is resumed at step 5 continues with batch 1 of epoch 1
        shares = [list(order(world=world, piece=piece, rank=rank, first=first)) for rank in range(world)]
        per_step = order(world=world, piece=piece).pieces_per_step
        assert all(len(share) == (12 - first) * per_step for share in shares)
        for step in range(first, 12):
            at = slice((step - first) * per_step, (step - first + 1) * per_step)
            batch = np.concatenate([indices for share in shares for _, indices in share[at]])
            assert np.array_equal(batch, whole[step])


def everything(workers):
    return [(images.numpy(), tokens.numpy()) for images, tokens in load(views(), order(piece=5), workers=workers)]


@pytest.mark.processes
def test_any_number_of_workers_loads_the_same():
    alone = everything(0)
    for workers in (1, 3):
        shared = Child(everything, workers).result()
        assert len(shared) == len(alone)
        assert all(
            np.array_equal(a, b)
            for one, other in zip(alone, shared, strict=True)
            for a, b in zip(one, other, strict=True)
        )


def test_views_travel_to_workers_that_are_not_forked():
    travelled = pickle.loads(pickle.dumps(views()))
    assert torch.equal(travelled[0, np.array([7])][0], views()[0, np.array([7])][0])


@pytest.mark.parametrize("room", [0, 10 * 4 * 40 * 36, 2**30], ids=["none", "ten pictures", "all"])
def test_pictures_that_are_kept_decoded_are_the_same(room, monkeypatch):
    reads = []
    corpus = HookedCorpus(reads.append)
    monkeypatch.setattr(diffclip.loader, "KEPT_BYTES", room)
    one = views(corpus)
    for epoch in (0, 1):
        expected = views()[epoch, np.arange(30)]
        assert all(torch.equal(a, b) for a, b in zip(one[epoch, np.arange(30)], expected, strict=True))
    assert len(reads) == {0: 60, 10 * 4 * 40 * 36: 50, 2**30: 30}[room]


def test_loading_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(load(views(), order())))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_says_which_pair_it_was():
    def refuse(count):
        if count == 2:
            raise OSError("cannot read this image")

    with pytest.raises(OSError, match="cannot read") as caught:
        views(HookedCorpus(refuse))[3, np.array([4, 8])]
    assert caught.value.__notes__ == ["This happened with pair 8 of the corpus, in epoch 3."]
