"""Killed at any moment, a run ends as one that was never killed; and the failure drills."""

import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import (
    Child,
    HookedCorpus,
    config,
    metrics_without_time,
    quiet_train,
    run_distributed,
    weights,
)

import diffclip.files
import diffclip.run_folder
import diffclip.training
from diffclip.model import create_model
from diffclip.run_folder import RunFolder, TrainingError
from diffclip.training import load_run

pytestmark = pytest.mark.processes


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal: 12 steps of 16 pairs, a state every 3 steps."""
    return Child(quiet_train, config(), tmp_path_factory.mktemp("undisturbed") / "run").result()


def assert_same_run(run_dir, undisturbed):
    assert weights(run_dir) == weights(undisturbed.path)
    assert metrics_without_time(load_run(run_dir)).equals(metrics_without_time(undisturbed))
    kept = {path.name for path in Path(run_dir).iterdir()}
    assert kept == {".lock", "config.json", "metrics.csv", "model.safetensors"}, "leftovers of the killed runs"


# Each of these runs in a child, arranges for its death, and trains.


def killed_while_loading(run_dir, pairs, **recipe):
    corpus = HookedCorpus(lambda count: die() if count == pairs else None)
    quiet_train(config(**recipe), run_dir, corpus)


def killed_in_the_middle_of_writing_a_state(run_dir):
    save = torch.save

    def half(state, file):
        save(state, file)
        file.truncate(file.tell() // 2)
        die()

    torch.save = half
    quiet_train(config(), run_dir)


def killed_beside_a_rename(run_dir, name, before):
    replace = os.replace

    def deadly(source, target):
        if Path(target).name == name and before:
            die()
        replace(source, target)
        if Path(target).name == name:
            die()

    diffclip.files.os.replace = deadly
    quiet_train(config(), run_dir)


def killed_before_tidying(run_dir):
    RunFolder.remove_state = lambda self: die()
    quiet_train(config(), run_dir)


def assert_dies(action, *args):
    with pytest.raises(RuntimeError, match="exit code -9"):
        Child(action, *args).result()


def test_killed_at_random_steps(tmp_path, undisturbed):
    draw = random.Random(0)
    for _ in range(4):
        # Between 1 and 5 steps further each time, so that some deaths come before the next state, some after.
        assert_dies(killed_while_loading, tmp_path / "run", draw.randint(1, 5 * 16))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    Child(quiet_train, config(), tmp_path / "run").result()
    assert_same_run(tmp_path / "run", undisturbed)


def test_killed_from_outside_at_any_time(tmp_path, undisturbed):
    draw = random.Random(1)
    for _ in range(3):
        child = Child(quiet_train, config(workers=1), tmp_path / "run")
        time.sleep(draw.uniform(0.1, 1.0))  # wherever it is by then; what must come out does not depend on it
        child.process.kill()
        child.process.join()
    Child(quiet_train, config(workers=1), tmp_path / "run").result()
    assert_same_run(tmp_path / "run", undisturbed)


def test_killed_while_saving(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    assert_dies(killed_in_the_middle_of_writing_a_state, run_dir)  # the first state: nothing to go on from
    assert not (run_dir / "state" / "latest.pt").exists()
    assert_dies(killed_beside_a_rename, run_dir, "latest.pt", True)
    assert not (run_dir / "state" / "latest.pt").exists()
    assert_dies(killed_beside_a_rename, run_dir, "latest.pt", False)
    assert RunFolder(run_dir).read_state()["step"] == 3
    assert_dies(killed_in_the_middle_of_writing_a_state, run_dir)  # the second state: the first must survive
    assert RunFolder(run_dir).read_state()["step"] == 3
    assert_dies(killed_beside_a_rename, run_dir, "model.safetensors", True)
    assert not (run_dir / "model.safetensors").exists()
    Child(quiet_train, config(), run_dir).result()
    assert_same_run(run_dir, undisturbed)


def test_killed_between_the_last_write_and_tidying_up(tmp_path, undisturbed):
    assert_dies(killed_before_tidying, tmp_path / "run")
    assert load_run(tmp_path / "run").finished
    quiet_train(config(), tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_finished_run_is_found_not_retrained(undisturbed):
    before = weights(undisturbed.path), undisturbed.path.stat().st_mtime_ns
    found = quiet_train(config(workers=2, save_every=1), undisturbed.path)  # settings that do not change the result
    assert found.config == undisturbed.config
    assert (weights(undisturbed.path), undisturbed.path.stat().st_mtime_ns) == before
    model = found.model()
    assert not model.training and model.variant == "diffclip"


def test_metrics_hold_what_was_promised(undisturbed):
    metrics = undisturbed.metrics
    assert metrics.columns.tolist() == [
        "step", "epoch", "samples", "loss", "accuracy", "logit_scale", "learning_rate", "gradient_norm", "samples_per_second",
        "lambda.vision.0", "lambda.vision.1", "lambda.text.0", "lambda.text.1",
    ]  # fmt: skip
    assert metrics.step.tolist() == list(range(1, 13)) and metrics.epoch.tolist() == [s / 4 for s in range(1, 13)]
    assert metrics.samples.tolist() == [16 * s for s in range(1, 13)]
    assert metrics.logit_scale[0] == pytest.approx(1 / 0.07) and np.isfinite(metrics.to_numpy()).all()
    assert metrics.loss.iloc[-1] < metrics.loss[0]
    schedule = undisturbed.config.recipe.schedule(70)
    np.testing.assert_allclose(metrics.learning_rate, [schedule.learning_rate(s) for s in range(12)], rtol=1e-12)


def test_the_logit_scale_is_clamped_after_each_step(tmp_path, monkeypatch):
    def hot(*args, **kwargs):
        model = create_model(*args, **kwargs)
        torch.nn.init.constant_(model.logit_scale, np.log(200))
        return model

    monkeypatch.setattr(diffclip.training, "create_model", hot)
    run = quiet_train(config(max_steps=3), tmp_path / "run")
    assert run.metrics.logit_scale[0] == pytest.approx(200)
    assert (run.metrics.logit_scale[1:] <= 100 * (1 + 1e-6)).all()
    assert run.model().logit_scale.item() <= np.log(100) + 1e-6


def test_max_steps_stops_early_and_keeps_the_schedule(tmp_path, undisturbed):
    run = quiet_train(config(max_steps=5, log_every=2), tmp_path / "run")
    assert run.metrics.step.tolist() == [1, 2, 4, 5]
    assert run.metrics.learning_rate.tolist() == undisturbed.metrics.learning_rate[[0, 1, 3, 4]].tolist()


@pytest.mark.parametrize("recipe", [{"chunk_size": 5}, {"gradient_checkpointing": True}], ids=str)
def test_ways_of_computing_agree(tmp_path, undisturbed, recipe):
    run = quiet_train(config(**recipe), tmp_path / "run")
    np.testing.assert_allclose(run.metrics.loss, undisturbed.metrics.loss, rtol=2e-4)


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    quiet_train(config("clip", max_steps=1), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_and_back_in_one_process(tmp_path, undisturbed):
    half = quiet_train(config(precision="bf16"), tmp_path / "half")
    whole = quiet_train(config(), tmp_path / "whole")
    np.testing.assert_allclose(half.metrics.loss, undisturbed.metrics.loss, rtol=0.1)
    np.testing.assert_allclose(whole.metrics.loss, undisturbed.metrics.loss, rtol=1e-5)
    assert not np.array_equal(half.metrics.loss, whole.metrics.loss)
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float32}


# Several processes


def stopped(run_dir, step, **recipe):
    """Train until the first pair of that step (from 1) is asked for, then fail."""
    share = 16 // int(os.environ.get("WORLD_SIZE", "1"))

    def stop(count):
        if count > share * (step - 1):
            raise OSError("stopped here")

    try:
        quiet_train(config(**recipe), run_dir, HookedCorpus(stop))
    except OSError:
        return "stopped"


def resumed(run_dir):
    """Train on; what was logged as a warning."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("diffclip").addHandler(handler)
    quiet_train(config(), run_dir)
    return messages


def test_taken_with_four_processes_resumed_with_two(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    assert run_distributed(4, stopped, run_dir, 6) == ["stopped"] * 4
    assert RunFolder(run_dir).read_state()["step"] == 3
    said, nothing = run_distributed(2, resumed, run_dir)
    assert len(said) == 1 and not nothing
    assert "taken with 4 process(es) and is resumed with 2" in said[0] and "not bit for bit" in said[0]
    # The batches are the same ones, so the curves are, up to the order of summation.
    run = load_run(run_dir)
    np.testing.assert_allclose(run.metrics.loss, undisturbed.metrics.loss, rtol=2e-4)
    np.testing.assert_allclose(run.metrics.gradient_norm, undisturbed.metrics.gradient_norm, rtol=5e-3)
    sessions = json.loads((run_dir / "config.json").read_text())["sessions"]
    assert [(s["processes"], s["from_step"]) for s in sessions] == [(4, 0), (2, 3)]


def test_two_processes_repeat_themselves_bit_for_bit(tmp_path):
    run_distributed(2, quiet_train, config("clip", chunk_size=3), tmp_path / "one")
    run_distributed(2, stopped_clip, tmp_path / "two")
    run_distributed(2, quiet_train, config("clip", chunk_size=3), tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def stopped_clip(run_dir):
    return stopped(run_dir, 8, variant="clip", chunk_size=3)


def with_a_dying_process(run_dir):
    def hook(count):
        if os.environ["RANK"] == "1" and count > 5 * 8:
            die()

    quiet_train(config(), run_dir, HookedCorpus(hook))


def test_a_process_is_killed(tmp_path):
    with pytest.raises(
        RuntimeError, match="Another process of this training is gone .* The state of step 3 is on disk"
    ):
        run_distributed(2, with_a_dying_process, tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_state()["step"] == 3


def refusal(run_dir):
    with pytest.raises(TrainingError) as caught:
        quiet_train(config("clip"), run_dir)
    return str(caught.value)


def test_all_processes_refuse_together(undisturbed):
    for message in run_distributed(2, refusal, undisturbed.path):
        assert "variant: 'clip' instead of 'diffclip'" in message


def test_a_batch_that_cannot_be_shared(tmp_path):
    with pytest.raises(RuntimeError, match="cannot be shared equally by 2 processes"):
        run_distributed(2, quiet_train, config(batch_size=15), tmp_path / "run")


# Refusals


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"variant": "clip"}, "variant: 'clip' instead of 'diffclip'"),
        ({"size": "mini"}, "model.name: 'mini' instead of 'smoke'"),
        ({"batch_size": 8}, "recipe.batch_size: 8 instead of 16"),
        ({"pairs": 69}, "corpus_fingerprint.pairs: 69 instead of 70"),
    ],
    ids=str,
)
def test_a_folder_with_another_run(undisturbed, asked, named):
    before = weights(undisturbed.path)
    with pytest.raises(TrainingError, match="holds another run") as caught:
        quiet_train(config(**asked), undisturbed.path)
    assert named in str(caught.value) and "train into another folder" in str(caught.value)
    assert weights(undisturbed.path) == before


def test_a_state_of_another_variant_or_size(tmp_path):
    stopped(tmp_path / "other", 5, variant="clip")
    stopped(tmp_path / "run", 5)
    shutil.copy(tmp_path / "other" / "state" / "latest.pt", tmp_path / "run" / "state" / "latest.pt")
    with pytest.raises(
        TrainingError, match="The state in .* holds another run .*variant: 'diffclip' instead of 'clip'"
    ):
        quiet_train(config(), tmp_path / "run")


def test_a_damaged_state(tmp_path):
    stopped(tmp_path / "run", 5)
    state = tmp_path / "run" / "state" / "latest.pt"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a state"):
        state.write_bytes(damaged)
        with pytest.raises(TrainingError, match="is damaged and cannot be resumed"):
            quiet_train(config(), tmp_path / "run")


def test_a_folder_without_its_config(tmp_path):
    stopped(tmp_path / "run", 5)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(TrainingError, match="no config.json"):
        quiet_train(config(), tmp_path / "run")


def test_runs_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        load_run(tmp_path)
    stopped(tmp_path / "run", 2)
    with pytest.raises(TrainingError, match="not finished"):
        load_run(tmp_path / "run").model()


def test_a_second_training_in_the_same_folder(tmp_path):
    run_dir = tmp_path / "run"
    with RunFolder(run_dir).lock():
        with pytest.raises(RuntimeError, match=f"Another training is running in .*process {os.getpid()} on"):
            Child(quiet_train, config(), run_dir).result()
        with pytest.raises(TrainingError, match="this same process"):
            quiet_train(config(), run_dir)
    quiet_train(config(max_steps=1), run_dir)


# Failures on the way


def test_a_loss_that_is_not_finite(tmp_path, undisturbed, monkeypatch):
    def broken(*args, **kwargs):
        calls.append(1)
        out = real(*args, **kwargs)
        return {**out, "loss": out["loss"] * float("nan")} if len(calls) == 6 else out

    calls, real = [], diffclip.training.backward_through_batch
    monkeypatch.setattr(diffclip.training, "backward_through_batch", broken)
    with pytest.raises(
        TrainingError, match="The loss became nan at step 6 .*last good state, that of step 5.*lower learning_rate"
    ):
        quiet_train(config(), tmp_path / "run")
    state = RunFolder(tmp_path / "run").read_state()
    assert state["step"] == 5 and all(t.isfinite().all() for t in state["model"].values())
    quiet_train(config(), tmp_path / "run")  # as after a fault of the machine
    np.testing.assert_allclose(load_run(tmp_path / "run").metrics.loss, undisturbed.metrics.loss, rtol=1e-5)


def test_a_gradient_that_is_not_finite(tmp_path, monkeypatch):
    def broken(model, *args, **kwargs):
        out = real(model, *args, **kwargs)
        model.logit_scale.grad.fill_(float("inf"))
        return out

    real = diffclip.training.backward_through_batch
    monkeypatch.setattr(diffclip.training, "backward_through_batch", broken)
    with pytest.raises(TrainingError, match="The gradient's norm became inf at step 1 "):
        quiet_train(config(), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_state()["step"] == 0


def test_a_rate_that_is_much_too_high(tmp_path):
    with pytest.raises(TrainingError, match="at step [2-9] .*lengthen warmup_epochs"):
        quiet_train(config(learning_rate=1e30, warmup_epochs=0), tmp_path / "run")


def with_a_limit_on_files(run_dir):
    """No file may grow beyond 1 MB once the first state is written: as a disk that fills up."""

    def limit(count):
        if count == 4 * 16 + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    quiet_train(config(), run_dir, HookedCorpus(limit))


def test_a_file_that_may_not_grow(tmp_path, undisturbed):
    with pytest.raises(RuntimeError, match="The disk is full.* is whole. Free some space"):
        Child(with_a_limit_on_files, tmp_path / "run").result()
    assert RunFolder(tmp_path / "run").read_state()["step"] == 3
    Child(quiet_train, config(), tmp_path / "run").result()
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 15 MB: room for one state of 9.6 MB, not for two."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=15m", "tmpfs", tmp_path], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system needs more rights than this user has")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk(small_disk, undisturbed):
    with pytest.raises(TrainingError, match="The disk is full.* MB free there.* is whole. Free some space"):
        quiet_train(config(), small_disk / "run")
    assert RunFolder(small_disk / "run").read_state()["step"] == 3
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    Child(quiet_train, config(), small_disk / "run").result()
    assert_same_run(small_disk / "run", undisturbed)


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="read-only"), RunFolder(tmp_path).explains_a_full_disk():
        raise OSError(errno.EROFS, "read-only file system")


def with_a_dying_worker(run_dir):
    def hook(count):
        if torch.utils.data.get_worker_info() is not None and count == 5 * 16:
            die()

    quiet_train(config(workers=1), run_dir, HookedCorpus(hook))


def test_a_loading_worker_is_killed(tmp_path, undisturbed):
    with pytest.raises(RuntimeError, match="A loading worker died .*try fewer workers"):
        Child(with_a_dying_worker, tmp_path / "run").result()
    Child(quiet_train, config(workers=1), tmp_path / "run").result()
    assert_same_run(tmp_path / "run", undisturbed)


def test_memory_runs_out(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(diffclip.training, "backward_through_batch", broken)
    with pytest.raises(TrainingError, match="16 samples per forward.*lower chunk_size .*No state had been saved yet"):
        quiet_train(config(), tmp_path / "run")


# Trackers and the bar


def test_tensorboard_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_with_tensorboard(tmp_path / "run")
    run = quiet_train(config(), tmp_path / "run", trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "diffclip")).Reload()
    assert {"loss", "lambda.vision.0", "learning_rate"} <= set(events.Tags()["scalars"])
    points = events.Scalars("loss")
    assert [point.step for point in points] == list(range(1, 13))
    np.testing.assert_allclose([point.value for point in points], run.metrics.loss, rtol=1e-6)


def stopped_with_tensorboard(run_dir):
    def stop(count):
        if count > 5 * 16:
            raise OSError("stopped here")

    with pytest.raises(OSError, match="stopped here"):
        quiet_train(config(), run_dir, HookedCorpus(stop), trackers=("tensorboard",))


def test_trackers_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Unknown tracker 'abacus'; choose from tensorboard, wandb"):
        quiet_train(config(), tmp_path / "run", trackers=("abacus",))
    monkeypatch.setattr(diffclip.training, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        quiet_train(config(), tmp_path / "run", trackers=("wandb",))


@pytest.mark.parametrize("watched", [True, False])
def test_a_bar_where_someone_watches(tmp_path, monkeypatch, capsys, watched):
    monkeypatch.setattr(diffclip.training, "_someone_watches", lambda: watched)
    quiet_train(config(max_steps=2), tmp_path / "run", progress=True)
    shown = capsys.readouterr().err
    assert ("tiny-diffclip-seed0" in shown and "samples/s" in shown and "loss=" in shown) == watched
    assert bool(shown) == watched
