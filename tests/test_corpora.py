"""Generated corpora, and what every corpus promises to training."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import sample
from torch.utils.data import DataLoader

from diffclip import corpora, prepare, world
from diffclip.corpora import CorpusSpec, open_corpus
from diffclip.shards import read_shard, write_shard
from diffclip.sources import CorpusError
from diffclip.streaming import Stream

SPEC = CorpusSpec("cc3m", "world", pairs=50, image_size=32, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="module")
def corpus(root):
    return open_corpus(SPEC, root=root)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(corpora, "SHARD_SCENES", 20)


def contents(corpus) -> list[tuple[bytes, list[str]]]:
    return [(corpus[i]["image"].tobytes(), corpus[i]["captions"]) for i in range(len(corpus))]


def test_a_generated_corpus_shows_the_scenes_of_its_seed(corpus):
    assert len(corpus) == 50
    for number in (0, 17, 49):
        scene = world.sample_scene(number, seed=3)
        pair = corpus[number]
        assert pair["captions"] == corpus.captions(number) == world.captions(scene, SPEC.wordings, noisy=SPEC.noise)
        assert (pair["image"].mode, pair["image"].size) == ("RGB", (32, 32))
        rendered = world.render(scene, 32).astype(float)
        assert np.abs(np.asarray(pair["image"], dtype=float) - rendered).mean() < 8  # JPEG, colour at half resolution


def test_its_name_says_that_it_is_generated(corpus):
    assert corpus.fingerprint["display_name"] == "generated corpus in the place of CC3M"
    assert "generated" in repr(corpus)
    assert CorpusSpec("cc12m", "prepared", image_size=224).display_name == "CC12M"
    assert json.loads(json.dumps(corpus.fingerprint)) == corpus.fingerprint


def test_its_shards_are_as_img2dataset_writes_them(corpus):
    (shard,) = (corpus.folder / "shards").glob("*.tar")
    samples = list(read_shard(shard))
    assert [s.key for s in samples] == [f"{i:09d}" for i in range(50)]
    files = samples[9].files
    record = json.loads(files["json"])
    assert set(files) == {"jpg", "txt", "json"}
    assert files["txt"].decode() == record["caption"] == record["captions"][0]
    assert json.loads(record["scene"])["things"] == world.sample_scene(9, seed=3).attributes()["things"]


def test_seeds_share_no_scene(corpus, root):
    other = open_corpus(replace(SPEC, seed=12), root=root)
    assert other.fingerprint["hash"] != corpus.fingerprint["hash"]
    assert not {image for image, _ in contents(corpus)} & {image for image, _ in contents(other)}


def test_a_longer_corpus_begins_with_the_shorter_one(corpus, root):
    assert contents(open_corpus(replace(SPEC, pairs=60), root=root))[:50] == contents(corpus)


@pytest.mark.processes
def test_generated_again_elsewhere_it_is_the_same(corpus, tmp_path, small_shards):
    """In another place, by other processes, in shards of another length."""
    code = (
        "import sys; from diffclip.corpora import *\n"
        "if __name__ == '__main__':\n"
        "    c = open_corpus(CorpusSpec('cc3m', 'world', pairs=50, image_size=32, seed=3), root=sys.argv[1])\n"
        "    print(c.fingerprint['hash'])\n"
    )
    (tmp_path / "run.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "7"}
    run = [sys.executable, tmp_path / "run.py", tmp_path / "a"]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == corpus.fingerprint["hash"]
    assert contents(open_corpus(SPEC, root=tmp_path / "b", workers=1)) == contents(corpus)


def test_opened_again_nothing_is_made(corpus, root, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in corpus.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    monkeypatch.setattr(prepare, "index_part", None)
    assert open_corpus(SPEC, root=root).fingerprint == corpus.fingerprint
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "gone", "no record", "no manifest"])
def test_damage_is_seen_and_repaired_with_a_word(tmp_path, small_shards, caplog, damage):
    corpus = open_corpus(SPEC, root=tmp_path, workers=1)
    whole, fingerprint = contents(corpus), corpus.fingerprint
    part = corpus.folder / "part-00001.arrow"
    untouched = (corpus.folder / "part-00000.arrow").stat().st_mtime_ns
    content = bytearray(part.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "cut short":
        part.write_bytes(content[:-100])
    elif damage == "gone":
        part.unlink()
    elif damage == "no record":
        part.with_suffix(".json").write_text('{"identity": ')
    else:
        (corpus.folder / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "diffclip"):
        again = open_corpus(SPEC, root=tmp_path, workers=1)
    assert again.fingerprint == fingerprint and contents(again) == whole
    assert (corpus.folder / "part-00000.arrow").stat().st_mtime_ns == untouched
    if damage in ("flipped bit", "cut short", "gone"):
        assert "part-00001.arrow" in caplog.text and "made again" in caplog.text


def test_a_world_that_looks_different_is_another_corpus(root, corpus, monkeypatch):
    real = world.fingerprint
    monkeypatch.setattr(world, "fingerprint", lambda scene, size: real(scene, size)[::-1])
    assert open_corpus(SPEC, root=root).folder != corpus.folder


def test_workers_read_what_one_process_reads(corpus):
    loaded = DataLoader(corpus, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [(p["image"].tobytes(), p["captions"]) for p in loaded] == contents(corpus)


def test_it_can_be_sent_to_another_process(corpus):
    sent = pickle.dumps(corpus)
    assert len(sent) < 100_000  # the file is mapped there again, not copied
    assert contents(pickle.loads(sent)) == contents(corpus)


def test_numbers_out_of_range_are_refused(corpus):
    for index in (50, 1000):
        with pytest.raises(IndexError):
            corpus[index]
    assert corpus[np.int64(3)]["captions"] == corpus.captions(3)


def test_the_rows_are_an_ordinary_data_set(corpus):
    row = corpus.dataset[4]
    assert row["image"].size == (32, 32)
    assert row["captions"] == corpus.captions(4) and row["key"] == "000000004"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source": "internet"}, "'world' or is 'prepared'.*'internet'"),
        ({"pairs": None}, "needs its number of pairs"),
        ({"pairs": 0}, "at least one pair"),
        ({"image_size": 4}, "8 pixels or more"),
        ({"wordings": 0}, "at least one wording"),
        ({"noise": 1.5}, "between 0 and 1"),
        ({"name": "../up"}, "folder name"),
        ({"name": ""}, "folder name"),
    ],
)
def test_impossible_specs_are_explained(options, message):
    with pytest.raises(CorpusError, match=message):
        replace(SPEC, **options)


# ------------------------------------------------------------------------------------------------------------ streaming


def test_streaming_gives_the_samples_and_says_what_it_cannot_promise(corpus, caplog):
    with caplog.at_level(logging.WARNING, "diffclip"):
        stream = Stream(corpus.folder / "shards")
    assert "first look" in caplog.text and "same batches" in caplog.text
    assert [(s["image"].tobytes(), s["captions"]) for s in stream] == contents(corpus)
    shuffled = [s["key"] for s in Stream(corpus.folder / "shards", shuffle_buffer=10, seed=1)]
    assert sorted(shuffled) == [f"{i:09d}" for i in range(50)] != shuffled


def test_streaming_leaves_out_and_counts_what_is_bad(tmp_path):
    samples = [sample(i) for i in range(5)]
    samples[1][1]["jpg"] = b"not an image"
    samples[3][1]["txt"] = b"  "
    write_shard(tmp_path / "00000.tar", samples)
    stream = Stream(tmp_path)
    assert [s["captions"][0] for s in stream] == [f"picture number {i}" for i in (0, 2, 4)]
    assert stream.skipped == {"broken image": 1, "empty caption": 1}


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.7])
def test_a_damaged_shard_ends_a_stream_with_no_traceback_of_tar(tmp_path, cut):
    """datasets takes some cuts for the end: nothing more can be promised (and WARNING does not)."""
    write_shard(tmp_path / "00000.tar", [sample(i) for i in range(9)])
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: int(len(content) * cut)])
    seen = []
    try:
        seen.extend(found["key"] for found in Stream(tmp_path))
    except CorpusError as error:
        assert "breaks off" in str(error) and "diffclip prepare" in str(error)
    assert len(seen) < 9


def test_records_of_changing_type_are_explained(tmp_path):
    samples = [sample(i) for i in range(2)]
    for (_, files), sha in zip(samples, (1, "one"), strict=True):
        files["json"] = json.dumps({"sha256": [sha, "a"]}).encode()
    write_shard(tmp_path / "00000.tar", samples)
    with pytest.raises(CorpusError, match="same fields and types.*diffclip prepare"):
        list(Stream(tmp_path))


def test_a_table_is_not_streamed(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\na.jpg,b\n")
    with pytest.raises(CorpusError, match="Prepare it instead"):
        Stream(tmp_path / "pairs.csv")
