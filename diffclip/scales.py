"""Scales: what is trained on what, how big and for how long.

Every notebook has one parameter, `scale`, and finds everything else here. A scale only says what to do; the same code
does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffclip import paths
from diffclip.corpora import CorpusSpec
from diffclip.model import SIZES, ModelConfig, get_variant
from diffclip.training import Recipe


@dataclass(frozen=True)
class Needs:
    """What a machine must have for a scale: cores, GB of memory and of disk, GPUs with GB each, and whether the hub is read."""

    cores: int
    memory: float
    disk: float
    gpus: int = 0
    gpu_memory: float = 0
    hub: bool = False

    def __str__(self) -> str:
        gpus = "a GPU" if self.gpus == 1 else f"{self.gpus} GPUs"
        words = [f"{gpus} with {self.gpu_memory:g} GB"] * bool(self.gpus)
        cores = "any CPU" if self.cores == 1 else f"{self.cores} CPU cores"
        words += [cores, f"{self.memory:g} GB of memory", f"{self.disk:g} GB of disk"]
        return ", ".join(words + ["the hub"] * self.hub)


@dataclass(frozen=True)
class Scale:
    """One way of running the kit.

    size: the model's, a name in model.SIZES. corpora: name -> what plays it. recipe: what is trained with it. seeds: one
    model per variant and corpus is trained for each. episodes: of a few-shot evaluation. bootstrap: resamples behind an
    interval. needs: what the machine must have. minutes: all notebooks, on a machine as `needs` says.
    """

    name: str
    summary: str
    size: str
    corpora: dict[str, CorpusSpec]
    recipe: Recipe
    seeds: tuple[int, ...]
    episodes: int
    bootstrap: int
    needs: Needs
    minutes: float
    trains: bool = True

    @property
    def model(self) -> ModelConfig:
        return SIZES[self.size]

    def corpus(self, name: str) -> CorpusSpec:
        if name not in self.corpora:
            raise ValueError(f"Scale {self.name!r} has no corpus {name!r}; choose one of {', '.join(self.corpora)}.")
        return self.corpora[name]

    def run_dir(self, corpus: str, variant: str, seed: int = 0) -> Path:
        """data/runs/<scale>/<corpus>-<variant>-seed<k>"""
        self.corpus(corpus), get_variant(variant)
        return self.runs_root / f"{corpus}-{variant}-seed{seed}"

    @property
    def runs_root(self) -> Path:
        return paths.data_root() / "runs" / self.name

    @property
    def results_root(self) -> Path:
        return self.runs_root / "results"


def _world(pairs: int, image_size: int) -> dict[str, CorpusSpec]:
    """The two generated corpora, in the ratio of the real ones (2.3 M : 7.9 M); they share no scene."""
    return {
        "cc3m": CorpusSpec("cc3m", "world", pairs, image_size, seed=3),
        "cc12m": CorpusSpec("cc12m", "world", round(pairs * 7.9 / 2.3), image_size, seed=12),
    }


_REAL = {
    "cc3m": CorpusSpec("cc3m", "prepared", image_size=224),
    "cc12m": CorpusSpec("cc12m", "prepared", image_size=224),
}
_PAPER = Recipe()
# A small model on a small corpus lives on the number of its steps: with the same 51 200 samples seen, a batch of 64 reached
# an accuracy of 0.33 among 250 held-out pairs, 128 reached 0.19 and 256 reached 0.11.
_SMALL = replace(
    _PAPER, learning_rate=1.5e-3, weight_decay=0.1, batch_size=64, precision="no", log_every=10, save_every=200
)

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            summary="every path in seconds, for tests; the numbers mean nothing",
            size="smoke",
            corpora=_world(256, 32),
            recipe=replace(_SMALL, epochs=2, log_every=1, save_every=4),
            seeds=(0,),
            episodes=50,
            bootstrap=200,
            needs=Needs(cores=1, memory=2, disk=1),
            minutes=2,
        ),
        Scale(
            name="mini",
            summary="everything, trained here on generated scenes; small models, real measurements",
            size="mini",
            corpora=_world(6400, 48),
            recipe=replace(_SMALL, epochs=6),
            seeds=(0,),
            episodes=5000,
            bootstrap=2000,
            needs=Needs(cores=2, memory=8, disk=3),
            minutes=15,
        ),
        Scale(
            name="gpu",
            summary="the same generated world with ViT-S/16 at 224 px, worth half an hour of a data-centre GPU",
            size="vit_s_16",
            corpora=_world(25_000, 224),
            recipe=replace(
                _PAPER, epochs=10, batch_size=1024, weight_decay=0.2, workers=12, log_every=10, save_every=200
            ),
            seeds=(0,),
            episodes=5000,
            bootstrap=2000,
            needs=Needs(cores=16, memory=64, disk=30, gpus=1, gpu_memory=40),
            minutes=40,
        ),
        Scale(
            name="released",
            summary="the authors' checkpoints on the real benchmarks, no training",
            size="vit_b_16",
            corpora=_REAL,
            recipe=_PAPER,
            seeds=(0,),
            episodes=5000,
            bootstrap=2000,
            needs=Needs(cores=4, memory=16, disk=200, gpus=1, gpu_memory=16, hub=True),
            minutes=600,
            trains=False,
        ),
        Scale(
            name="paper",
            summary="the full recipe from scratch on CC3M and CC12M",
            size="vit_b_16",
            corpora=_REAL,
            recipe=replace(_PAPER, workers=12),
            seeds=(0,),
            episodes=5000,
            bootstrap=2000,
            needs=Needs(cores=128, memory=512, disk=1500, gpus=8, gpu_memory=40, hub=True),
            minutes=8 * 24 * 60,
        ),
    )
}


def get_scale(name: str) -> Scale:
    """The scale of that name; ValueError names those there are."""
    if name not in SCALES:
        raise ValueError(f"Unknown scale {name!r}; choose one of {', '.join(SCALES)}.")
    return SCALES[name]
