"""What a training step sees: the order of the samples and the view of each, made from numbers alone.

Sample i of epoch e is cropped, and its caption chosen, by a generator keyed (seed, e, i); the order of epoch e is a
permutation keyed (seed, e). Nothing depends on how many processes or workers share the work or on what ran before, so a
run that is resumed at any step sees the same batches as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from diffclip.images import train_crop
from diffclip.tokenizer import tokenize

Key = tuple[int, np.ndarray]  # epoch, sample numbers
KEPT_BYTES = 512 * 2**20  # of decoded pictures, over all workers of a process: a small corpus is decoded once


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch; index and epoch below 2^32."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) | index]))


def epoch_order(pairs: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch takes the samples: a permutation of 0 .. pairs - 1."""
    return np.random.default_rng([seed, epoch]).permutation(pairs)


class TrainingViews(Dataset):
    """Pieces of a corpus as the model trains on them: views[epoch, indices] -> (uint8 [n, 3, S, S], int64 [n, L]).

    corpus: anything with len and corpus[i] -> {"image": RGB PIL image, "captions": list of strings, at least one}.
    Pixels stay bytes until they are on the model's device (images.normalise).
    """

    def __init__(
        self, corpus, *, image_size: int, context_length: int, crop_scale: tuple[float, float], seed: int
    ) -> None:
        self.corpus = corpus
        self.image_size = image_size
        self.context_length = context_length
        self.crop_scale = crop_scale
        self.seed = seed
        self._kept: dict[int, dict] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.corpus)

    def _pair(self, index: int) -> dict:
        pair = self._kept.get(index)
        if pair is None:
            pair = self.corpus[index]
            worker = get_worker_info()
            size = 4 * pair["image"].width * pair["image"].height * (worker.num_workers if worker else 1)
            if size <= self._room:
                self._room -= size
                self._kept[index] = pair
        return pair

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), dtype=np.uint8)
        captions = []
        for row, index in enumerate(indices.tolist()):
            rng = sample_generator(self.seed, epoch, index)
            try:
                pair = self._pair(index)
                captions.append(pair["captions"][int(rng.integers(len(pair["captions"])))])
                pixels[row] = train_crop(pair["image"], self.image_size, self.crop_scale, rng)
            except Exception as error:
                error.add_note(f"This happened with pair {index} of the corpus, in epoch {epoch}.")
                raise
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return images, tokenize(captions, self.context_length)


class BatchOrder(Sampler):
    """Keys of the pieces that one process trains on, from step `first` up to (not including) step `last`.

    Step s takes the global batch s modulo steps_per_epoch of epoch s // steps_per_epoch: `batch_size` consecutive samples of
    the epoch's order, of which each process has an equal, consecutive share, cut into pieces of at most `piece`. What an
    epoch has beyond whole batches is dropped; as the order is another in every epoch, so are the samples left out.
    """

    def __init__(
        self, pairs: int, batch_size: int, *, seed: int, first: int, last: int, rank: int, world: int, piece: int
    ) -> None:
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.first, self.last = first, last
        self.rank, self.share, self.piece = rank, batch_size // world, piece
        self.steps_per_epoch = pairs // batch_size
        self.pieces_per_step = -(-self.share // piece)

    def __len__(self) -> int:
        return (self.last - self.first) * self.pieces_per_step

    def __iter__(self) -> Iterator[Key]:
        shuffled, order = -1, None
        for step in range(self.first, self.last):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != shuffled:
                shuffled, order = epoch, epoch_order(self.pairs, self.seed, epoch)
            start = batch * self.batch_size + self.rank * self.share
            mine = order[start : start + self.share]
            for at in range(0, self.share, self.piece):
                yield epoch, mine[at : at + self.piece]


def load(views: TrainingViews, order: BatchOrder, *, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """The pieces of `order`, made by `workers` processes (0: in this one), in order.

    Not handed to accelerator.prepare: `order` already gives each process its own share, and must not be shared out again.
    """
    if workers:
        tokenize("a")  # loads the tokenizer, some seconds, so that workers that are forked have it
    return DataLoader(
        views,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own, so that iterating draws nothing from the global one
    )
