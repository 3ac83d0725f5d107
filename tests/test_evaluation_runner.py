"""From models to results: features kept and verified, finished work not repeated, comparisons rebuilt without a model."""

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from diffclip import benchmarks, create_model, report
from diffclip.benchmarks import Benchmark, BenchmarkSpec, PairQuestion
from diffclip.evaluation import EvaluationError, compare, evaluate, features, runner
from diffclip.evaluation.features import Features, Subject, subject
from diffclip.scales import get_scale

SCALE = get_scale("smoke")
SETS = ["DTD", "Flickr8k", "ImageNet", "MMVP-VLM"]  # found by the paper's name; what takes their place at this scale


@pytest.fixture(scope="module")
def models():
    """Two untrained models of one corpus."""
    made = {}
    for variant in ("clip", "diffclip"):
        model = create_model(variant, SCALE.size, seed=1)
        made[variant] = subject(model, name=f"cc3m-{variant}-seed0", pretraining="generated corpus for CC3M")
    return made


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """A folder with both models evaluated and compared."""
    root = tmp_path_factory.mktemp("runs")
    tables = {name: evaluate(who, SCALE, sets=SETS, root=root, progress=False) for name, who in models.items()}
    return root, tables, compare(SCALE, root=root)


def silent(who: Subject) -> Subject:
    """The same subject with an encoder that must not be used."""

    def refuse(*_):
        raise AssertionError("a model was asked, though everything was finished")

    encoder = torch.nn.Module()
    encoder.encode_image = encoder.encode_text = refuse
    return replace(who, encoder=encoder)


class Colours(torch.nn.Module):
    """A tiny encoder: mean colour and its square; texts by their length."""

    def encode_image(self, images):
        mean = images.mean((2, 3))
        return torch.cat([mean, mean.square()], 1)

    def encode_text(self, tokens):
        return torch.stack([(tokens * (i + 1)).float().mean(1) for i in range(6)], 1)


def colours(key="colours", encoder=None) -> Subject:
    return Subject(
        name="colours", model="colours", pretraining="none", seed=0, encoder=encoder or Colours(), key=key,
        view=lambda image: torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255),
        tokens=lambda texts: torch.tensor([[len(t), len(set(t)), ord(t[0])] for t in texts]),
    )  # fmt: skip


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)) for _ in range(n)]


def made_up(task="classification", split="test", n=24, **parts) -> Benchmark:
    spec = BenchmarkSpec("made-up", task, "Made-up", "accuracy", "folder")
    return Benchmark(spec, split, pictures(n), {"name": "made-up", "split": split, "n": n, "sha256": split}, **parts)


# ------------------------------------------------------------------------------------------------------- tidy results
def test_rows_have_the_columns_of_the_reported_numbers_and_more(evaluated):
    _, tables, _ = evaluated
    table = tables["clip"]
    assert tuple(table.columns) == runner.COLUMNS
    assert set(table["task"]) == {
        "linear_probe", "few_shot", "image_retrieval", "text_retrieval", "zero_shot", "zero_shot_ood", "mmvp_vlm",
    }  # fmt: skip
    assert set(table.loc[table["task"] == "image_retrieval", "metric"]) == {"recall@1", "recall@5", "recall@10"}
    assert not table.duplicated(["task", "dataset", "metric"]).any()
    shares = table[table["task"] != "mmvp_vlm"]
    assert shares["value"].between(0, 100).all() and (shares["stderr"] >= 0).all() and (shares["n"] > 10).all()
    assert (table["dataset"] != table["paper_name"]).sum() == len(shares)  # generated sets have names of their own


def test_the_report_reads_the_results(evaluated):
    root, tables, _ = evaluated
    read = report.read("smoke", root / "results")
    row = tables["diffclip"].query("task == 'linear_probe'").iloc[0]
    number = read.number("CC3M", "DiffCLIP", "linear_probe", "DTD", "accuracy")
    assert number.value == pytest.approx(row["value"]) and number.stderr == pytest.approx(row["stderr"])
    difference = read.difference("CC3M", "DiffCLIP", "linear_probe", "DTD", "accuracy")
    assert difference.test in ("McNemar", "paired bootstrap")


def test_numbers_are_those_of_the_protocols(models, evaluated):
    root, tables, _ = evaluated
    test = benchmarks.load("ImageNet", SCALE)
    who = models["clip"]
    kept = Features(who, root / "features", progress=False)
    nearest = torch.nn.functional.normalize(kept.images(test), dim=1) @ kept.classes(test).T
    expected = 100 * (nearest.argmax(1).numpy() == test.labels).mean()
    row = tables["clip"].query("task == 'zero_shot'").iloc[0]
    assert row["value"] == pytest.approx(expected) and row["n"] == len(test) and row["chance"] == 100 * test.chance
    with torch.inference_mode():
        alone = who.encoder.encode_image(who.view(test.images[3])[None])[0]
    assert torch.allclose(kept.images(test)[3], alone, atol=1e-4)


def test_comparisons_pair_the_answers(models, evaluated):
    root, tables, table = evaluated
    assert set(table["baseline"]) == {"clip"} and set(table["model"]) == {"diffclip"}
    assert len(table) == len(tables["clip"])
    merged = (
        tables["diffclip"]
        .merge(tables["clip"], on=["task", "dataset"], suffixes=("", "_base"))
        .query("task == 'zero_shot'")
    )
    row = table.query("task == 'zero_shot'").iloc[0]
    assert row["difference"] == pytest.approx((merged["value"] - merged["value_base"]).iloc[0])
    assert row["test"] == "McNemar" and row["low"] <= row["difference"] <= row["high"]
    assert (table["p_holm"] >= table["p"]).all()
    assert table.query("task == 'image_retrieval'")["n"].iloc[0] == len(benchmarks.load("Flickr8k", SCALE))  # clusters
    found = runner.items(root, models["clip"].name, "zero_shot", row["dataset"], "accuracy")
    assert found.value == pytest.approx(row["baseline_value"])
    pd.testing.assert_frame_equal(compare(SCALE, root=root), table)


# ------------------------------------------------------------------------------------------ stopping and going on
def test_what_is_finished_is_not_done_again(models, evaluated):
    root, tables, _ = evaluated
    again = evaluate(silent(models["clip"]), SCALE, sets=SETS, root=root, progress=False)
    pd.testing.assert_frame_equal(again, tables["clip"])


def test_an_interrupted_evaluation_goes_on_where_it_was(models, evaluated, tmp_path, monkeypatch):
    _, tables, _ = evaluated
    ran = []

    def run(name, real):
        def wrapped(*arguments):
            if len(ran) == 2:
                raise KeyboardInterrupt
            ran.append(name)
            return list(real(*arguments))

        return wrapped

    real = dict(runner._RUN)
    monkeypatch.setattr(runner, "_RUN", {name: run(name, f) for name, f in real.items()})
    with pytest.raises(KeyboardInterrupt):
        evaluate(models["clip"], SCALE, sets=SETS, root=tmp_path, progress=False)
    done = list(ran)
    monkeypatch.setattr(runner, "_RUN", {name: (lambda *a, n=name: ran.append(n) or real[n](*a)) for name in real})
    finished = evaluate(models["clip"], SCALE, sets=SETS, root=tmp_path, progress=False)
    assert not set(done) & set(ran[2:]) and len(ran) == 6
    pd.testing.assert_frame_equal(finished, tables["clip"])


@pytest.mark.parametrize("spoil", ["cut", "flip", "remove", "json"])
def test_damaged_items_are_evaluated_again_with_a_word(models, tmp_path, caplog, spoil):
    sets = ["ImageNet"]
    before = evaluate(models["clip"], SCALE, sets=sets, root=tmp_path, progress=False)
    file = next((tmp_path / "results" / "items" / models["clip"].name).glob("zero_shot-*.npz"))
    content = bytearray(file.read_bytes())
    if spoil == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif spoil == "flip":
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    elif spoil == "remove":
        file.unlink()
    else:
        file.with_suffix(".json").write_text("{")
    with caplog.at_level(logging.WARNING, "diffclip"):
        after = evaluate(models["clip"], SCALE, sets=sets, root=tmp_path, progress=False)
    assert "evaluated again" in caplog.text
    pd.testing.assert_frame_equal(after, before)


def test_other_weights_are_evaluated_anew(models, tmp_path):
    first = evaluate(models["clip"], SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    other = subject(create_model("clip", SCALE.size, seed=2), name=models["clip"].name, pretraining="x")
    assert other.key != models["clip"].key
    second = evaluate(other, SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    assert len(second) == len(first) and (second["pretraining"] == "x").all()


def test_a_set_that_changed_is_evaluated_anew_and_not_compared_with_its_past(models, tmp_path, monkeypatch, caplog):
    for who in models.values():
        evaluate(who, SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    assert len(compare(SCALE, root=tmp_path)) == 2
    real = benchmarks.load

    def changed(*arguments, **options):
        found = real(*arguments, **options)
        return replace(found, fingerprint=found.fingerprint | {"sha256": "another"})

    monkeypatch.setattr(benchmarks, "load", changed)
    ran = []
    monkeypatch.setattr(
        runner, "_RUN", {k: (lambda *a, k=k, f=f: ran.append(k) or f(*a)) for k, f in runner._RUN.items()}
    )
    evaluate(models["clip"], SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    assert ran == ["zero_shot", "zero_shot_ood"]
    with caplog.at_level(logging.WARNING, "diffclip"):
        assert len(compare(SCALE, root=tmp_path)) == 0
    assert "different versions" in caplog.text


# ------------------------------------------------------------------------------------------------------------ features
def test_features_are_extracted_once(tmp_path):
    bench = made_up(labels=np.zeros(24, dtype=int))
    first = Features(colours(), tmp_path, progress=False).images(bench)
    second = Features(silent(colours()), tmp_path, progress=False).images(bench)
    assert torch.equal(first, second) and first.shape == (24, 6)


def test_features_of_other_weights_or_other_pictures_are_not_mistaken_for_them(tmp_path):
    bench = made_up()
    Features(colours(), tmp_path, progress=False).images(bench)
    for who, what in (
        (silent(colours(key="other")), bench),
        (silent(colours()), replace(bench, fingerprint=bench.fingerprint | {"sha256": "x"})),
    ):
        with pytest.raises(AssertionError, match="a model was asked"):
            Features(who, tmp_path, progress=False).images(what)


@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_damaged_features_are_made_again_with_a_word(tmp_path, caplog, spoil):
    bench = made_up()
    first = Features(colours(), tmp_path, progress=False).images(bench)
    file = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if spoil == "flip":
        content[-5] ^= 1
    file.write_bytes(content[:-9] if spoil == "cut" else content)
    with caplog.at_level(logging.WARNING, "diffclip"):
        again = Features(colours(), tmp_path, progress=False).images(bench)
    assert "made again" in caplog.text and torch.equal(first, again)
    Features(silent(colours()), tmp_path, progress=False).images(bench)  # and kept


def test_a_long_extraction_that_stops_goes_on_from_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 4)
    monkeypatch.setattr(features, "PART", 8)
    bench = made_up(n=30)
    whole = Features(colours(), tmp_path / "whole", progress=False).images(replace(bench, images=bench.images[:]))

    class Stops(Colours):
        seen = 0

        def encode_image(self, images):
            self.seen += len(images)
            if self.seen > 18:
                raise KeyboardInterrupt
            return super().encode_image(images)

    with pytest.raises(KeyboardInterrupt):
        Features(colours(encoder=Stops()), tmp_path / "parts", progress=False).images(bench)
    second = Stops()  # 14 images are left, so it is not stopped
    assert torch.equal(Features(colours(encoder=second), tmp_path / "parts", progress=False).images(bench), whole)
    assert second.seen == 30 - 16
    assert len(list((tmp_path / "parts").rglob("*.safetensors"))) == 1  # the parts are gone


def test_features_that_are_not_finite_stop_at_the_first_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 4)

    class Diverged(Colours):
        calls = 0

        def encode_image(self, images):
            self.calls += 1
            return super().encode_image(images) / 0

    encoder = Diverged()
    with pytest.raises(EvaluationError, match="colours embeds images 0 to 3 of made-up as NaN or infinity"):
        Features(colours(encoder=encoder), tmp_path, progress=False).images(made_up())
    assert encoder.calls == 1 and not list(tmp_path.rglob("*.safetensors"))


def test_class_embeddings_come_from_all_templates(tmp_path):
    bench = made_up(labels=np.zeros(24, dtype=int), classnames=("cat", "horse"), templates=("a {c}", "my {c}!"))
    found = Features(colours(), tmp_path, progress=False).classes(bench)
    each = colours().encoder.encode_text(colours().tokens(["a horse", "my horse!"]))
    expected = torch.nn.functional.normalize(torch.nn.functional.normalize(each, dim=1).mean(0), dim=0)
    assert torch.allclose(found[1], expected, atol=1e-6)


# ------------------------------------------------------------------------------- wrong use, before work is wasted
def swapped(monkeypatch, **splits):
    monkeypatch.setattr(benchmarks, "load", lambda spec, scale, split="test", **_: splits[split])
    monkeypatch.setattr(benchmarks, "resolve", lambda name, scale: splits["test"].spec)


LABELS = {"labels": np.repeat(np.arange(4), 6), "classnames": ("a", "b", "c", "d"), "templates": ("a {c}",)}


@pytest.mark.parametrize(
    "test, train, words",
    [
        ({"classnames": ("a", "b", "c")}, {}, "made-up runs from 0 to 3.*3 classes"),
        ({}, {"labels": np.repeat(np.arange(4), 6) + 1}, r"made-up \(train\) runs from 1 to 4"),
        ({"templates": ()}, {}, "no prompt templates"),
        ({"labels": np.repeat(np.arange(4), [9, 9, 2, 4])}, {}, "2 of 4 classes are too small"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_before_any_feature(tmp_path, monkeypatch, test, train, words):
    generated = {"spec": replace(made_up().spec, source="generated")}
    swapped(
        monkeypatch,
        test=replace(made_up(**(LABELS | test)), **generated),
        train=replace(made_up(split="train", **(LABELS | train)), **generated),
    )
    monkeypatch.setattr(Features, "_encode_images", lambda *_: pytest.fail("features were extracted"))
    with pytest.raises(EvaluationError, match=words):
        evaluate(colours(), SCALE, sets=["x"], tasks=["few_shot"], root=tmp_path, progress=False)


def test_a_gallery_smaller_than_k_is_refused_before_any_feature(tmp_path, monkeypatch):
    swapped(monkeypatch, test=made_up("retrieval", n=8, captions=[["one", "two"]] * 8))
    monkeypatch.setattr(Features, "_encode_images", lambda *_: pytest.fail("features were extracted"))
    with pytest.raises(EvaluationError, match="made-up: top 10 was asked for, but the gallery holds 8"):
        evaluate(colours(), SCALE, sets=["x"], root=tmp_path, progress=False)


def test_unknown_tasks_and_sets():
    with pytest.raises(ValueError, match="Unknown evaluation task 'zero-shot'"):
        evaluate(colours(), SCALE, tasks=["zero-shot"])
    with pytest.raises(ValueError, match="no evaluation set 'nothing'"):
        evaluate(colours(), SCALE, sets=["nothing"])


def test_comparing_without_results(tmp_path):
    with pytest.raises(EvaluationError, match="nothing to compare"):
        compare(SCALE, root=tmp_path)


# ------------------------------------------------------------------------------------------------- anything that encodes
def test_pairs_of_images_are_looked_up_by_their_questions(tmp_path, monkeypatch):
    pairs = tuple(PairQuestion("state", (2 * i + 1, 2 * i), ("long statement", "short")) for i in range(12))
    swapped(monkeypatch, test=made_up("mmvp", pairs=pairs))
    table = evaluate(colours(), SCALE, sets=["x"], root=tmp_path, progress=False)
    assert table["metric"].tolist() == ["pairs_correct_of_12"] and table["n"].tolist() == [12]


def test_an_open_clip_model_is_evaluated_with_its_own_tokenizer_and_view(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    tower = {"width": 32, "layers": 1, "patch_size": 16, "image_size": 32}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "tiny-for-test.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": tower | {"head_width": 16}, "text_cfg": text})
    )
    open_clip.add_model_config(tmp_path / "tiny-for-test.json")
    who = subject("open_clip:tiny-for-test")
    assert who.model == "tiny-for-test" and who.pretraining == "none"
    assert who.tokens(["a dog", "a cat"]).shape == (2, 20)
    table = evaluate(who, SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    assert table["task"].tolist() == ["zero_shot", "zero_shot_ood"] and (table["model"] == "tiny-for-test").all()
    with pytest.raises(ValueError, match="knows no architecture 'ViT-Z'"):
        subject("open_clip:ViT-Z/openai")


def test_a_checkpoint_gives_the_same_results_as_the_model(models, evaluated, tmp_path):
    from diffclip.model import save_model

    path = save_model(models["clip"].encoder, tmp_path / "my-model.safetensors")
    who = subject(path, pretraining="generated corpus for CC3M")
    assert who.name == "my-model" and who.key == models["clip"].key and who.model == "clip"
    table = evaluate(who, SCALE, sets=["ImageNet"], root=tmp_path, progress=False)
    expected = evaluated[1]["clip"].query("task == 'zero_shot'")["value"].iloc[0]
    assert table["value"].iloc[0] == expected
