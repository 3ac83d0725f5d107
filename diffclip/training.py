"""The trainer: the paper's recipe, exact at any number of devices, resumable at any step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


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

    def __post_init__(self):
        # A recipe read back from JSON has lists where this one has tuples; equality must not depend on that.
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"A recipe has no setting named {', '.join(unknown)}. It has: {_names(cls)}.")
        return cls(**values)


def _names(cls) -> str:
    return ", ".join(f.name for f in fields(cls))
