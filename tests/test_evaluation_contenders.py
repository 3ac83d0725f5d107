"""Who is compared at a scale, and the pictures of what they were trained on."""

import io

import pytest

from diffclip import create_model, save_released, training, training_figures
from diffclip.corpora import open_corpus
from diffclip.evaluation import contenders
from diffclip.scales import get_scale


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFCLIP_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def found(data):
    return contenders("smoke", corpora=["cc3m"], variants=["clip", "diffclip_vision"], seeds=[3], progress=False)


def test_runs_are_trained_once_and_then_found(found, data):
    assert [(m.model, m.seed, m.name) for m in found] == [
        ("clip", 3, "cc3m-clip-seed3"),
        ("diffclip_vision", 3, "cc3m-diffclip_vision-seed3"),
    ]
    assert {m.pretraining for m in found} == {"generated corpus in the place of CC3M"}
    weights = data / "runs" / "smoke" / "cc3m-clip-seed3" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = contenders("smoke", corpora=["cc3m"], variants=["clip"], seeds=[3], progress=False)
    assert again[0].key == found[0].key and weights.stat().st_mtime_ns == before


def test_released_checkpoints_by_their_settings_and_a_word_on_those_not_known(tmp_path, monkeypatch, caplog):
    path = save_released(create_model("clip", "smoke", seed=0), tmp_path / "baseline.safetensors")
    monkeypatch.setenv("DIFFCLIP_RELEASED_CLIP_CC3M", str(path))
    monkeypatch.delenv("DIFFCLIP_RELEASED_CLIP_CC12M", raising=False)
    found = contenders("released", variants=["clip"], progress=False)
    assert [(m.model, m.pretraining, m.name) for m in found] == [("clip", "CC3M", "clip-cc3m")]
    assert "No checkpoint of CLIP after CC12M is known" in caplog.text and "DIFFCLIP_RELEASED_CLIP_CC12M" in caplog.text


def test_pictures_of_a_corpus_and_of_runs(found, data):
    scale = get_scale("smoke")
    corpus = open_corpus(scale.corpus("cc3m"), progress=False)
    table, words = training_figures.caption_statistics(corpus, lengths=[5, 9], sample=20)
    captions = [c for i in range(20) for c in corpus.captions(i)]
    assert table["captions"].item() == len(captions) and table["tokens, longest"].item() == 9
    assert sum(words.values()) == sum(len(c.split()) for c in captions)
    runs = [training.load_run(scale.run_dir("cc3m", v, 3)) for v in ("clip", "diffclip_vision")]
    figures = [
        training_figures.contact_sheet(corpus, range(7)),
        training_figures.views(corpus[0]["image"], 32, (0.5, 1.0), seed=0),
        training_figures.word_frequencies(words, [5, 9], limit=8),
        training_figures.curves(runs, chance=4.16),
        training_figures.lambdas(runs[1]),
    ]
    for figure in figures:
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        assert len(stream.getvalue()) > 5000
    assert figures[2].axes[1].get_title(loc="left") == "50.0 % are longer than 8 tokens"
    assert len(figures[4].axes) == 1  # the vision tower alone is differential
    with pytest.raises(ValueError, match="no differential layers"):
        training_figures.lambdas(runs[0])
