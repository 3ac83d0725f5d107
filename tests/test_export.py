"""Export: what is written is the trained model, loadable by itself, with a card that says where its numbers come from."""

import dataclasses
import shutil

import huggingface_hub
import pandas as pd
import pytest
import torch
from huggingface_hub import constants

import diffclip
from diffclip import cli
from diffclip.classify import open_checkpoint
from diffclip.evaluation.features import subject
from diffclip.export import export, push
from diffclip.hub import HubError
from diffclip.run_folder import TrainingError
from diffclip.scales import get_scale
from diffclip.training import ensure_run, load_run


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A run of three steps, and made-up results for it."""
    recipe = dataclasses.replace(get_scale("smoke").recipe, max_steps=3)
    run_dir = tmp_path_factory.mktemp("runs") / "exported-run"
    run = ensure_run(
        "smoke", "cc3m", "diffclip_dynamic", 5, recipe=recipe, run_dir=run_dir, progress=False, trackers=()
    )
    row = {"task": "zero_shot", "dataset": "world-compounds", "metric": "accuracy", "value": 12.34, "stderr": 1.06}
    row |= {"chance": 0.5, "n": 960, "paper_name": "ImageNet"}
    results = data_root / "runs" / "smoke" / "results" / "exported-run.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(results, index=False)
    yield run
    results.unlink()


def test_the_folder_alone_is_the_model(trained, tmp_path):
    folder = export(trained.path, tmp_path / "out")
    written = {p.name for p in folder.iterdir()}
    assert written == {"model.safetensors", "config.json", "README.md", "metrics.csv", "results.csv"}
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    model = diffclip.create_model(checkpoint=tmp_path / "elsewhere")
    assert model.variant == "diffclip_dynamic"
    original = trained.model().state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())


def test_it_is_used_like_any_checkpoint(trained, tmp_path):
    folder = export(trained, tmp_path / "out")
    assert open_checkpoint(folder).variant == "diffclip_dynamic"
    who = subject(folder)
    assert (who.model, who.seed) == ("diffclip_dynamic", 5)
    assert who.pretraining == "generated corpus in the place of CC3M"
    assert load_run(folder).config == trained.config and load_run(folder).finished


def test_the_card_says_where_everything_comes_from(trained, tmp_path):
    folder = export(trained, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.license == "mit"
    last, fingerprint = trained.metrics.iloc[-1], trained.config.corpus_fingerprint
    for words in (
        "# diffclip_dynamic, trained on generated corpus in the place of CC3M",
        "at scale `smoke` with seed 5",
        f"content hash `{fingerprint['hash']}`",
        "| zero_shot | world-compounds | accuracy | 12.3 ± 1.1 | 0.5 | 960 |",
        f"| loss | {last['loss']:.4f} nats",
        f"| lambda, vision layer 1 | {last['lambda.vision.1']:.4f} |",
        "| max steps | 3 |",
        "The pictures are generated scenes, not photographs",
        f"torch {torch.__version__.split('+')[0]}",
        "not the authors' weights",
    ):
        assert words in card, words


def test_without_results_the_card_says_so(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "never-evaluated")
    export(trained, tmp_path / "out")
    card = (export(tmp_path / "never-evaluated", tmp_path / "out") / "README.md").read_text()
    assert "Not evaluated when it was exported" in card and "world-compounds" not in card
    assert not (tmp_path / "out" / "results.csv").exists()


def test_released_key_names_on_request(trained, tmp_path):
    folder = export(trained, tmp_path / "out", released_keys=True)
    model = diffclip.load_released(folder / "released_keys.safetensors")
    original = trained.model().state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    export(trained, folder)
    assert not (folder / "released_keys.safetensors").exists()


def test_wrong_places_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="is the run itself"):
        export(trained, trained.path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\)"):
        export(trained, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        export(trained, tmp_path / "thesis.tex")
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        export(tmp_path / "nowhere", tmp_path / "out")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(trained.path / "config.json", unfinished)
    with pytest.raises(TrainingError, match="is not finished"):
        export(load_run(unfinished), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hub:
    """Stands for the hub's API; notes what it is asked."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.asked.append(("create", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))
        return type("Done", (), {"commit_url": f"https://hub.example/{repo_id}/commit/1"})


def test_push_uploads_the_folder(trained, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    out = tmp_path / "out"
    assert cli.main(["export", str(trained.path), str(out), "--push", "somebody/model", "--private"]) == 0
    assert "Pushed: https://hub.example/somebody/model/commit/1" in capsys.readouterr().out
    files = ["README.md", "config.json", "metrics.csv", "model.safetensors", "results.csv"]
    assert hub.asked == [
        ("create", "somebody/model", {"private": True, "exist_ok": True}),
        ("upload", "somebody/model", files),
    ]


def test_push_refused_says_what_to_do(trained, tmp_path, monkeypatch):
    folder = export(trained, tmp_path / "out")
    with pytest.raises(ValueError, match="owner/name"):
        push(folder, "model")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(folder, "somebody/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(ConnectionError("no route")))
    with pytest.raises(HubError, match="could not be pushed to somebody/model: no route.*hf auth login"):
        push(folder, "somebody/model")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="model.safetensors"):
        push(folder, "somebody/model")
