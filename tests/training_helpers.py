"""What the training tests share: a tiny corpus, runs of it, and processes to run them in.

The processes come from a fork server that has imported this module: they start in milliseconds, with no threads of the
test process, and can be killed as hard as a test likes.
"""

import functools
import multiprocessing
import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import diffclip.loader
from diffclip.model import SIZES
from diffclip.tokenizer import tokenize
from diffclip.training import Recipe, RunConfig, train

tokenize("loaded once, here, for all the processes that are forked from this one")

RECIPE = Recipe(
    epochs=3, batch_size=16, learning_rate=2e-3, weight_decay=0.1, precision="no", log_every=1, save_every=3
)  # 70 pairs: 4 steps an epoch, 12 in all


class TinyCorpus:
    """Coloured noise, captioned with its colour; every pair made from its number."""

    def __init__(self, pairs: int = 70):
        self.pairs = pairs
        self.fingerprint = {"name": "tiny", "pairs": pairs, "skipped": {}}

    def __len__(self):
        return self.pairs

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        colour = rng.integers(0, 256, 3)
        pixels = np.clip(colour + rng.normal(0, 20, (40, 36, 3)), 0, 255).astype(np.uint8)
        words = " ".join(str(c // 32) for c in colour)
        return {"image": Image.fromarray(pixels), "captions": [f"colour {words}", f"a patch of {words}", words]}


class HookedCorpus(TinyCorpus):
    """Calls `hook(count)` before the count-th pair (from 1) that this process reads."""

    def __init__(self, hook, pairs: int = 70):
        super().__init__(pairs)
        diffclip.loader.KEPT_BYTES = 0  # or the loader would read each pair once only
        self.hook, self.count = hook, 0

    def __getitem__(self, index):
        self.count += 1
        self.hook(self.count)
        return super().__getitem__(index)


def config(variant="diffclip", seed=0, size="smoke", pairs=70, **recipe) -> RunConfig:
    model = SIZES[size] if isinstance(size, str) else size
    return RunConfig("smoke", "tiny", variant, seed, model, replace(RECIPE, **recipe), TinyCorpus(pairs).fingerprint)


def quiet_train(run_config, run_dir, corpus=None, **kwargs):
    return train(run_config, run_dir, corpus or TinyCorpus(), **{"progress": False, "trackers": (), **kwargs})


def weights(run_dir) -> dict[str, bytes]:
    """The trained weights to the bit (the file's header also says with how many workers, say, they were made)."""
    return {k: v.numpy().tobytes() for k, v in load_file(Path(run_dir) / "model.safetensors").items()}


def metrics_without_time(run):
    return run.metrics.drop(columns="samples_per_second")


# Processes


@functools.cache
def _context():
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, str(Path(here).parent), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_helpers"])
    return context


def _child(action, args, environment, pipe, threads):
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loading workers: quick, and Linux's default up to 3.13
    torch.set_num_threads(threads)
    try:
        pipe.send(("result", action(*args)))
    except BaseException as error:  # noqa: BLE001 - handed to the test
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        print(traceback.format_exc(), file=sys.stderr)


class Child:
    """`action(*args)`, a function of a module, in a process of its own."""

    def __init__(self, action, *args, environment=None):
        self.pipe, theirs = _context().Pipe()
        self.process = _context().Process(
            target=_child, args=(action, args, environment or {}, theirs, torch.get_num_threads())
        )
        self.process.start()
        theirs.close()

    def result(self, timeout=600):
        """What the action returned; RuntimeError with its error, or if the process died without a word."""
        try:
            if not self.pipe.poll(timeout):
                raise TimeoutError("the process gave no result")
            kind, value = self.pipe.recv()
        except EOFError:
            kind, value = "error", None
        finally:
            self.process.join(10)
            if self.process.is_alive():
                self.process.kill()
        if kind == "error":
            raise RuntimeError(value or f"died with exit code {self.process.exitcode}")
        return value


def run_distributed(processes, action, *args) -> list:
    """`action(*args)` in so many processes that find each other over gloo; their results in order of rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        Child(
            action,
            *args,
            environment={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            },
        )
        for rank in range(processes)
    ]
    return [child.result() for child in children]
