"""`diffclip doctor`: what this machine is, whether the kit's packages are as locked, and which scales it can run."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from diffclip.environment import ROOT, pinned, unmet
from diffclip.reproduce import duration

GB = 1e9
IMPORTS = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "datasets",
    "open_clip",
    "transformers",
    "sklearn",
    "papermill",
)


@dataclass(frozen=True)
class Machine:
    """What a scale is held against: cores this process may use, GB of memory, GB free where the data goes, GPUs."""

    cores: int
    memory: float
    memory_free: float
    disk_free: float
    gpus: tuple[tuple[str, float], ...]  # name, GB of memory

    def lacks(self, needs) -> list[str]:
        """What a scale needs and is not here, in words; memory and disk with a tenth of grace."""
        gpus = [memory for _, memory in self.gpus if memory >= 0.9 * needs.gpu_memory]
        found = []
        if len(gpus) < needs.gpus:
            found.append(f"{needs.gpus} GPU{'s' * (needs.gpus > 1)} with {needs.gpu_memory:g} GB (here {len(gpus)})")
        if self.cores < needs.cores:
            found.append(f"{needs.cores} cores (here {self.cores})")
        if self.memory < 0.9 * needs.memory:
            found.append(f"{needs.memory:g} GB of memory (here {self.memory:.0f})")
        if self.disk_free < 0.9 * needs.disk:
            found.append(f"{needs.disk:g} GB of disk (here {self.disk_free:.0f} free)")
        return found


def report(say: Callable[[str], None] = print) -> None:
    """Say what is here and what it is good for; trains some steps of the models whose time it tells."""
    from diffclip.paths import data_root
    from diffclip.scales import SCALES

    machine = look(data_root())
    for label, text in _facts(machine, data_root()):
        say(f"{label:<10}{text}")
    pace = Pace()
    for scale in SCALES.values():
        lacks = machine.lacks(scale.needs)
        say(f"\n{scale.name:<10}{'not here: needs ' + ', '.join(lacks) if lacks else 'feasible'}")
        say(f"{'':<10}{scale.summary}")
        for line in _times(scale, pace, bool(lacks)):
            say(f"{'':<10}{line}")


class Pace:
    """How fast this machine trains. A model is timed on what it is meant for; one meant for GPUs is, on a CPU, reckoned
    from the mini model by the operations of an image and its caption."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[float, str]] = {}

    def of(self, scale) -> tuple[float, str]:
        """(pairs a second on all devices of this machine together, "measured" or "reckoned")"""
        if scale.name not in self.known:
            self.known[scale.name] = self._measure(scale)
        return self.known[scale.name]

    def _measure(self, scale) -> tuple[float, str]:
        import torch
        from accelerate.state import AcceleratorState

        from diffclip.budget import dry_run, model_flops
        from diffclip.scales import get_scale

        if scale.needs.gpus and not torch.cuda.is_available():
            mini = get_scale("mini")
            ratio = model_flops(mini.model).training / model_flops(scale.model).training
            return self.of(mini)[0] * ratio, "reckoned"
        budget = dry_run(scale.name, "cc12m", "diffclip")
        AcceleratorState._reset_state()  # it keeps a process's precision, and scales differ in theirs
        return scale.recipe.batch_size / budget.step_seconds, "measured"


def trained_pairs(scale) -> tuple[int, int]:
    """(models, pairs seen by all of them) that the notebooks train at a scale: CLIP and DiffCLIP on both corpora, and for
    figure 5 the two other variants on the larger one. A real corpus counts with the paper's number of pairs."""
    from diffclip.budget import PAPER_PAIRS

    pairs = {name: spec.pairs or PAPER_PAIRS[name] for name, spec in scale.corpora.items()}
    models = [pairs["cc3m"]] * 2 + [pairs["cc12m"]] * 4
    return len(models) * len(scale.seeds), sum(models) * scale.recipe.epochs * len(scale.seeds)


def _times(scale, pace: Pace, lacking: bool) -> Iterable[str]:
    training = 0.0
    if scale.trains:
        rate, how = pace.of(scale)
        models, pairs = trained_pairs(scale)
        training = pairs / rate  # seconds
        yield f"training {models} models here: {roughly(training)} ({rate:,.{0 if rate >= 10 else 2}f} pairs/s, {how})"
    before = _last_time(scale)
    if before is not None:
        yield f"all notebooks: took {duration(before)} here"
    elif not lacking and training < 60 * scale.minutes:
        yield f"all notebooks: {roughly(60 * scale.minutes)}"
    else:
        yield f"all notebooks: {roughly(60 * scale.minutes)} on an otherwise idle machine with {scale.needs}"


def roughly(seconds: float) -> str:
    """An estimate in words, with no more digits than it deserves."""
    for unit, length, enough in (("seconds", 1, 90), ("minutes", 60, 90), ("hours", 3600, 48), ("days", 86400, 1000)):
        if seconds < enough * length:
            count = max(1, round(seconds / length))
            return f"about {count} {unit if count > 1 else unit[:-1]}"
    return "years"


def _last_time(scale) -> float | None:
    """Seconds that all notebooks of the checkout took here at this scale, if each has been run."""
    from diffclip.reproduce import find_notebooks
    from diffclip.syllabus import recorded_seconds

    try:
        found = [recorded_seconds(path.stem, scale.name) for path in find_notebooks()]
    except FileNotFoundError:
        return None
    return sum(f[0] for f in found) if all(f and f[1] == "here" for f in found) else None


def _facts(machine: Machine, data: Path) -> list[tuple[str, str]]:
    import torch

    from diffclip import __version__

    gpus = [f"{name} ({memory:.0f} GB)" for name, memory in machine.gpus]
    used = ", ".join(f"{name} {_size(data / name):.1f} GB" for name in ("cache", "runs"))
    facts = [
        ("diffclip", f"{__version__}, in {ROOT}"),
        (
            "machine",
            f"{platform.system()} {platform.machine()}, {machine.cores} cores, {torch.get_num_threads()} used by torch",
        ),
        ("memory", f"{machine.memory:.0f} GB, {machine.memory_free:.0f} GB free"),
        ("device", ", ".join(gpus) if gpus else "no GPU that torch can use: everything runs on the CPU"),
        ("disk", f"{machine.disk_free:.0f} GB free for {data.resolve()} (now there: {used})"),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("torch", f"{torch.__version__}" + (f", CUDA {torch.version.cuda}" if machine.gpus else "")),
        ("packages", _packages()),
        ("hub", _hub()),
    ]
    return facts


def _packages() -> str:
    problems = []
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever a broken installation raises is what the reader must know
            problems.append(f"{name} does not import ({str(error).strip().splitlines()[0]})")
    if problems:
        return "BROKEN: " + "; ".join(problems)
    if not (ROOT / "requirements.lock").is_file():
        return "all import; no requirements.lock here to compare with"
    different = unmet(pinned())
    if not different:
        return "all as in requirements.lock"
    shown = ", ".join(different[:4]) + (f" and {len(different) - 4} more" if len(different) > 4 else "")
    return f"all import; other versions than requirements.lock has: {shown}"


def _hub() -> str:
    from huggingface_hub import constants

    mode = "offline mode (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"online, {constants.ENDPOINT}"
    return f"{mode}; cache in {constants.HF_HUB_CACHE}. Only the scales released and paper use it."


def _size(folder: Path) -> float:
    """GB below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / GB


def look(data: Path) -> Machine:
    """Measure the machine; `data` is the folder whose disk counts (it need not exist yet)."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    limit = _memory_limit() or memory.total
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=min(memory.total, limit) / GB,
        memory_free=min(memory.available, limit) / GB,
        disk_free=shutil.disk_usage(_existing(data)).free / GB,
        gpus=tuple((gpu.name, gpu.total_memory / GB) for gpu in gpus),
    )


def _memory_limit() -> int | None:
    """Bytes that a container (cgroup) allows, where there is such a limit."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):
            continue
    return None


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
