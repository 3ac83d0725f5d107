"""From bad and good data to an index: nothing bad is fatal, nothing is done twice, nothing is lost by a kill."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode, picture, sample, write_shards
from PIL import Image

from diffclip import prepare as module
from diffclip import sources
from diffclip.corpora import CorpusSpec, open_corpus
from diffclip.prepare import DiskSpaceError, prepare
from diffclip.samples import BadSample, normalise_image
from diffclip.shards import DamagedShard, read_shard, write_shard
from diffclip.sources import CorpusError


def decoded(content: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(content))


def opened(folder: Path, **options):
    return open_corpus(CorpusSpec("pictures", "prepared", image_size=32, path=str(folder), **options))


def rejects(folder: Path) -> list[tuple[str, str, str]]:
    with open(folder / "rejects.csv", newline="") as stream:
        return [(row["shard"], row["key"], row["reason"]) for row in csv.DictReader(stream)]


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("width, height", [(60, 40), (40, 60), (33, 200), (20, 12), (32, 32)])
def test_the_shorter_edge_becomes_the_asked_size_and_proportions_stay(width, height):
    image = decoded(normalise_image(encode(picture(1, width, height)), 32))
    assert image.format == "JPEG" and image.mode == "RGB"
    assert min(image.size) == 32
    assert max(image.size) == pytest.approx(32 * max(width, height) / min(width, height), abs=0.5)


def test_a_jpeg_of_the_right_size_is_not_compressed_again():
    content = encode(picture(2, 48, 32), quality=80)
    assert normalise_image(content, 32) is content


def test_the_picture_stays_the_picture():
    original = picture(3, 400, 300)
    small = np.asarray(decoded(normalise_image(encode(original, quality=95), 32)), dtype=float)
    expected = np.asarray(original.resize((43, 32), Image.Resampling.BICUBIC), dtype=float)
    assert small.shape == expected.shape
    assert np.abs(small - expected).mean() < 3


@pytest.mark.parametrize("mode, format", [("L", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("I;16", "PNG"), ("1", "PNG")])
def test_every_colour_mode_becomes_rgb(mode, format):
    image = picture(4).convert("L").convert("I").convert("I;16") if mode == "I;16" else picture(4).convert(mode)
    assert decoded(normalise_image(encode(image, format), 32)).mode == "RGB"


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert np.asarray(decoded(normalise_image(encode(clear, "PNG"), 32))).min() > 250


def test_a_camera_turned_on_its_side_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown standing
    stored = encode(picture(5, 64, 32), exif=exif)
    assert decoded(normalise_image(stored, 32)).size == (32, 64)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "broken image"),
        (b"<html>404 not found</html>", "broken image"),
        (encode(picture(6))[:500], "broken image"),
        (encode(picture(6), "PNG")[:-40], "broken image"),
        (encode(Image.new("RGB", (2000, 20))), "extreme aspect ratio"),
    ],
    ids=["nothing", "html", "cut JPEG", "cut PNG", "banner"],
)
def test_what_is_no_whole_picture_is_refused(content, reason):
    with pytest.raises(BadSample) as refused:
        normalise_image(content, 32)
    assert refused.value.reason == reason


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadSample) as refused:
        normalise_image(encode(picture(7)), 32)
    assert refused.value.reason == "broken image"


# --------------------------------------------------------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def good_shard(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shard"), 1, 6)[0]


def test_a_shard_comes_back_as_it_was_written(good_shard):
    found = [(s.key, s.files) for s in read_shard(good_shard)]
    assert found == [sample(i) for i in range(6)]
    # The end of a tar file (two empty blocks, padded to a record) belongs to no sample.
    assert good_shard.stat().st_size - 10240 < sum(s.nbytes for s in read_shard(good_shard)) < good_shard.stat().st_size


def test_the_same_samples_give_the_same_shard(good_shard, tmp_path):
    again = write_shards(tmp_path, 1, 6)[0]
    assert again.read_bytes() == good_shard.read_bytes()


@given(where=st.floats(0, 1))
def test_a_shard_cut_anywhere_gives_what_is_whole_and_says_so(good_shard, tmp_path_factory, where):
    content = good_shard.read_bytes()
    cut = int(where * sum(s.nbytes for s in read_shard(good_shard)))  # before the end marker
    short = tmp_path_factory.mktemp("cut") / "short.tar"
    short.write_bytes(content[:cut])
    whole = []
    with pytest.raises(DamagedShard, match="short.tar"):
        for found in read_shard(short):
            whole.append((found.key, found.files))
    assert whole == [sample(i) for i in range(len(whole))]
    assert len(whole) >= cut // max(s.nbytes for s in read_shard(good_shard)) - 1


def test_a_shard_with_rubbish_inside_is_damaged(good_shard, tmp_path):
    content = bytearray(good_shard.read_bytes())
    start = sum(s.nbytes for s in list(read_shard(good_shard))[:3])
    content[start : start + 512] = b"\xff" * 512  # where a header should be
    bad = tmp_path / "bad.tar"
    bad.write_bytes(content)
    whole = []
    with pytest.raises(DamagedShard):
        for found in read_shard(bad):
            whole.append(found.key)
    assert whole == [sample(0)[0], sample(1)[0]]  # the third is left out: its members may go on behind the damage


# -------------------------------------------------------------------------------------------------------------- prepare


def test_good_shards_become_pairs_in_their_order(tmp_path):
    write_shards(tmp_path / "shards", 3, 4)
    manifest = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)
    assert (manifest["pairs"], manifest["skipped"]) == (12, {})
    corpus = opened(tmp_path / "out")
    assert [corpus.captions(i) for i in range(12)] == [[f"picture number {i}"] for i in range(12)]
    pair = corpus[7]
    assert pair["captions"] == ["picture number 7"]
    assert (pair["image"].mode, pair["image"].size) == ("RGB", (48, 32))
    expected = np.asarray(picture(7).resize((48, 32), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(pair["image"], dtype=float) - expected).mean() < 3


def test_processes_change_nothing(tmp_path):
    write_shards(tmp_path / "shards", 3, 4)
    one = prepare("pictures", tmp_path / "shards", tmp_path / "one", image_size=32, workers=1)
    two = prepare("pictures", tmp_path / "shards", tmp_path / "two", image_size=32, workers=2)
    assert one == two


@pytest.mark.processes
def test_a_script_without_a_guard_may_call_it(tmp_path):
    write_shards(tmp_path / "shards", 2, 4)
    script = (
        "from diffclip.prepare import prepare\n"
        f"m = prepare('pictures', {str(tmp_path / 'shards')!r}, {str(tmp_path / 'out')!r}, image_size=32, workers=2)\n"
        "print(m['pairs'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-"],  # not even a file
        input=script,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "8\n", run.stderr


def test_the_same_data_elsewhere_is_the_same_corpus(tmp_path):
    found = []
    for place in ("here", "there"):
        write_shards(tmp_path / place / "shards", 1, 3)
        prepare("pictures", tmp_path / place / "shards", tmp_path / place / "out", image_size=32)
        found.append(opened(tmp_path / place / "out").fingerprint)
    assert found[0] == found[1]
    assert str(tmp_path) not in json.dumps(found)


def test_bad_samples_are_skipped_counted_and_listed(tmp_path):
    samples = [sample(i) for i in range(9)]
    samples[1][1]["jpg"] = b"not an image"
    samples[2][1]["jpg"] = samples[2][1]["jpg"][:300]
    samples[3] = sample(3, caption="  \n ")
    samples[4][1].pop("txt"), samples[4][1].pop("json")
    samples[5][1].pop("jpg")
    samples[6][1].pop("txt")  # its json has the caption
    samples[7][1]["json"] = b"{"
    write_shard(tmp_path / "shards" / "00000.tar", samples)
    manifest = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32)
    assert manifest["skipped"] == {
        "broken image": 2,
        "empty caption": 1,
        "no caption": 1,
        "no image": 1,
        "unreadable caption": 1,
    }
    assert [key for _, key, _ in rejects(tmp_path / "out")] == [f"{i:09d}" for i in (1, 2, 3, 4, 5, 7)]
    corpus = opened(tmp_path / "out")
    assert [corpus.captions(i)[0] for i in range(len(corpus))] == [f"picture number {i}" for i in (0, 6, 8)]
    assert corpus.fingerprint["skipped"] == manifest["skipped"]


def test_several_wordings_of_the_json_are_all_kept(tmp_path):
    key, files = sample(0)
    files["json"] = json.dumps({"captions": ["a dog", " ", "  a brown dog "]}).encode()
    write_shard(tmp_path / "shards" / "00000.tar", [(key, files)])
    prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32)
    assert opened(tmp_path / "out").captions(0) == ["a dog", "a brown dog"]


def test_a_shard_truncated_in_the_middle_loses_only_its_end(tmp_path):
    shards = write_shards(tmp_path / "shards", 3, 6)
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:6_000])
    (tmp_path / "shards" / "00003.tar").write_bytes(b"this is not a tar file at all")
    (tmp_path / "shards" / "00004.tar").touch()
    manifest = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)
    assert manifest["skipped"] == {"damaged shard": 3}
    assert [part["pairs"] for part in manifest["parts"]][::2] == [6, 6, 0]
    assert 0 < manifest["parts"][1]["pairs"] < 6
    assert {shard for shard, _, _ in rejects(tmp_path / "out")} == {"00001.tar", "00003.tar", "00004.tar"}
    assert len(opened(tmp_path / "out")) == manifest["pairs"]


def test_started_again_it_does_only_what_is_missing(tmp_path, caplog):
    write_shards(tmp_path / "shards", 4, 3)
    out = tmp_path / "out"
    first = prepare("pictures", tmp_path / "shards", out, image_size=32, parts=2, workers=1)
    assert first["pairs"] == 6
    made = {p: p.stat().st_mtime_ns for p in out.glob("part-*.arrow")}
    more = prepare("pictures", tmp_path / "shards", out, image_size=32, workers=1)
    assert more["pairs"] == 12
    assert {p: p.stat().st_mtime_ns for p in made} == made
    # A damaged file, and one that is gone: these two are made again, with a word, and nothing else is.
    with open(out / "part-00001.arrow", "r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    (out / "part-00002.arrow").unlink()
    with pytest.raises(CorpusError, match="part-00001.arrow is damaged.*part-00002.arrow is missing.*diffclip prepare"):
        opened(out)
    before = {p: p.stat().st_mtime_ns for p in out.glob("part-*.arrow")}
    with caplog.at_level(logging.WARNING, "diffclip"):
        assert prepare("pictures", tmp_path / "shards", out, image_size=32, workers=1) == more
    assert len(opened(out)) == 12
    assert "part-00001.arrow is damaged" in caplog.text and "part-00002.arrow is missing" in caplog.text
    after = {p: p.stat().st_mtime_ns for p in out.glob("part-*.arrow")}
    assert {p.name for p in after if after[p] != before.get(p)} == {"part-00001.arrow", "part-00002.arrow"}


def test_a_shard_that_changed_is_indexed_again(tmp_path):
    shards = write_shards(tmp_path / "shards", 2, 3)
    before = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)
    write_shard(shards[1], [sample(50), sample(51)])
    after = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)
    assert after["pairs"] == 5
    assert [a == b for a, b in zip(before["parts"], after["parts"], strict=True)] == [True, False]


@pytest.mark.processes
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_index(tmp_path):
    write_shards(tmp_path / "shards", 8, 60)
    undisturbed = prepare("pictures", tmp_path / "shards", tmp_path / "undisturbed", image_size=32, workers=1)
    out = tmp_path / "killed"
    script = tmp_path / "run.py"
    script.write_text(
        "from diffclip.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare('pictures', {str(tmp_path / 'shards')!r}, {str(out)!r}, image_size=32, workers=2)\n"
    )
    for kill_after in (1, 4):
        process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": os.getcwd()})
        while len(list(out.glob("part-*.json"))) < kill_after and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed: give it more to do"
        assert not (out / "manifest.json").exists()
    with pytest.raises(CorpusError, match="not finished"):
        opened(out)
    (out / ".part-00007.abc.arrow").write_bytes(b"left over")
    done = {p: p.stat().st_mtime_ns for p in out.glob("part-*.json")}
    assert len(done) >= 4
    assert prepare("pictures", tmp_path / "shards", out, image_size=32, workers=1) == undisturbed
    kept = [p for p in done if p.stat().st_mtime_ns == done[p]]
    assert len(kept) >= 4  # (a process that survived the kill by a moment may still have finished its part)
    assert not list(out.glob(".part-*"))


def test_two_at_once_wait_for_each_other(tmp_path, caplog):
    import filelock

    write_shards(tmp_path / "shards", 1, 3)
    (tmp_path / "out").mkdir()
    results = []

    def work():
        results.append(prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1))

    with caplog.at_level(logging.WARNING, "diffclip"):
        with filelock.FileLock(tmp_path / "out" / ".lock"):
            thread = threading.Thread(target=work)
            thread.start()
            while "waiting for it" not in caplog.text:
                time.sleep(0.005)
            assert not list((tmp_path / "out").glob("part-*"))
        thread.join()
    assert results[0]["pairs"] == 3


@pytest.mark.processes
def test_a_worker_killed_is_an_error_that_says_what_to_do(tmp_path):
    write_shards(tmp_path / "shards", 2, 3)
    source = sources.open_source(tmp_path / "shards", out=tmp_path / "out")
    jobs = {n: (_Deadly(part.path), tmp_path / f"part-{n}.arrow", 32) for n, part in enumerate(source.parts)}
    with pytest.raises(CorpusError, match="was killed.*fewer than 2 workers"):
        list(module._run(jobs, 2))


class _Deadly(sources.Shard):
    def rows(self):
        os.kill(os.getpid(), signal.SIGKILL)
        yield


def test_the_disk_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", 2, 3)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="1 kB free.*Free some"):
        prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32)
    assert not list((tmp_path / "out").glob("part-*"))
    prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, check_disk=False, workers=1)


def test_a_disk_that_fills_up_on_the_way_is_explained_and_loses_nothing(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", 2, 3)
    real, calls = module.written_whole, []

    def filling(path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(module, "written_whole", filling)
    with pytest.raises(DiskSpaceError, match="filled up.*is kept"):
        prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)
    assert len(list((tmp_path / "out").glob("part-*.json"))) == 1
    assert prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1)["pairs"] == 6


def test_the_disk_estimate_is_said_and_about_right(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", 2, 40)
    monkeypatch.setattr(module, "_size", lambda count: f"<{count:.0f}>")
    said = []
    manifest = prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32, workers=1, say=said.append)
    assert said[0].startswith("2 parts to prepare take about <")
    assert float(said[0].split("<")[1].split(">")[0]) == pytest.approx(manifest["bytes"], rel=0.35)


# ---------------------------------------------------------------------------------------------------------- wrong usage


def test_wrong_sources_are_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no webdataset shards.*img2dataset"):
        prepare("pictures", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CorpusError, match="neither a folder of shards"):
        prepare("pictures", "no such thing", tmp_path / "out")
    with pytest.raises(CorpusError, match="'pictures'.*give its source.*cc3m, cc12m"):
        prepare("pictures")
    (tmp_path / "notes.docx").touch()
    with pytest.raises(CorpusError, match="not a table"):
        prepare("pictures", tmp_path / "notes.docx", tmp_path / "out")
    with pytest.raises(CorpusError, match="8 pixels or more"):
        prepare("pictures", tmp_path / "empty", tmp_path / "out", image_size=0)
    write_shards(tmp_path / "shards", 1, 1)
    with pytest.raises(CorpusError, match="At least one part"):
        prepare("pictures", tmp_path / "shards", tmp_path / "out", parts=0)


def test_a_folder_is_not_overwritten_by_another_corpus(tmp_path):
    for name in "ab":
        write_shards(tmp_path / name, 1, 2)
    prepare("pictures", tmp_path / "a", tmp_path / "out", image_size=32)
    with pytest.raises(CorpusError, match="holds another corpus"):
        prepare("pictures", tmp_path / "b", tmp_path / "out", image_size=32)
    with pytest.raises(CorpusError, match="at 32 pixels.*at 64 pixels"):
        prepare("pictures", tmp_path / "a", tmp_path / "out", image_size=64)


def test_a_corpus_without_a_good_pair_cannot_be_opened(tmp_path):
    write_shard(tmp_path / "shards" / "00000.tar", [sample(0, caption="")])
    prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32)
    with pytest.raises(CorpusError, match="no usable pairs.*empty caption: 1"):
        opened(tmp_path / "out")


def test_opening_what_is_not_there_says_what_to_run(tmp_path):
    with pytest.raises(CorpusError, match="There is no prepared corpus cc3m.*diffclip prepare cc3m"):
        open_corpus(CorpusSpec("cc3m", "prepared", image_size=224), root=tmp_path)
    write_shards(tmp_path / "shards", 1, 3)
    prepare("pictures", tmp_path / "shards", tmp_path / "out", image_size=32)
    with pytest.raises(CorpusError, match="prepared at 32 pixels, 224 were asked"):
        open_corpus(CorpusSpec("pictures", "prepared", image_size=224, path=str(tmp_path / "out")))
    with pytest.raises(CorpusError, match="has 3 pairs, 5 were asked for"):
        opened(tmp_path / "out", pairs=5)
    assert len(opened(tmp_path / "out", pairs=2)) == 2


# --------------------------------------------------------------------------------------------------------------- tables


def write_table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(encode(picture(number)))
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_csv_with_all_its_troubles(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TABLE_ROWS", 3)  # several parts, found again by their offset in the file
    table = write_table(
        tmp_path / "t",
        "\ufeffid,image,caption\n"
        "0,0.jpg,zero\n"
        '1,1.jpg,"one, with a comma\nand a second line"\n'
        "2,missing.jpg,two\n"
        "\n"
        "3,3.jpg,\n"
        "4,broken.jpg,four\n"
        "5,5.jpg\n"
        "6,6.jpg,the sixth: größer\n"
        ",,\n"
        f"7,{tmp_path / 't' / '7.jpg'},an absolute path\n",
    )
    manifest = prepare("pictures", table, tmp_path / "out", image_size=32, workers=1)
    assert len(manifest["parts"]) == 3
    assert manifest["skipped"] == {"broken image": 1, "empty caption": 3, "no image": 1}
    corpus = opened(tmp_path / "out")
    assert [corpus.captions(i)[0] for i in range(len(corpus))] == [
        "zero",
        "one, with a comma\nand a second line",
        "the sixth: größer",
        "an absolute path",
    ]
    assert [key for _, key, _ in rejects(tmp_path / "out")] == ["3", "4", "5", "6", "8"]


def test_a_tsv_with_columns_of_other_names(tmp_path):
    table = write_table(tmp_path / "t", "filepath\ttitle\tcaption in French\n0.jpg\ta, b\tune image\n", "pairs.tsv")
    prepare("pictures", table, tmp_path / "out", image_size=32)
    assert opened(tmp_path / "out").captions(0) == ["a, b"]
    prepare("pictures", table, tmp_path / "french", image_size=32, caption_column="caption in French")
    assert opened(tmp_path / "french").captions(0) == ["une image"]


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("file,words\n0.jpg,zero\n", {}, "no column for the captions: any of caption, title, text.*file, words"),
        ("url,caption\n0.jpg,zero\n", {}, "no column for the image paths.*url, caption"),
        ("image,caption\n0.jpg,zero\n", {"caption_column": "alt"}, "no column for the captions: 'alt'"),
        ("0.jpg,zero\n", {}, "first line says 0.jpg, zero.*add the missing header"),
        ("image,caption\n", {}, "a header and no rows"),
        ("", {}, "first line says nothing"),
    ],
)
def test_a_table_that_cannot_be_read_is_explained(tmp_path, text, options, message):
    with pytest.raises(CorpusError, match=message):
        prepare("pictures", write_table(tmp_path / "t", text), tmp_path / "out", image_size=32, **options)
