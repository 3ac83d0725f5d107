"""What a training will take, before it is started: steps, operations, memory, disk, hours.

    print(dry_run("paper", "cc12m", "diffclip"))

Counted where counting is possible, measured where it is not: some steps are trained on random pixels and some pictures
decoded, and the rest is multiplication. What is not known is named as reckoned.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image

from diffclip import world
from diffclip.images import normalise
from diffclip.large_batch import backward_through_batch
from diffclip.loader import TrainingViews
from diffclip.model import CLIP, ModelConfig, create_model, get_size, get_variant
from diffclip.scales import get_scale
from diffclip.training import Recipe, Schedule, make_accelerator, make_optimizer

# FACTS: pairs left after download, and what CC12M took on 8 A100s.
PAPER_PAIRS = {"cc3m": 2_300_000, "cc12m": 7_900_000}
PAPER_A100_DAYS = 10
A100_PEAK = 312e12  # operations a second in bfloat16, from the data sheet
REAL_PAIR_BYTES = 30_000  # a photograph with its shorter edge at 224 as JPEG, and its caption
MLP_RATIO = 4  # of the towers' blocks
FULL = 0.9  # share of a device's memory that can be planned with


# Operations


@dataclass(frozen=True)
class Flops:
    """Forward operations of one image and one caption, by tower and part; `training` is what a pair costs in training."""

    vision: dict[str, int]
    text: dict[str, int]

    @property
    def image(self) -> int:
        return sum(self.vision.values())

    @property
    def caption(self) -> int:
        return sum(self.text.values())

    @property
    def pair(self) -> int:
        return self.image + self.caption

    @property
    def training(self) -> int:
        """Forward and backward: the backward pass has two matrix products for each one forward."""
        return 3 * self.pair


def model_flops(size: str | ModelConfig, variant: str = "clip") -> Flops:
    """The operations of a model by formula.

    Convention: the matrix products of the equations, a multiplication and an addition as two operations; softmax, norms,
    activations and the subtraction of maps are left out (under one per cent), as is the loss; a causal map counts in full.
    So a variant costs what CLIP costs: two maps from halves of the heads are as many products as one map from all, and
    the difference is taken before the values. (An implementation that multiplies the values by each map does more; see
    anatomy.counted_flops.) Work that is repeated to save memory is not an operation of the model either.
    """
    get_variant(variant)
    config = get_size(size)
    v, t = config.vision, config.text
    patches = 2 * v.grid**2 * 3 * v.patch_size**2 * v.width
    return Flops(
        {"patches": patches, **_blocks(v.tokens, v.width, v.depth), "projection": 2 * v.width * config.embed_dim},
        {**_blocks(t.context_length, t.width, t.depth), "projection": 2 * t.width * config.embed_dim},
    )


def _blocks(tokens: int, width: int, depth: int) -> dict[str, int]:
    return {
        "queries, keys, values, output": depth * 2 * tokens * 4 * width**2,
        "maps": depth * 2 * tokens**2 * width,
        "maps times values": depth * 2 * tokens**2 * width,
        "MLP": depth * 2 * tokens * 2 * MLP_RATIO * width**2,
    }


# Measured


@dataclass(frozen=True)
class Measured:
    """What some steps on this machine told."""

    seconds_per_sample: float  # forward and backward on one device, with the second forward of cached gradients if used
    seconds_per_update: float  # AdamW
    activations: float  # bytes that a sample keeps for its backward pass
    view_seconds: float  # decode, crop and tokenise one pair, on one core
    pair_bytes: float  # of a generated pair on disk
    probe: int  # samples per forward while measuring


def measure(
    model: CLIP, recipe: Recipe, image_size: int, *, accelerator: Accelerator, chunk: int, cached: bool
) -> Measured:
    """Train some steps of at most `chunk` samples per forward on random pixels, and decode some generated pictures."""
    device, config = accelerator.device, model.config
    model, optimizer = accelerator.prepare(model.to(device).train(), make_optimizer(model, recipe))
    few = activations_per_sample(model, config, device)
    if recipe.gradient_checkpointing:
        few = _with_checkpointing(few, config)
        accelerator.unwrap_model(model).gradient_checkpointing(True)
    if recipe.compile:
        accelerator.unwrap_model(model).vision.compile()
        accelerator.unwrap_model(model).text.compile()
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        probe = max(1, min(chunk, int(0.7 * free / few)))
    else:  # a CPU is as quick with few samples as with many; a second or so of work
        probe = max(1, min(chunk, int(1e11 / model_flops(config).training)))
    pieces = [_random_piece(config, probe, device) for _ in range(2 if cached else 1)]
    forward_backward = _time(
        lambda: backward_through_batch(model, pieces, accelerator=accelerator, view=normalise), device
    )
    update = _time(optimizer.step, device)
    optimizer.zero_grad()
    view_seconds, pair_bytes = _measure_views(config, recipe, image_size)
    return Measured(forward_backward / (probe * len(pieces)), update, few, view_seconds, pair_bytes, probe)


def _with_checkpointing(few: float, config: ModelConfig) -> float:
    """Reckoned: what each block was given, in float32, and one block's own activations."""
    towers = ((config.vision.depth, config.vision.tokens, config.vision.width),
              (config.text.depth, config.text.context_length, config.text.width))  # fmt: skip
    return few / max(depth for depth, _, _ in towers) + sum(
        4 * depth * tokens * width for depth, tokens, width in towers
    )


def activations_per_sample(model: CLIP, config: ModelConfig, device: torch.device) -> float:
    """Bytes that autograd keeps of one more sample between forward and backward."""

    def kept(samples: int) -> int:
        seen: dict[int, int] = {}

        def note(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                alive.append(tensor)  # or its address would be used again
            return tensor

        alive: list[torch.Tensor] = []
        images, tokens = _random_piece(config, samples, device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(normalise(images), tokens)
        return sum(seen.values())

    return (kept(3) - kept(1)) / 2


def _random_piece(config: ModelConfig, samples: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size, length = config.vision.image_size, config.text.context_length
    images = torch.randint(0, 256, (samples, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, config.text.vocab_size, (samples, length), generator=generator)
    return images.to(device), tokens.to(device)


def _time(action: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds of the quickest repeat, after one to warm up."""
    best = float("inf")
    for repeat in range(1 + repeats):
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - began)
    return best


class _Scenes:
    """A few generated pictures as JPEG, the way an indexed corpus holds its pairs."""

    def __init__(self, image_size: int, scenes: int = 16) -> None:
        self.pairs = []
        for index in range(scenes):
            scene, file = world.sample_scene(index, seed=0), io.BytesIO()
            Image.fromarray(world.render(scene, image_size)).save(file, "JPEG", quality=95)
            self.pairs.append((file.getvalue(), world.captions(scene)))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        content, captions = self.pairs[index]
        return {"image": Image.open(io.BytesIO(content)).convert("RGB"), "captions": captions}


def _measure_views(config: ModelConfig, recipe: Recipe, image_size: int) -> tuple[float, float]:
    scenes = _Scenes(image_size)
    views = TrainingViews(
        scenes,
        image_size=config.vision.image_size,
        context_length=config.text.context_length,
        crop_scale=recipe.crop_scale,
        seed=0,
    )
    everything = np.arange(len(scenes))
    seconds = _time(lambda: views[0, everything], torch.device("cpu")) / len(scenes)
    size = np.mean([len(content) + sum(map(len, captions)) for content, captions in scenes.pairs])
    return seconds, float(size)


# The whole


@dataclass(frozen=True)
class Budget:
    """A training reckoned up; print it for a table, or use its numbers."""

    title: str
    schedule: Schedule
    pairs_source: str
    flops: Flops
    parameters: int
    model: ModelConfig
    devices: int
    device: str
    precision: str
    chunk: int
    measured: Measured
    corpus_bytes: float
    device_memory: float  # bytes of one device
    cores: int
    on_gpu: bool

    @property
    def recipe(self) -> Recipe:
        return self.schedule.recipe

    @property
    def steps(self) -> int:
        return self.schedule.last_step

    @property
    def samples(self) -> int:
        return self.steps * self.recipe.batch_size

    @property
    def image_tokens(self) -> int:
        return self.samples * self.model.vision.tokens

    @property
    def text_tokens(self) -> int:
        return self.samples * self.model.text.context_length

    @property
    def total_flops(self) -> float:
        return float(self.flops.training) * self.samples

    @property
    def share(self) -> int:
        """Samples of the global batch on one device."""
        return self.recipe.batch_size // self.devices

    @property
    def fixed_memory(self) -> float:
        """Bytes on a device that do not depend on the chunk: float32 weights, gradients and AdamW's two moments, the
        batch's pixels, tokens and embeddings, and five arrays of the loss's logits."""
        m, batch = self.model, self.recipe.batch_size
        pixels = 3 * m.vision.image_size**2 + 8 * m.text.context_length
        embeddings = 2 * 4 * m.embed_dim
        return 16 * self.parameters + self.share * (pixels + 2 * embeddings + 5 * 4 * batch) + batch * embeddings

    @property
    def activation_memory(self) -> float:
        return self.chunk * self.measured.activations

    @property
    def memory(self) -> float:
        return self.fixed_memory + self.activation_memory

    @property
    def largest_chunk(self) -> int:
        """The largest power of two of samples per forward that a device holds; 0 if not even one fits."""
        room = FULL * self.device_memory - self.fixed_memory
        fits = int(room / self.measured.activations) if room > 0 else 0
        return min(1 << (fits.bit_length() - 1), self.share) if fits else 0

    @property
    def run_bytes(self) -> float:
        """The run's folder at its fullest: two states of weights and moments while one replaces the other, and the model."""
        return (2 * 12 + 4) * self.parameters

    @property
    def step_seconds(self) -> float:
        compute = self.share * self.measured.seconds_per_sample + self.measured.seconds_per_update
        loading = self.share * self.measured.view_seconds
        workers = self.recipe.workers
        if not workers:
            return compute + loading
        if not self.on_gpu:  # workers take their time from the same cores
            return compute + loading / self.cores
        return max(compute, loading / workers)

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / 3600

    def rows(self) -> Iterator[tuple[str, str]]:
        """The lines of the table: (what, how much)."""
        r, s, m = self.recipe, self.schedule, self.measured
        yield (
            "corpus",
            f"{s.pairs:,} pairs ({self.pairs_source}); {s.left_out:,} an epoch fill no batch and are left out",
        )
        early = f", stopped early by max_steps ({s.total_steps:,} in all)" if self.steps < s.total_steps else ""
        yield "steps", f"{self.steps:,} of {r.batch_size:,} pairs, {s.steps_per_epoch:,} an epoch{early}"
        yield "samples", f"{self.samples:,} pairs seen"
        yield "tokens", f"{_count(self.image_tokens)} of images, {_count(self.text_tokens)} of text"
        yield "operations", f"{self.total_flops:.3g} FLOP, {_count(self.flops.training)} a pair forward and backward"
        chunks = -(-self.share // self.chunk)
        way = f"{chunks} chunks of {self.chunk} by cached gradients" if chunks > 1 else "in one forward pass"
        yield "devices", f"{self.devices} x {self.device}, precision {self.precision}; {self.share:,} pairs each, {way}"
        parts = f"{_bytes(self.fixed_memory)} fixed, {_bytes(self.activation_memory)} activations"
        fits = "fits" if self.memory <= FULL * self.device_memory else self._advice()
        yield "memory", f"{_bytes(self.memory)} a device ({parts}) of the {_bytes(self.device_memory)} it has: {fits}"
        yield "disk", f"{_bytes(self.run_bytes)} for the run, about {_bytes(self.corpus_bytes)} for the corpus"
        yield "time", f"{_span(3600 * self.hours)} at {r.batch_size / self.step_seconds:,.3g} pairs/s"
        loading = f"{_span(m.view_seconds)} a pair and core to load, by {r.workers} workers a device"
        yield (
            "measured",
            (
                f"{1e3 * m.seconds_per_sample:.3g} ms a pair and device in forward passes of {m.probe}, "
                f"{1e3 * m.seconds_per_update:.3g} ms an update, {loading}"
            ),
        )
        a100_seconds = PAPER_A100_DAYS * 86400
        pace = _paper_flops() / a100_seconds  # operations a second
        yield (
            "the paper",
            (
                f"CC12M in about {PAPER_A100_DAYS} A100-days, {pace / A100_PEAK:.0%} of their peak; at that pace this "
                f"training takes {_span(self.total_flops / pace)} of one A100"
            ),
        )

    def _advice(self) -> str:
        if self.largest_chunk:
            return f"does not fit; set chunk_size to {self.largest_chunk} or less"
        return "does not fit at any chunk_size; use more devices or gradient_checkpointing"

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {name:<12}{text}" for name, text in self.rows())])


def dry_run(
    scale_name: str,
    corpus_name: str,
    variant: str,
    *,
    recipe: Recipe | None = None,
    pairs: int | None = None,
    devices: int | None = None,
) -> Budget:
    """What `ensure_run` with the same arguments would take on this machine. Measures for some seconds, writes nothing.

    recipe: instead of the scale's. pairs: size of the corpus; by default what the scale says, or for a real corpus the
    paper's number. devices: by default the processes of this launch, or else all GPUs, or one CPU. Raises ValueError
    for names that are not known, or a batch that the devices cannot share equally.
    """
    scale = get_scale(scale_name)
    spec = scale.corpus(corpus_name)
    recipe = recipe or scale.recipe
    config = scale.model
    source = "as asked"
    if pairs is None:
        pairs, source = (spec.pairs, "generated") if spec.pairs else (PAPER_PAIRS[spec.name], "the paper's number")
    accelerator = make_accelerator(recipe)
    device = accelerator.device
    on_gpu = device.type == "cuda"
    if devices is None:
        devices = max(accelerator.num_processes, torch.cuda.device_count() if on_gpu else 1)
    if recipe.batch_size % devices:
        raise ValueError(
            f"A global batch of {recipe.batch_size} cannot be shared equally by {devices} devices. Choose a number of "
            f"devices that divides it, or another batch_size."
        )
    schedule = recipe.schedule(pairs)
    share = recipe.batch_size // devices
    chunk = min(recipe.chunk_size or share, share)
    model = create_model(variant, config, seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    measured = measure(model, recipe, spec.image_size, accelerator=accelerator, chunk=chunk, cached=chunk < share)
    return Budget(
        title=f"{variant} on {spec.display_name} at scale {scale.name}",
        schedule=schedule,
        pairs_source=source,
        flops=model_flops(config, variant),
        parameters=parameters,
        model=config,
        devices=devices,
        device=torch.cuda.get_device_name(device) if on_gpu else f"CPU ({torch.get_num_threads()} threads)",
        precision=accelerator.mixed_precision,
        chunk=chunk,
        measured=measured,
        corpus_bytes=pairs * (measured.pair_bytes if spec.source == "world" else REAL_PAIR_BYTES),
        device_memory=torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else psutil.virtual_memory().total,
        cores=torch.get_num_threads(),
        on_gpu=on_gpu,
    )


def _paper_flops() -> float:
    recipe = Recipe()
    schedule = recipe.schedule(PAPER_PAIRS["cc12m"])
    return float(model_flops("vit_b_16").training) * schedule.total_steps * recipe.batch_size


def _count(number: float) -> str:
    return _in_thousands(number, "", " thousand", " million", " billion", " trillion")


def _bytes(number: float) -> str:
    return _in_thousands(number, " bytes", " kB", " MB", " GB", " TB")


def _in_thousands(number: float, *units: str) -> str:
    for unit in units[:-1]:
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}{units[-1]}"


def _span(seconds: float) -> str:
    """A time in the unit that suits it: 0.03 ms to 88,000 days."""
    for unit, length, least in (("days", 86400, 2), ("hours", 3600, 1), ("minutes", 60, 1), ("s", 1, 1)):
        if seconds >= least * length:
            return f"{float(f'{seconds / length:.3g}'):,g} {unit}"
    return f"{1000 * seconds:.3g} ms"
