"""Runs by name, under `accelerate launch`, with torch.compile; what a reader of run folders meets."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import Child, config, metrics_without_time, quiet_train, weights

import diffclip.corpora
from diffclip.corpora import CorpusError
from diffclip.model import create_model
from diffclip.scales import get_scale
from diffclip.training import TrainingError, ensure_run, load_run

ensure = functools.partial(ensure_run, progress=False, trackers=())


@pytest.fixture(scope="module")
def smoke_run(data_root):
    return ensure("smoke", "cc3m", "diffclip_dynamic")


def test_a_run_by_name(smoke_run, data_root):
    scale = get_scale("smoke")
    assert (
        smoke_run.path
        == data_root / "runs" / "smoke" / "cc3m-diffclip_dynamic-seed0"
        == scale.run_dir("cc3m", "diffclip_dynamic")
    )
    c = smoke_run.config
    assert (c.scale, c.corpus, c.variant, c.seed, c.recipe, c.model) == (
        "smoke",
        "cc3m",
        "diffclip_dynamic",
        0,
        scale.recipe,
        scale.model,
    )
    assert c.corpus_fingerprint["pairs"] == scale.corpora["cc3m"].pairs
    assert smoke_run.metrics.step.iloc[-1] == c.recipe.schedule(c.corpus_fingerprint["pairs"]).last_step
    # The weights know what they are without the folder.
    assert create_model(checkpoint=smoke_run.path).variant == "diffclip_dynamic"
    assert load_run(smoke_run.path).config == c


def test_a_run_by_name_is_found(smoke_run, monkeypatch):
    monkeypatch.setattr("diffclip.training.backward_through_batch", None)  # nothing is trained
    assert ensure("smoke", "cc3m", "diffclip_dynamic").config == smoke_run.config


def test_a_finished_run_needs_no_corpus(smoke_run, monkeypatch):
    def missing(spec):
        raise CorpusError("not prepared")

    monkeypatch.setattr(diffclip.corpora, "open_corpus", missing)
    assert ensure("smoke", "cc3m", "diffclip_dynamic").config == smoke_run.config
    with pytest.raises(CorpusError):  # one that is not finished does
        ensure("smoke", "cc3m", "diffclip_dynamic", seed=1)
    other = replace(get_scale("smoke").recipe, learning_rate=1e-3)
    with pytest.raises(CorpusError):  # and so does another run
        ensure("smoke", "cc3m", "diffclip_dynamic", recipe=other)


def test_another_recipe_is_another_run(smoke_run, tmp_path):
    other = replace(get_scale("smoke").recipe, learning_rate=1e-3, max_steps=1)
    with pytest.raises(
        TrainingError, match=r"recipe.learning_rate: 0.001 instead of .*recipe.max_steps: 1 instead of None"
    ):
        ensure("smoke", "cc3m", "diffclip_dynamic", recipe=other)
    run = ensure("smoke", "cc3m", "diffclip_dynamic", recipe=other, run_dir=tmp_path / "other")
    assert run.path == tmp_path / "other" and len(run.metrics) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (("smke", "cc3m", "clip"), "Unknown scale 'smke'"),
        (("smoke", "cc4m", "clip"), "has no corpus 'cc4m'"),
        (("smoke", "cc3m", "clop"), "Unknown variant 'clop'"),
        (("smoke", "cc3m", "clip", -1), "A seed is a whole number"),
    ],
)
def test_names_that_are_not_known(name, says):
    with pytest.raises(ValueError, match=says):
        ensure(*name)


LAUNCHED = """
import sys
from training_helpers import config, quiet_train
quiet_train(config(), sys.argv[1])
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (
            "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no",
            1,
        ),
        (
            "torch.distributed.run --standalone --nproc-per-node 2",
            2,
        ),  # what Accelerate launches several processes with
    ],
    ids=["accelerate", "torchrun"],
)
def test_launchers(tmp_path, launcher, processes):
    (tmp_path / "launched.py").write_text(LAUNCHED)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher.split(), str(tmp_path / "launched.py"), str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    sessions = json.loads((run.path / "config.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [processes]
    alone = quiet_train(config(), tmp_path / "alone")
    np.testing.assert_allclose(run.metrics.loss, alone.metrics.loss, rtol=2e-4)


def compiled_and_plain(folder):
    """The same few steps with and without torch.compile; a backend without code generation, so that it takes seconds."""
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    recipe = {"max_steps": 3, "chunk_size": 8}
    runs = [quiet_train(config(**recipe, compile=c), folder / str(c)) for c in (False, True)]
    from torch._dynamo.utils import counters

    return runs, counters["stats"]["unique_graphs"]


@pytest.mark.processes
def test_torch_compile(tmp_path):
    (plain, compiled), graphs = Child(compiled_and_plain, tmp_path).result()
    assert graphs > 0, "nothing was compiled"
    assert plain.config == compiled.config
    np.testing.assert_allclose(compiled.metrics.loss, plain.metrics.loss, rtol=1e-4)
    assert weights(compiled.path).keys() == weights(plain.path).keys()


def test_trained_twice_is_the_same_to_the_bit(tmp_path):
    """With all threads of this machine, in this process, one after the other."""
    one, two = (quiet_train(config("diffclip_vision", max_steps=4), tmp_path / name) for name in "ab")
    assert weights(one.path) == weights(two.path) and metrics_without_time(one).equals(metrics_without_time(two))
    other = quiet_train(config("diffclip_vision", seed=1, max_steps=4), tmp_path / "c")
    assert weights(other.path) != weights(one.path)
