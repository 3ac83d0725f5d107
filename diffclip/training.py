"""The trainer: the paper's recipe, exact at any number of devices, resumable at any step.

    run = train(config, run_dir, corpus)              # or: found if it is there, resumed if it was interrupted
    run = ensure_run("mini", "cc3m", "diffclip")      # the same by name
    run.metrics, run.model()

Accelerate brings devices, processes and mixed precision; what a step sees is in loader.py, the loss of a batch that is
spread over devices and pieces in large_batch.py, and what a run leaves on disk in run_folder.py.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed import DistError
from torch.nn.utils import get_total_norm
from tqdm.auto import tqdm

from diffclip.images import normalise
from diffclip.large_batch import Piece, backward_through_batch
from diffclip.loader import BatchOrder, TrainingViews, load
from diffclip.model import CLIP, ModelConfig, create_model, get_variant, load_exactly, load_model, save_model
from diffclip.run_folder import Metrics, RunFolder, TrainingError

log = logging.getLogger("diffclip")

PRECISIONS = ("auto", "no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb")


# What is trained


def _free(default):
    """A setting that changes how a run is computed but not what is computed: it does not take part in equality."""
    return field(default=default, compare=False)


@dataclass(frozen=True)
class Recipe:
    """Every setting of the training recipe; the defaults are the paper's (section 4.1) or, where the paper is silent,
    those of the code it says it used. Two recipes are equal if they describe the same optimisation: settings of
    speed, memory and bookkeeping (from `chunk_size` on) do not count.
    """

    epochs: int = 40
    warmup_epochs: float = 1
    batch_size: int = 4096  # global: the sum over all processes, and the number of negatives of the loss
    learning_rate: float = 5e-4
    learning_rate_start: float = 1e-6  # first step of the linear warm-up
    learning_rate_final: float = 1e-5  # where the cosine would arrive one step after the last
    weight_decay: float = 0.5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    crop_scale: tuple[float, float] = (0.5, 1.0)  # share of the image's area kept by the random resized crop
    precision: str = "auto"  # "no" (float32), "bf16", "fp16"; "auto" takes bf16 where a GPU has it, float32 on a CPU
    max_steps: int | None = None  # stop early after so many steps; the schedule remains that of the whole run

    chunk_size: int | None = _free(None)  # samples per forward on a device; smaller than its batch: cached gradients
    gradient_checkpointing: bool = _free(False)
    compile: bool = _free(False)
    workers: int = _free(0)  # processes per device that decode and augment
    log_every: int = _free(10)  # steps
    save_every: int = _free(1000)  # steps

    def __post_init__(self) -> None:
        # A recipe read back from JSON has lists where this one has tuples; equality must not depend on that.
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        for name in ("epochs", "batch_size", "log_every", "save_every", "max_steps", "chunk_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"The recipe's {name} is a whole number of at least 1; got {value!r}.")
        if self.workers < 0 or not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"A recipe has workers >= 0 and a warm-up within its {self.epochs} epochs; got workers {self.workers} and "
                f"warmup_epochs {self.warmup_epochs}."
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}.")
        if not (len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1):
            raise ValueError(f"crop_scale is two shares of the image, 0 < low <= high <= 1; got {self.crop_scale}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        return cls(**_known(cls, values))

    def schedule(self, pairs: int) -> Schedule:
        """What this recipe means for a corpus of so many pairs; ValueError if that is less than one batch."""
        if pairs < self.batch_size:
            raise ValueError(
                f"A corpus of {pairs:,} pairs does not fill one batch of {self.batch_size:,}, and incomplete batches are "
                f"dropped. Lower the recipe's batch_size, or train on a larger corpus."
            )
        return Schedule(self, pairs)


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of a recipe on a corpus of `pairs`."""

    recipe: Recipe
    pairs: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest of an epoch is dropped, a different rest each time as the order is another."""
        return self.pairs // self.recipe.batch_size

    @property
    def left_out(self) -> int:
        """Pairs of an epoch that fill no batch."""
        return self.pairs % self.recipe.batch_size

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """Steps that are taken: all of them, or `max_steps`."""
        return min(self.total_steps, self.recipe.max_steps or self.total_steps)

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, ...: linear from `learning_rate_start` up to `learning_rate` over the warm-up, then a
        cosine towards `learning_rate_final` (FACTS: recipe)."""
        r, warmup = self.recipe, int(self.recipe.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return r.learning_rate_start + (r.learning_rate - r.learning_rate_start) * step / max(1, warmup - 1)
        progress = (step - warmup) / (self.total_steps - warmup)
        return (
            r.learning_rate_final + (r.learning_rate - r.learning_rate_final) * (1 + math.cos(math.pi * progress)) / 2
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run ends as. Equality means: the same run."""

    scale: str
    corpus: str
    variant: str
    seed: int
    model: ModelConfig
    recipe: Recipe
    corpus_fingerprint: dict

    def __post_init__(self) -> None:
        get_variant(self.variant)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"A seed is a whole number from 0 to 2^32 - 1; got {self.seed!r}.")
        object.__setattr__(self, "corpus_fingerprint", json.loads(json.dumps(self.corpus_fingerprint)))

    @property
    def name(self) -> str:
        return f"{self.corpus}-{self.variant}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "model": self.model.to_dict(), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        values = dict(_known(cls, {k: v for k, v in values.items() if k != "sessions"}))
        model, recipe = ModelConfig.from_dict(values.pop("model")), Recipe.from_dict(values.pop("recipe"))
        return cls(model=model, recipe=recipe, **values)

    def differences(self, other: RunConfig) -> list[str]:
        """Where `other` is another run, as "recipe.batch_size: 256 instead of 4096" (ours instead of its)."""
        free = {f"recipe.{f.name}" for f in fields(Recipe) if not f.compare}
        ours, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{key}: {ours.get(key)!r} instead of {theirs.get(key)!r}"
            for key in {**ours, **theirs}
            if key not in free and ours.get(key) != theirs.get(key)
        ]


def _known(cls, values: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"A {cls.__name__} has no setting {', '.join(unknown)}. It has {', '.join(names)}.")
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


# A run on disk


@dataclass(frozen=True)
class Run:
    """One trained model: `path`, `config`, `metrics` (a row every `log_every` steps) and `model()`."""

    path: Path
    config: RunConfig

    @property
    def finished(self) -> bool:
        return RunFolder(self.path).finished

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """step, epoch, samples, loss (nats), accuracy (in batch), logit_scale, learning_rate, gradient_norm,
        samples_per_second and lambda.<tower>.<layer>; the values a step was computed with, before its update."""
        path = RunFolder(self.path).metrics_path
        if not path.is_file():
            raise TrainingError(f"{self.path} has no metrics yet; train the run first.")
        return pd.read_csv(path)

    def model(self) -> CLIP:
        """The trained model, in evaluation mode, on the CPU."""
        if not self.finished:
            raise TrainingError(f"The run in {self.path} is not finished; start its training again and it goes on.")
        return load_model(RunFolder(self.path).weights_path)


def load_run(path: str | Path) -> Run:
    """The run in a folder, finished or not. Raises FileNotFoundError or ValueError if there is none."""
    folder = RunFolder(path)
    config = folder.read_config()
    if config is None:
        raise FileNotFoundError(f"There is no run in {path} (no config.json). Train one with `diffclip train`.")
    return Run(folder.path, RunConfig.from_dict(config))


def ensure_run(
    scale_name: str,
    corpus_name: str,
    variant: str,
    seed: int = 0,
    *,
    recipe: Recipe | None = None,
    run_dir: str | Path | None = None,
    progress: bool = True,
    trackers: tuple[str, ...] = ("tensorboard",),
    accelerator: Accelerator | None = None,
) -> Run:
    """The run of that name at that scale: found if it is finished, resumed if it was interrupted, else trained.

    recipe: instead of the scale's; run_dir: instead of data/runs/<scale>/<corpus>-<variant>-seed<k>. The rest as in `train`.
    A folder that holds another run is refused (TrainingError), naming the differences.
    """
    from diffclip.corpora import CorpusError, open_corpus  # these two import this module's Recipe
    from diffclip.scales import get_scale

    scale = get_scale(scale_name)
    spec = scale.corpus(corpus_name)
    recipe = recipe or scale.recipe
    run_dir = Path(run_dir) if run_dir else scale.run_dir(corpus_name, variant, seed)

    def config(fingerprint: dict) -> RunConfig:
        return RunConfig(scale.name, corpus_name, variant, seed, scale.model, recipe, fingerprint)

    found = load_run(run_dir) if RunFolder(run_dir).finished and RunFolder(run_dir).config_path.is_file() else None
    try:
        with _processes().main_process_first():  # a generated corpus is written by one process, read by all
            corpus = open_corpus(spec)
    except CorpusError:
        # To use a finished run, the corpus it was trained on need not be at hand.
        if found is None or found.config != config(found.config.corpus_fingerprint):
            raise
        log.info("%s is finished; its corpus is not at hand and was not compared.", run_dir)
        return found
    return train(
        config(corpus.fingerprint), run_dir, corpus, accelerator=accelerator, progress=progress, trackers=trackers
    )


# Training


def train(
    config: RunConfig,
    run_dir: str | Path,
    corpus,
    *,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    trackers: tuple[str, ...] = ("tensorboard",),
) -> Run:
    """Train what `config` says in `run_dir`, from where it stands: the beginning, the last state, or the end already.

    corpus: len(corpus) pairs, corpus[i] -> {"image": RGB PIL image, "captions": list of strings}, with a `fingerprint`.
    accelerator: one of your own (its precision and trackers then hold); by default one is made for the recipe. Under
    `accelerate launch` or notebook_launcher every process calls this, with a `run_dir` that all of them can read.
    progress: a bar with samples a second, where there is a terminal or a notebook to show it.
    trackers: of "tensorboard" (into run_dir/tensorboard) and "wandb".

    Raises TrainingError if the folder holds another run, is in use or damaged, if a loss or gradient is not finite, if a
    loading worker dies, if memory or disk is short; ValueError for settings that do not fit together. Whatever is
    raised, the state on disk is whole, and the same call goes on from it.
    """
    with ExitStack() as stack:
        return _Trainer(config, RunFolder(run_dir), corpus, accelerator, progress, trackers).run(stack)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's two groups: no decay for parameters with fewer than two dimensions and for names that hold "bias", "ln"
    or "bn" (FACTS: recipe), so norms, biases, the lambda vectors and the logit scale go free."""
    decay, free = [], []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn")) else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW as the recipe says. Fused where torch has it: one pass over the weights, on a CPU five times faster."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    groups = parameter_groups(model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate_start, betas=recipe.betas, eps=recipe.eps, fused=fused)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The mixed precision that a recipe's `precision` means on a device: "no", "bf16" or "fp16"."""
    if precision == "auto":
        if device.type != "cuda":
            return "no"  # bfloat16 on a CPU is slower than float32 unless it has AMX, and then differs from run to run
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"Precision 'fp16' needs a GPU, and this is {device.type!r}. Choose 'no' or 'auto'.")
    return precision


class _Trainer:
    def __init__(self, config: RunConfig, folder: RunFolder, corpus, accelerator, progress: bool, trackers) -> None:
        self.config, self.recipe, self.folder, self.corpus = config, config.recipe, folder, corpus
        self.schedule = config.recipe.schedule(len(corpus))
        self.progress = progress
        self.own_accelerator = accelerator is None
        self.accelerator = accelerator or make_accelerator(self.recipe, folder.path, trackers)
        self.device = self.accelerator.device
        self.processes = self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.steps = 0  # steps that are done
        self.saved = None  # the step of the state on disk
        _check_accelerator(self.accelerator, self.recipe)

    def run(self, stack: ExitStack) -> Run:
        self._everywhere(lambda: self._enter(stack))
        if self.folder.finished:
            return Run(self.folder.path, self.config)
        stack.enter_context(torch.random.fork_rng(devices=[]))  # the caller's random numbers stay the caller's
        self._build()
        self._resume()
        self._everywhere(self._record_session)
        metrics = bar = None
        try:
            if self.main:
                columns = [
                    "step",
                    "epoch",
                    "samples",
                    "loss",
                    "accuracy",
                    "logit_scale",
                    "learning_rate",
                    "gradient_norm",
                ]
                columns += ["samples_per_second", *(f"lambda.{name}" for name in self.clip.lambdas())]
                metrics = self.folder.metrics(columns, steps=self.steps)
                bar = self._bar()
            if self.own_accelerator:
                self._start_trackers()
            self._loop(metrics, bar)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"Out of memory on {self.device} with {self._piece} samples per forward. The global batch need not change: "
                f"lower chunk_size (now {self.recipe.chunk_size}), which keeps the loss exact through cached gradients, or "
                f"set gradient_checkpointing. {self._where()}"
            ) from error
        except RuntimeError as error:
            if death := _worker_death(error):
                raise TrainingError(
                    f"A loading worker died ({death}). Most often the machine ran out of memory: try fewer "
                    f"workers (now {self.recipe.workers}). {self._where()}"
                ) from error
            if self.processes > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
                raise TrainingError(
                    f"Another process of this training is gone ({str(error).splitlines()[0]}). Its own output says why. "
                    f"{self._where()}"
                ) from error
            raise
        finally:
            if bar is not None:
                bar.close()
            if metrics is not None:
                metrics.close()
            if self.own_accelerator:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
        self._everywhere(self._finish)
        return Run(self.folder.path, self.config)

    # Before the first step

    def _enter(self, stack: ExitStack) -> None:
        """Take the folder, and make sure that what it holds is this run."""
        stack.enter_context(self.folder.lock())
        self.folder.sweep()
        found = self.folder.read_config()
        if found is not None:
            self._refuse_another(RunConfig.from_dict(found), f"The folder {self.folder.path}")
        elif self.folder.finished or self.folder.state_path.is_file():
            raise TrainingError(
                f"{self.folder.path} holds weights or a state but no config.json, so it cannot be said which run they are "
                f"of. Restore the file, or train into another folder."
            )
        else:
            self.folder.write_config({**self.config.to_dict(), "sessions": []})

    def _refuse_another(self, found: RunConfig, what: str) -> None:
        if differences := self.config.differences(found):
            raise TrainingError(
                f"{what} holds another run than the one asked for: {'; '.join(differences)}. Ask for the run that is "
                f"there, delete it, or train into another folder."
            )

    def _build(self) -> None:
        self.clip = create_model(self.config.variant, self.config.model, seed=self.config.seed).to(self.device)
        self.clip.train()
        if self.recipe.gradient_checkpointing:
            self.clip.gradient_checkpointing(True)
        self.state = self._read_state()
        if self.state is not None:
            load_exactly(self.clip, self.state["model"], str(self.folder.state_path))
        if self.recipe.compile:
            # The towers, in place: parameter names stay, and DDP and autocast wrap them as they would otherwise.
            self.clip.vision.compile()
            self.clip.text.compile()
        self.parameters = list(self.clip.parameters())
        self.model, self.optimizer = self.accelerator.prepare(self.clip, make_optimizer(self.clip, self.recipe))

        share = self.recipe.batch_size // self.processes
        self._piece = min(self.recipe.chunk_size or share, share)
        self.views = TrainingViews(
            self.corpus,
            image_size=self.config.model.vision.image_size,
            context_length=self.config.model.text.context_length,
            crop_scale=self.recipe.crop_scale,
            seed=self.config.seed,
        )

    def _read_state(self) -> dict | None:
        state = self.folder.read_state()
        if state is not None:
            self._refuse_another(RunConfig.from_dict(state["config"]), f"The state in {self.folder.state_path}")
        return state

    def _resume(self) -> None:
        torch.default_generator.manual_seed(self.config.seed)  # nothing draws from it today; saved all the same
        if self.state is None:
            return
        state, self.state = self.state, None
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.steps = self.saved = state["step"]
        if state["processes"] != self.processes and self.main:
            log.warning(
                "The state was taken with %d process(es) and is resumed with %d. Exactly as they were: the global batches "
                "and their order, crops and captions, the schedule, weights and optimiser state. Sums over devices are "
                "added up in another order from here on, so the result agrees to rounding, not bit for bit.",
                state["processes"],
                self.processes,
            )

    def _record_session(self) -> None:
        config = self.folder.read_config() or {}
        session = {
            "from_step": self.steps,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "processes": self.processes,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "precision": self.accelerator.mixed_precision,
            "threads": torch.get_num_threads(),
            "chunk_size": self.recipe.chunk_size,
            "workers": self.recipe.workers,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "accelerate", "numpy")},
        }
        sessions = [*config.get("sessions", []), session]
        self.folder.write_config({**self.config.to_dict(), "sessions": sessions})
        log.info(
            "%s: %d steps of %d pairs from step %d; of %d pairs, each epoch leaves out another %d that fill no batch.",
            self.config.name, self.schedule.last_step, self.recipe.batch_size, self.steps, len(self.corpus), self.schedule.left_out,
        )  # fmt: skip

    def _start_trackers(self) -> None:
        self.accelerator.init_trackers(
            "diffclip",
            init_kwargs={
                # Points after the state belong to a stretch that is computed again.
                "tensorboard": {"purge_step": self.steps + 1},
                "wandb": {"name": f"{self.config.scale}/{self.config.name}", "config": self.config.to_dict()},
            },
        )

    def _bar(self) -> tqdm:
        size = self.recipe.batch_size
        return tqdm(
            total=self.schedule.last_step * size,
            initial=self.steps * size,
            desc=self.config.name,
            unit=" samples",
            unit_scale=True,
            disable=not (self.progress and _someone_watches()),
        )

    # Steps

    def _loop(self, metrics: Metrics | None, bar: tqdm | None) -> None:
        order = BatchOrder(
            len(self.corpus),
            self.recipe.batch_size,
            seed=self.config.seed,
            first=self.steps,
            last=self.schedule.last_step,
            rank=self.accelerator.process_index,
            world=self.processes,
            piece=self._piece,
        )
        loader = load(self.views, order, workers=self.recipe.workers, pin_memory=self.device.type == "cuda")
        timed_from, timed_at = self.steps, time.perf_counter()
        for pieces in self._batches(loader, order.pieces_per_step):
            rate = self.schedule.learning_rate(self.steps)
            result = backward_through_batch(self.model, pieces, accelerator=self.accelerator, view=normalise)
            if self.accelerator.scaler is not None:
                self.accelerator.unscale_gradients(self.optimizer)
            norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            scalars = torch.stack([*(result[k].float() for k in ("loss", "accuracy", "logit_scale")), norm]).tolist()
            self._refuse_nonfinite(scalars[0], scalars[3])

            step = self.steps + 1
            row = None
            if self.main and (step % self.recipe.log_every == 0 or step in (1, self.schedule.last_step)):
                now = time.perf_counter()
                row = {
                    "step": step,
                    "epoch": step / self.schedule.steps_per_epoch,
                    "samples": step * self.recipe.batch_size,
                    **dict(zip(("loss", "accuracy", "logit_scale"), scalars, strict=False)),
                    "learning_rate": rate,
                    "gradient_norm": scalars[3],
                    "samples_per_second": (step - timed_from) * self.recipe.batch_size / (now - timed_at),
                    **{f"lambda.{name}": value for name, value in self.clip.lambdas().items()},
                }
                timed_from, timed_at = step, now

            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.clip.clamp_logit_scale()
            self.steps = step

            if row is not None:
                metrics.append(row)
                self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
                bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.2f}", refresh=False)
            if bar is not None:
                bar.update(self.recipe.batch_size)
            if step % self.recipe.save_every == 0 and step < self.schedule.last_step:
                self._everywhere(lambda: self._save(metrics))

    def _batches(self, loader, pieces_per_step: int) -> Iterator[list[Piece]]:
        pieces: list[Piece] = []
        for images, tokens in loader:
            pieces.append((images.to(self.device, non_blocking=True), tokens.to(self.device, non_blocking=True)))
            if len(pieces) == pieces_per_step:
                yield pieces
                pieces = []

    def _refuse_nonfinite(self, loss: float, norm: float) -> None:
        # With fp16 a gradient that overflows is ordinary: the scaler leaves the step out and lowers its scale.
        if math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None):
            return
        what = f"The loss became {loss}" if not math.isfinite(loss) else f"The gradient's norm became {norm}"
        # The weights are those from before this step, and good: nothing that is not finite was ever stepped with.
        self._everywhere(lambda: self._save(None))
        raise TrainingError(
            f"{what} at step {self.steps + 1} of {self.config.name}. The last good state, that of step {self.steps}, is in "
            f"{self.folder.state_path}. If a step repeated from there fails again: lower learning_rate, lengthen "
            f"warmup_epochs, or train with precision='no'; each of these makes another run, in a folder of its own. Look at "
            f"the last rows of {self.folder.metrics_path}: a loss that rose before says the rate, one that did not says the "
            f"precision or the data."
        )

    def _save(self, metrics: Metrics | None) -> None:
        if self.saved == self.steps:
            return
        if metrics is not None:
            metrics.sync()
        self.folder.write_state(
            {
                "config": self.config.to_dict(),
                "step": self.steps,
                "epoch": self.steps // self.schedule.steps_per_epoch,
                "processes": self.processes,
                "model": self.clip.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "rng": torch.get_rng_state(),
            }
        )
        self.saved = self.steps

    def _finish(self) -> None:
        with self.folder.explains_a_full_disk():
            save_model(self.clip, self.folder.weights_path, {"run": self.config.to_dict(), "steps": self.steps})
        self.folder.remove_state()

    # Helpers

    def _everywhere(self, action: Callable[[], None]) -> None:
        """Do it on the main process; if it fails there, fail in all, or the others would wait for ever."""
        error: Exception | None = None
        if self.main:
            try:
                action()
            except Exception as raised:  # noqa: BLE001 - raised again below, in every process
                error = raised
        if self.processes > 1:
            message = broadcast_object_list([error and str(error)])[0]
            if error is None and message is not None:
                error = TrainingError(message)
        if error is not None:
            raise error

    def _where(self) -> str:
        if self.saved is None:
            return "No state had been saved yet; started again, the run begins at its first step."
        return f"The state of step {self.saved} is on disk; started again, the run goes on from there."


def _worker_death(error: BaseException | None) -> str | None:
    """What PyTorch says of a loading worker that died, in the error or in what it happened in the middle of.

    PyTorch learns of it by a signal and raises wherever the main process is just then; in the middle of saving a state,
    the unfinished file's own error comes on top.
    """
    while error is not None:
        if "DataLoader worker" in str(error):
            return str(error).splitlines()[0]
        error = error.__cause__ or error.__context__
    return None


def _processes() -> PartialState:
    """The processes and the device. Said to be CPUs where there is nothing else: left to itself, Accelerate overlooks that
    several processes were launched, and each would think itself the only one."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if state.num_processes > 1:
        _leave_the_group_at_exit()
    return state


@cache  # once
def _leave_the_group_at_exit() -> None:
    """A process that ends inside its group may abort on the way out, and the launcher then calls a finished run a failure.

    Not before the exit: one process may train several runs, and a group that was left cannot be joined again.
    """
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


def make_accelerator(recipe: Recipe, run_dir: Path = Path(), trackers: tuple[str, ...] = ()) -> Accelerator:
    """Accelerate as this trainer uses it: the recipe's precision, DDP without surprises, trackers into `run_dir`."""
    precision = resolve_precision(recipe.precision, _processes().device)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        # Accelerate fixes the precision for the life of a process; a notebook or doctor goes on to another scale.
        AcceleratorState._reset_state()
    for name in trackers:
        if name not in TRACKERS:
            raise ValueError(f"Unknown tracker {name!r}; choose from {', '.join(TRACKERS)}.")
        if find_spec(name) is None:
            raise ValueError(f"The tracker {name!r} needs the package of that name: pip install {name}.")
    return Accelerator(
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "tensorboard")),
        # The towers have no buffers that change, so none need be sent around before every forward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def _check_accelerator(accelerator: Accelerator, recipe: Recipe) -> None:
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"This trainer shares the batch over devices (DDP) and knows no {accelerator.distributed_type.value}. Run "
            f"`accelerate config` and choose multi-GPU or multi-CPU without DeepSpeed, FSDP or Megatron-LM."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "Gradient accumulation over batches is another objective for a contrastive loss: each batch would see only its "
            "own negatives. Leave gradient_accumulation_steps at 1 and set the recipe's chunk_size, which is exact."
        )
    if recipe.precision != "auto" and accelerator.mixed_precision != recipe.precision:
        raise ValueError(
            f"The recipe asks for precision {recipe.precision!r}, the accelerator has {accelerator.mixed_precision!r}."
        )
    if recipe.batch_size % accelerator.num_processes:
        raise ValueError(
            f"A global batch of {recipe.batch_size} cannot be shared equally by {accelerator.num_processes} processes. "
            f"Choose a number of processes that divides it."
        )


def _someone_watches() -> bool:
    """On a terminal or in a notebook; elsewhere a bar would fill a log file."""
    shell = sys.modules.get("IPython")
    in_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return in_notebook or sys.stderr.isatty()
