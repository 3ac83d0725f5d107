"""The command line: quick to answer, errors for people, and every argument reaches the package."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffclip import cli, doctor
from diffclip.scales import SCALES, Needs, get_scale

ROOT = Path(__file__).parents[1]


def run(*argv):
    """Run a command in this process; an argparse exit counts as its status."""
    try:
        return cli.main([str(a) for a in argv])
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def called(monkeypatch):
    """called(module, name, result): replace a function; returns the list of (args, kwargs) it is called with."""

    def replace(module, name, result=None):
        calls = []
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or result)
        return calls

    return replace


def test_help_names_every_command_and_imports_nothing_heavy():
    check = (
        "import sys\nfrom diffclip.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'papermill', 'datasets', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("reproduce", "train", "evaluate", "prepare", "report", "classify", "export", "doctor"):
        assert f"\n    {name} " in ended.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert run(name, "--help") == 0
    assert f"usage: diffclip {name}" in capsys.readouterr().out


def test_runs_as_a_module():
    command = [sys.executable, "-m", "diffclip", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.startswith("diffclip 0")


@pytest.mark.parametrize("argv", [(), ("fly",), ("train", "--epochs", "many"), ("classify", "picture.png")])
def test_wrong_use_exits_2(argv, capsys):
    assert run(*argv) == 2
    assert "usage: diffclip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("train", "--scale", "huge"), "Unknown scale 'huge'; choose one of"),
        (("train", "--scale", "smoke", "--variant", "clop"), "Unknown variant 'clop'"),
        (("train", "--scale", "smoke", "--corpus", "laion"), "has no corpus 'laion'"),
        (("train", "--scale", "smoke", "--precision", "int3"), "Unknown precision 'int3'"),
        (("reproduce", "--scale", "huge", "--notebooks", ROOT / "notebooks"), "Unknown scale 'huge'"),
        (("reproduce", "--notebooks", ROOT / "tests"), "There are no notebooks"),
        (("classify", "nowhere.png", "--labels", "dog", "--checkpoint", "nowhere"), "nowhere.png"),
        (("prepare", "mine"), "Nothing is known of where 'mine' is"),
        (("report", "--scale", "gpu"), "There are no results for scale 'gpu'"),
        (("evaluate", "--scale", "smoke", "--checkpoint", "no/where/file.pt"), "There is no checkpoint at"),
        (("export", "nowhere", "out"), "There is no"),
    ],
)
def test_wrong_input_is_one_paragraph(argv, words, capsys):
    assert run(*argv) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"diffclip {argv[0]}: ") and words in said
    assert "Traceback" not in said and len(said.splitlines()) == 1


def test_traceback_on_request():
    with pytest.raises(ValueError, match="Unknown scale"):
        run("--traceback", "train", "--scale", "huge")


def failing(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.Command("", lambda parser: None, run))


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    failing(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_work_that_failed_exits_1_and_an_interrupt_130(monkeypatch, capsys):
    from diffclip.run_folder import TrainingError

    failing(monkeypatch, TrainingError("The loss is not finite."))
    assert run("doctor") == 1 and "diffclip doctor: The loss is not finite." in capsys.readouterr().err
    failing(monkeypatch, OSError(28, "No space left on device"))
    assert run("doctor") == 1
    failing(monkeypatch, KeyboardInterrupt())
    assert run("doctor") == 130 and "Interrupted" in capsys.readouterr().err


def test_train_passes_each_setting_of_the_recipe(called, tmp_path, monkeypatch, capsys):
    import pandas as pd

    from diffclip import training

    class Run:
        path = tmp_path / "run"
        metrics = pd.DataFrame([{"step": 8, "loss": 4.0, "accuracy": 0.25, "logit_scale": 14.3}])

    calls = called(training, "ensure_run", Run())
    options = "--epochs 3 --betas 0.8 0.9 --learning-rate 0.1 --gradient-checkpointing --no-compile --chunk-size 4"
    where = tmp_path / "here"
    status = run(
        *("train", "--scale", "smoke", "--corpus", "cc12m", "--variant", "clip", "--seed", 7, "--run-dir", where),
        *("--wandb", "--quiet", *options.split()),
    )
    assert status == 0 and "step 8, loss 4.000, accuracy in batch 25.0 %" in capsys.readouterr().out
    ((arguments, options),) = calls
    assert arguments == ("smoke", "cc12m", "clip", 7)
    recipe, scale = options.pop("recipe"), get_scale("smoke").recipe
    assert options == {"run_dir": where, "progress": False, "trackers": ("tensorboard", "wandb")}
    changed = {"epochs": 3, "betas": (0.8, 0.9), "learning_rate": 0.1}
    changed |= {"gradient_checkpointing": True, "compile": False, "chunk_size": 4}
    assert recipe.to_dict() == scale.to_dict() | changed


def test_train_without_settings_is_the_scales_recipe(called):
    from diffclip import budget

    calls = called(budget, "dry_run", "a budget")
    assert run("train", "--scale", "paper", "--variant", "clip", "--dry-run") == 0
    assert calls == [(("paper", "cc3m", "clip"), {"recipe": get_scale("paper").recipe})]


@pytest.mark.processes
def test_train_under_accelerate_launch(tmp_path):
    """The real thing, through the launcher: two steps, and found again."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "diffclip"]
    train = [*launch, "train", "--scale", "smoke", "--max-steps", "2", "--run-dir", tmp_path / "run"]
    ended = subprocess.run([*train, "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "run: step 2, loss" in ended.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_prepare_passes_its_options(called, tmp_path, capsys):
    from diffclip import prepare

    manifest = {"pairs": 1234, "skipped": {"empty caption": 2, "broken image": 1}}
    calls = called(prepare, "prepare", manifest)
    assert run("prepare", "mine", "--source", tmp_path, "--parts", 3, "--no-disk-check", "--image-column", "file") == 0
    assert "1,234 pairs" in (out := capsys.readouterr().out) and "2 empty caption, 1 broken image" in out
    ((arguments, options),) = calls
    assert arguments == ("mine",) and options.pop("say") is print
    assert {k: v for k, v in options.items() if v is not None} == {
        "source": str(tmp_path),
        "image_size": 224,
        "parts": 3,
        "check_disk": False,
        "image_column": "file",
        "keep_shards": False,
    }


def test_evaluate_passes_its_options(called, capsys):
    import pandas as pd

    import diffclip.evaluation

    row = {
        "task": "zero_shot",
        "dataset": "s",
        "metric": "accuracy",
        "value": 12.34,
        "stderr": 0.5,
        "chance": 1,
        "n": 9,
    }
    calls = called(diffclip.evaluation, "evaluate", pd.DataFrame([row]))
    argv = (
        "evaluate",
        "--scale",
        "smoke",
        "--checkpoint",
        "a",
        "b",
        "--tasks",
        "zero_shot",
        "--benchmarks",
        "s",
        "--quiet",
    )
    assert run(*argv) == 0
    options = {"tasks": ["zero_shot"], "sets": ["s"], "progress": False}
    assert calls == [(("a", "smoke"), options), (("b", "smoke"), options)]
    assert "12.3" in capsys.readouterr().out


def test_classify_prints_probabilities_of_a_real_model(tmp_path, capsys):
    import diffclip
    from diffclip.model import save_model

    save_model(diffclip.create_model("diffclip", "smoke", seed=0), tmp_path)
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    labels = ("dog", "cat", "elephant", "house", "ship", "train")
    assert (
        run("classify", tmp_path / "red.png", "--labels", "dog, cat,elephant", *labels[3:], "--checkpoint", tmp_path)
        == 0
    )
    lines = [line.split(" %  ") for line in capsys.readouterr().out.splitlines()]
    scores = [float(score) for score, _ in lines]
    assert len(lines) == 5 and {label for _, label in lines} < set(labels)
    assert scores == sorted(scores, reverse=True) and 5 / 6 * 100 <= sum(scores) <= 100


# ------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_is_here_and_what_each_scale_takes(monkeypatch, capsys):
    """The machine is the real one; only the timing of training is replaced, to be quick."""
    from diffclip import budget

    class Quick:
        step_seconds = 0.5

    monkeypatch.setattr(budget, "dry_run", lambda *args: Quick())
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for label in ("machine", "memory", "device", "disk", "python", "torch", "packages", "hub", *SCALES):
        assert f"\n{label} " in out
    assert sys.executable in out
    batch = get_scale("smoke").recipe.batch_size
    assert f"({batch / 0.5:,.3g} pairs/s, measured)" in out


def machine(**changes):
    plenty = {"cores": 64, "memory": 512.0, "memory_free": 500.0, "disk_free": 4000.0, "gpus": (("H", 80.0),) * 8}
    return doctor.Machine(**{**plenty, **changes})


def test_feasibility():
    needs = Needs(cores=16, memory=64, disk=100, gpus=2, gpu_memory=40)
    assert machine().lacks(needs) == []
    assert machine(gpus=(("H", 80.0), ("small", 16.0))).lacks(needs) == ["2 GPUs with 40 GB (here 1)"]
    assert machine(cores=2, memory=8.0, disk_free=7.0).lacks(needs) == [
        "16 cores (here 2)",
        "64 GB of memory (here 8)",
        "100 GB of disk (here 7 free)",
    ]
    assert machine(memory=62.0, disk_free=95.0).lacks(needs) == []  # sold as 64 and 100


def test_trained_pairs_counts_the_notebooks_models():
    mini = get_scale("mini")
    models, pairs = doctor.trained_pairs(mini)
    small, large = (mini.corpora[name].pairs for name in ("cc3m", "cc12m"))
    assert models == 6 and pairs == mini.recipe.epochs * (2 * small + 4 * large)
    assert doctor.trained_pairs(get_scale("paper"))[1] == 40 * (2 * 2_300_000 + 4 * 7_900_000)


def test_pace_without_a_gpu_is_reckoned_from_mini(monkeypatch):
    import torch

    from diffclip.budget import model_flops

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pace = doctor.Pace()
    pace.known["mini"] = (600.0, "measured")
    rate, how = pace.of(get_scale("paper"))
    assert how == "reckoned"
    assert rate == pytest.approx(600 * model_flops("mini").training / model_flops("vit_b_16").training)
    assert 0.01 < rate < 10


def test_packages_that_differ_or_break_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "pinned", lambda: ["packaging==0.1"])
    assert "packaging==0.1 (found" in doctor._packages()
    monkeypatch.setattr(doctor, "IMPORTS", ("no_such_module_here",))
    assert doctor._packages().startswith("BROKEN: no_such_module_here does not import (No module named")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 second"),
        (100, "about 2 minutes"),
        (7200, "about 2 hours"),
        (3e5, "about 3 days"),
        (1e9, "years"),
    ],
)
def test_roughly(seconds, words):
    assert doctor.roughly(seconds) == words
