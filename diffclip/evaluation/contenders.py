"""Who is compared at a scale: runs trained here, or the authors' checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from diffclip import training
from diffclip.corpora import REAL_NAMES
from diffclip.model import get_variant
from diffclip.released import RELEASED
from diffclip.scales import get_scale

from .features import Subject, subject

log = logging.getLogger("diffclip")


def contenders(
    scale: str,
    corpora: Sequence[str] = ("cc3m", "cc12m"),
    variants: Sequence[str] = ("clip", "diffclip"),
    *,
    seeds: Sequence[int] | None = None,
    progress: bool = True,
) -> list[Subject]:
    """The models to evaluate at a scale, ready for `evaluate`: every variant on every corpus, for every seed of training
    (by default the scale's).

    Where the scale trains, a run is found, resumed or trained. At `released` they are checkpoints from the hub; one
    whose address is not known (the baselines', see released.RELEASED) is left out with a word that says how to name
    it.
    """
    chosen = get_scale(scale)
    out = []
    for corpus in corpora:
        for variant in variants:
            label = get_variant(variant).label
            if chosen.trains:
                for seed in chosen.seeds if seeds is None else seeds:
                    run = training.ensure_run(scale, corpus, variant, seed, progress=progress)
                    out.append(subject(run))
                continue
            name = f"{variant}-{corpus}"
            setting = "DIFFCLIP_RELEASED_" + name.upper().replace("-", "_")
            if name not in RELEASED and setting not in os.environ:
                log.warning(
                    "No checkpoint of %s after %s is known. If you have one, set %s to its path or hub repository.",
                    label, REAL_NAMES.get(corpus, corpus), setting,
                )  # fmt: skip
                continue
            found = subject(name, name=name, pretraining=REAL_NAMES.get(corpus, corpus))
            out.append(replace(found, model=variant))
    return out
