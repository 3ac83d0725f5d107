"""Evaluation sets: what is written is what is read, checked at each load; what does not fit is refused in clear words."""

import dataclasses
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image

from diffclip import benchmarks, corpora, generated, scales, world
from diffclip.benchmarks import BenchmarkError, BenchmarkSpec, load
from diffclip.evaluation import mmvp
from diffclip.shards import read_shard, write_shard

REPO = Path(benchmarks.__file__).resolve().parent.parent
SMOKE = {spec.name: spec for spec in benchmarks.registry("smoke")}
CLASSED = [n for n, s in SMOKE.items() if s.task in ("classification", "shift")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def fetch(name, root, split="test"):
    return load(name, "smoke", split, root=root)


# ------------------------------------------------------------------------------------------------------- the registry
def test_the_registry_covers_the_paper_at_every_scale():
    for name in scales.SCALES:
        specs = benchmarks.registry(scales.get_scale(name))
        places = [s.paper_name for s in specs]
        assert len(set(places)) == len(places) == len({s.name for s in specs}) == 19
        tasks = [s.task for s in specs]
        assert [tasks.count(t) for t in benchmarks.TASKS] == [9, 5, 3, 1, 1]


def test_the_registry_names_the_papers_sets_as_the_reported_table_does():
    rows = (REPO / "data" / "paper" / "reported.csv").read_text().splitlines()[1:]
    named = {r.split(",")[4] for r in rows if r.split(",")[3] not in ("mmvp_vlm", "pope")} - {"Avg."}
    assert named == {s.paper_name for s in SMOKE.values()} - {"MMVP-VLM", "POPE"}


def test_generated_sets_have_names_of_their_own():
    real = {s.paper_name.lower() for s in SMOKE.values()} | {s.name.lower() for s in benchmarks.registry("released")}
    for scale in ("smoke", "mini", "gpu"):
        for spec in benchmarks.registry(scale):
            assert spec.name.lower() not in real
            assert spec.display_name.startswith(spec.name) and "in the place of" in spec.display_name
            assert spec.image_size == scales.get_scale(scale).model.vision.image_size


def test_every_split_suffices_for_few_shot_episodes():
    for scale in ("smoke", "mini", "gpu"):
        for spec in benchmarks.registry(scale):
            if spec.task == "classification" and spec.name != "digits":
                classes = len(generated.CLASS_SETS[spec.name].classes)
                assert all(n % classes == 0 and n // classes >= 8 for n in spec.amounts.values())


def test_unknown_names_are_refused():
    with pytest.raises(BenchmarkError, match="'world-shape'.*world-shapes.*captions-busy"):
        load("world-shape", "smoke")
    with pytest.raises(BenchmarkError, match="'huge'.*mini"):
        benchmarks.registry("huge")
    with pytest.raises(BenchmarkError, match="no split 'val'.*test, train"):
        load("digits", "smoke", "val")
    with pytest.raises(BenchmarkError, match="no split 'train'.*test"):
        load("pairs", "smoke", "train")


# ------------------------------------------------------------------------------------------- written and read again
@pytest.mark.parametrize("name", CLASSED)
def test_classification_sets_are_read_as_they_were_made(name, root):
    for split in SMOKE[name].amounts:
        found = fetch(name, root, split)
        assert len(found) == len(found.images) == len(found.labels) == SMOKE[name].amounts[split]
        assert found.labels.dtype == np.int64
        assert list(found.classnames) == list(generated.CLASS_SETS[name].classes)
        assert all("{c}" in t for t in found.templates) and len(found.templates) >= 4
        assert found.chance == 1 / len(found.classnames)
        for index in (0, len(found) - 1):
            pixels, label = generated.class_sample(name, split, index, 32)
            assert np.array_equal(np.asarray(found.images[index]), pixels) and found.labels[index] == label
        if SMOKE[name].task == "classification":
            assert np.bincount(found.labels, minlength=len(found.classnames)).min() >= (5 if split == "train" else 6)


@pytest.mark.parametrize("name", ["captions-simple", "captions-mixed", "captions-busy"])
def test_retrieval_sets_have_five_captions_an_image(name, root):
    found = fetch(name, root)
    assert {len(c) for c in found.captions} == {5} and found.labels is None
    pixels, captions = generated.retrieval_sample(name, "test", 7, 32)
    assert np.array_equal(np.asarray(found.images[7]), pixels) and found.captions[7] == captions


def test_splits_and_sets_share_no_picture_with_each_other_or_a_corpus(root):
    owner = {}
    for name, spec in SMOKE.items():
        for split in spec.amounts:
            for image in fetch(name, root, split).images:
                held = owner.setdefault(image.tobytes(), (name, split))
                assert held == (name, split)
    seeds = {generated.stream(s.name, split) for s in SMOKE.values() for split in s.amounts}
    seeds |= {s + 1 for s in seeds} | {generated.stream("pairs", p) for p in generated.PATTERNS}
    trained = {c.seed for s in scales.SCALES.values() for c in s.corpora.values()}
    assert not seeds & trained and isinstance(scales.get_scale("mini").corpora["cc3m"], corpora.CorpusSpec)


def test_digits_are_the_real_ones(root):
    """Averaged over its class, a picture correlates with scikit-learn's digit and with no other as much."""
    from sklearn.datasets import load_digits

    data = load_digits()
    found = fetch("digits", root)
    assert np.array_equal(found.labels, data.target[1000 : 1000 + len(found)])
    ours = np.stack(
        [255 - np.asarray(i.convert("L").resize((8, 8), Image.Resampling.BOX), float) for i in found.images]
    )
    means = np.stack([ours[found.labels == c].mean(0).ravel() for c in range(10)])
    theirs = np.stack([data.images[data.target == c].mean(0).ravel() for c in range(10)])
    assert (np.corrcoef(means, theirs)[:10, 10:].argmax(1) == np.arange(10)).all()


def test_a_set_is_written_once_and_the_same_every_time(root, tmp_path):
    folder = benchmarks.ensure(SMOKE["world-stars"], "smoke", root=root)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert benchmarks.ensure(SMOKE["world-stars"], "smoke", root=root) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    other = benchmarks.ensure(SMOKE["world-stars"], "smoke", root=tmp_path)
    assert (other / "manifest.json").read_text() == (folder / "manifest.json").read_text()
    assert fetch("world-stars", root).fingerprint == fetch("world-stars", tmp_path).fingerprint
    assert sorted(p.name for p in tmp_path.rglob(".*")) == []


def test_further_processes_write_the_same(tmp_path, monkeypatch):
    spec = dataclasses.replace(SMOKE["captions-simple"], amounts={"test": 3, "train": 3}, image_size=100)
    one = benchmarks.ensure(spec, "smoke", root=tmp_path / "one", workers=1)
    jobs = [(spec, s, 0, 3, tmp_path / "two" / s / "0.tar") for s in spec.amounts]
    big = dataclasses.replace(spec, amounts={"test": 10**5})
    digests = list(benchmarks._run(jobs, big, workers=2))  # so large that it takes processes
    for split, digest in zip(spec.amounts, digests, strict=True):
        assert (one / split / "0.tar").read_bytes() == (tmp_path / "two" / split / "0.tar").read_bytes()
        assert len(digest) == 32


# ------------------------------------------------------------------------------------------------- damage and repair
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "manifest", "recipe"])
def test_a_damaged_set_is_made_again_with_a_word(harm, tmp_path, caplog):
    name = "world-kitchen"
    good = fetch(name, tmp_path)
    folder = tmp_path / "smoke" / name
    shard = folder / "test" / "0.tar"
    content = shard.read_bytes()
    if harm == "flip":
        shard.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif harm == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif harm == "remove":
        shard.unlink()
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        text = "{" if harm == "manifest" else json.dumps(manifest | {"key": "of another time"})
        (folder / "manifest.json").write_text(text)
    with caplog.at_level(logging.WARNING, "diffclip"):
        again = fetch(name, tmp_path)
    assert len(caplog.records) == 1 and "made again" in caplog.text
    assert again.fingerprint == good.fingerprint and shard.read_bytes() == content
    caplog.clear()
    fetch(name, tmp_path)
    assert not caplog.records


def test_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "_write_shard", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch("world-stars", tmp_path)
    assert not list((tmp_path / "smoke").iterdir())


def test_a_change_of_difficulty_makes_the_set_anew(tmp_path, monkeypatch, caplog):
    before = fetch("world-stars", tmp_path).fingerprint
    harder = dataclasses.replace(generated.DIFFICULTY["world-stars"], haze=0.6)
    monkeypatch.setitem(generated.DIFFICULTY, "world-stars", harder)
    with caplog.at_level(logging.WARNING, "diffclip"):
        after = fetch("world-stars", tmp_path).fingerprint
    assert "earlier recipe" in caplog.text and before["sha256"] != after["sha256"]


def test_sketches_are_the_photographs_drawn():
    sketches, photo = generated.DIFFICULTY["world-objects-sketches"], generated.Difficulty(size=(0.28, 0.42))
    for index in range(8):
        scene, _ = generated.class_scene("world-objects-sketches", "test", index)
        drawn, plain = (generated._paint(scene, 64, hard).astype(int) for hard in (sketches, photo))
        wash = 255 - (255 - plain) * sketches.wash
        assert (drawn <= wash + 1).all()  # nothing but contours is added to the pale picture,
        contour = (wash - drawn).max(2) > 60
        assert 0.005 < contour.mean() < 0.5  # there are some,
        assert np.median(drawn) > np.median(plain)  # and the whole is paler
        again = np.array(generated.class_sample("world-objects-sketches", "test", index, 64)[0])
        assert np.array_equal(again, drawn)


# ----------------------------------------------------------------------------------------- pairs and yes-or-no questions
def test_pairs_follow_mmvp(root):
    found = fetch("pairs", root)
    assert generated.PATTERNS == mmvp.PATTERNS
    per_pattern = SMOKE["pairs"].amounts["test"]
    assert [p.pattern for p in found.pairs] == [p for p in generated.PATTERNS for _ in range(per_pattern)]
    assert len(found.images) == 2 * len(found.pairs) == 18 * per_pattern
    assert all(p.statements[0] != p.statements[1] for p in found.pairs)
    assert [i for p in found.pairs for i in p.images] == list(range(len(found.images)))
    pair = generated.pair("Texts", 1)
    shown = np.asarray(found.images[found.pairs[7 * per_pattern + 1].images[0]], float)
    assert np.abs(shown - generated.pair_images(pair, 32)[0]).mean() < 4  # JPEG, as the real set


@pytest.mark.parametrize("pattern", generated.PATTERNS)
def test_the_scenes_of_a_pair_differ_in_exactly_one_respect(pattern):
    allowed = {
        "Orientation and Direction": [{"facing"}],
        "Presence of Specific Features": [{"extra"}],
        "State and Condition": [{"state"}, {"broken"}],
        "Positional and Relational Context": [{"x", "y"}],
        "Color and Appearance": [{"colour"}, {"fill"}],
        "Structural Characteristics": [{"form"}, {"extra"}, {"fill"}],
        "Texts": [{"glyph"}],
        "Viewpoint and Perspective": [set(), {"size"}],
    }
    for index in range(60):
        a, b = generated.pair(pattern, index).scenes
        if pattern == "Quantity and Count":
            few, many = sorted((a.things, b.things), key=len)
            assert len(few) < len(many) and many[: len(few)] == few
            assert dataclasses.replace(a, things=()) == dataclasses.replace(b, things=())
            continue
        assert len(a.things) == len(b.things)
        changed = {k for s, t in zip(a.things, b.things, strict=True) for k in vars(s) if vars(s)[k] != vars(t)[k]}
        assert changed in allowed[pattern], (index, changed)
        rest = {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)} - {"things"}
        assert rest == ({"view"} if pattern == "Viewpoint and Perspective" else set())
        assert (world.render(a, 48) != world.render(b, 48)).any(2).mean() > 0.005


def test_relations_in_pairs_are_true_of_their_scene():
    for index in range(60):
        pair = generated.pair("Positional and Relational Context", index)
        for scene, statement in zip(pair.scenes, pair.statements, strict=True):
            first, second = scene.things
            word = re.search(r"left of|right of|above|below", statement)[0]
            if statement.split(word)[0].split()[-1] != first.shape:
                first, second = second, first
            assert world.relation(first, second) == word


def test_pope_asks_three_present_and_three_absent_things_in_three_ways(root):
    found = fetch("presence", root)
    n = SMOKE["presence"].amounts["test"]
    scenes = generated.presence_scenes(n)
    assert len(found.images) == n and len(found.questions) == 18 * n
    for way in ("random", "popular", "adversarial"):
        mine = [q for q in found.questions if q.way == way]
        assert len(mine) == 6 * n
        for i, scene in enumerate(scenes):
            asked = [q for q in mine if q.image == i]
            assert [q.answer for q in asked] == [True, False] * 3
            shapes = [re.fullmatch(r"Is there an? (\w+) in the image\?", q.text)[1] for q in asked]
            assert len(set(shapes)) == 6
            assert all((shape in scene.counts) == q.answer for shape, q in zip(shapes, asked, strict=True))
    assert np.array_equal(np.asarray(found.images[3]), world.render(scenes[3], 32))


def test_popular_and_adversarial_absentees_come_from_real_counts():
    scenes = generated.presence_scenes(80)
    often = {s: sum(s in scene.counts for scene in scenes) for s in world.SHAPES}
    made = generated.presence_questions(scenes)

    def beside(shape, scene):
        return sum(sum(s in o.counts and shape in o.counts for o in scenes) for s in scene.counts)

    for q in made["popular"][1::6]:
        absent = [s for s in world.SHAPES if s not in scenes[q.image].counts]
        assert often[q.shape] == max(often[s] for s in absent)
    for q in made["adversarial"][1::6][:12]:
        absent = [s for s in world.SHAPES if s not in scenes[q.image].counts]
        assert beside(q.shape, scenes[q.image]) == max(beside(s, scenes[q.image]) for s in absent)
    assert len({q.shape for q in made["random"] if not q.answer}) > 25


# ------------------------------------------------------------------------------------ folders that somebody else wrote
def folder_of(tmp_path, samples, classes=("cat", "dog"), templates=("a photo of a {c}.",), kind=None, shards=None):
    folder = tmp_path / "set"
    for n, part in enumerate(samples):
        write_shard(folder / "test" / f"{n}.tar", part)
    (folder / "test" / "nshards.txt").write_text(str(shards or len(samples)))
    if classes:
        (folder / "classnames.txt").write_text("\n".join(classes))
    if templates is not None:
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    if kind:
        (folder / "dataset_type.txt").write_text(kind + "\n")
    return folder


def picture(kind="WEBP", value=90):
    stream = io.BytesIO()
    Image.new("L", (40, 30), value).save(stream, kind)
    return stream.getvalue()


def test_a_foreign_folder_is_read(tmp_path):
    samples = [[("s0", {"webp": picture(), "cls": b"1"}), ("s1", {"cls": b"0\n", "jpg": picture("JPEG")})]]
    found = load(str(folder_of(tmp_path, [*samples, [("s2", {"png": picture("PNG"), "cls": b"1"})]])), "smoke")
    assert found.labels.tolist() == [1, 0, 1] and found.classnames == ("cat", "dog")
    assert found.images[1].mode == "RGB" and found.images[1].size == (40, 30)
    assert len(found.images[1:]) == 2 and found.images[1:][1].size == (40, 30)
    assert pickle.loads(pickle.dumps(found.images))[2].size == (40, 30)
    assert found.spec.task == "classification" and found.fingerprint["n"] == 3


def test_the_fingerprint_follows_the_content(tmp_path):
    a = load(str(folder_of(tmp_path / "a", [[("s0", {"webp": picture(), "cls": b"1"})]])))
    b = load(str(folder_of(tmp_path / "b", [[("s0", {"webp": picture(), "cls": b"0"})]])))
    c = load(str(folder_of(tmp_path / "c", [[("s0", {"webp": picture(), "cls": b"1"})]], classes=("dog", "cat"))))
    assert len({x.fingerprint["sha256"] for x in (a, b, c)}) == 3


GOOD = ("s0", {"webp": picture(), "cls": b"1"})


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        ([[("s0", {"webp": picture(), "cls": b"2"})]], {}, "class list .* 2 classes .*label 2"),
        ([[("s0", {"webp": picture(), "cls": b"dog"})]], {}, "'dog'; a class number"),
        ([[("s0", {"webp": picture()})]], {}, "sample s0 .* has webp; .*cls"),
        ([[("s0", {"cls": b"1"})]], {}, "sample s0 .* has cls; .*image"),
        ([[GOOD]], {"templates": None}, "no zeroshot_classification_templates.txt"),
        ([[GOOD]], {"templates": ("a photo",)}, "'a photo' .* no {c}"),
        ([[GOOD]], {"classes": None}, "no classnames.txt"),
        ([[GOOD]], {"kind": "multilabel"}, "'multilabel'.*classification and retrieval"),
        ([[GOOD]], {"shards": 3}, "3 shards, but 1.tar, 2.tar"),
        ([[GOOD]], {"shards": "some"}, "number of shards .*'some'"),
        ([[]], {}, "holds no image"),
        ([[("s0", {"webp": picture(), "txt": b" \n"})]], {"kind": "retrieval"}, "s0 .* no caption"),
    ],
)
def test_what_does_not_fit_is_refused(samples, options, words, tmp_path):
    with pytest.raises(BenchmarkError, match=words):
        load(str(folder_of(tmp_path, samples, **options)))


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(BenchmarkError, match="no split 'train'.*it has: test"):
        load(str(folder_of(tmp_path, [[GOOD]])), split="train")


@pytest.mark.parametrize("left", [700, 1200, 1536])
def test_a_shard_cut_off_is_refused(left, tmp_path):
    folder = folder_of(tmp_path, [[GOOD, ("s1", GOOD[1])]])
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(BenchmarkError, match="0.tar is damaged"):
        load(str(folder))


def test_bytes_that_are_no_image_are_refused_with_their_place(tmp_path):
    found = load(str(folder_of(tmp_path, [[GOOD, ("s1", {"webp": b"not an image", "cls": b"0"})]])))
    with pytest.raises(BenchmarkError, match="image s1 in .*0.tar cannot be decoded"):
        found.images[1]


def test_a_retrieval_folder_is_no_classification_set(tmp_path):
    folder = folder_of(tmp_path, [[("s0", {"webp": picture(), "txt": b"a cat\na dog"})]], kind="retrieval")
    assert load(str(folder)).captions == [["a cat", "a dog"]]
    with pytest.raises(BenchmarkError, match="for classification, but .* is for retrieval"):
        load(BenchmarkSpec("x", "classification", "X", "accuracy", "folder", str(folder)))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,Texts,a\n", "It has 1 rows"),
        ("1,Texts,a\n2,Color,b\n", "'Texts' and 'Color'"),
        ("1,Texts,a\nx,Texts,b\n", "This row"),
        ("1,Texts,a\n3,Texts,b\n", "3.jpg, which is not there"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(rows, words, tmp_path):
    (tmp_path / "Questions.csv").write_text("Question ID,Type,Statement\n" + rows)
    (tmp_path / "MLLM_VLM Images" / "Texts").mkdir(parents=True)
    for n in (1, 2):
        (tmp_path / "MLLM_VLM Images" / "Texts" / f"{n}.jpg").write_bytes(picture("JPEG"))
    with pytest.raises(BenchmarkError, match=words):
        load(str(tmp_path))


def test_pope_files_that_do_not_fit_are_refused(tmp_path, root):
    spec = BenchmarkSpec("pope", "pope", "POPE", "accuracy", "folder", str(tmp_path))
    with pytest.raises(BenchmarkError, match="no .*pope_random.json.*coco_pope_random.json"):
        load(spec)
    for way in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{way}.json").write_text('{"image": "a.jpg", "text": "?", "label": "maybe"}\n')
    with pytest.raises(BenchmarkError, match="Line 1 .*yes or no"):
        load(spec)
    real = next(s for s in benchmarks.registry("released") if s.task == "pope")
    with pytest.raises(BenchmarkError, match="not a folder. Expected is .*val2014"):
        load(real, "released")


# -------------------------------------------------------------------------------------------------------- other readers
def test_the_datasets_library_reads_what_is_written(root, tmp_path):
    import datasets

    folder = benchmarks.ensure(SMOKE["captions-simple"], "smoke", root=root)
    rows = datasets.load_dataset(
        "webdataset", data_files={"test": str(folder / "test" / "*.tar")}, split="test", cache_dir=str(tmp_path)
    )
    found = fetch("captions-simple", root)
    assert len(rows) == len(found)
    row = next(r for r in rows if r["__key__"] == "s0000005")
    assert row["txt"].splitlines() == found.captions[5]
    assert np.array_equal(np.asarray(row["png"]), np.asarray(found.images[5]))


def test_shards_hold_one_sample_after_the_other(root):
    folder = benchmarks.ensure(SMOKE["world-stars"], "smoke", root=root)
    assert (folder / "test" / "nshards.txt").read_text().strip() == "1"
    samples = list(read_shard(folder / "test" / "0.tar"))
    assert [s.key for s in samples] == [f"s{i:07d}" for i in range(len(samples))]
    assert all(set(s.files) == {"png", "cls"} for s in samples)


# ------------------------------------------------------------------------------------------------------------- the hub
_FROM_HUB = """
import sys
from diffclip import benchmarks, hub
try:
    for name, split in [a.rsplit(":", 1) for a in sys.argv[1:]]:
        found = benchmarks.load(name, "released", split)
        size = found.images[0].size
        print(found.name, found.spec.task, found.spec.paper_name, len(found), *size, found.fingerprint["commit"][:7])
except (benchmarks.BenchmarkError, hub.HubError) as error:
    print(type(error).__name__, " ".join(str(error).split()))
"""


@pytest.mark.processes
def test_sets_come_from_the_hub_with_revision_cache_and_offline(root, tmp_path):
    stars = benchmarks.ensure(SMOKE["world-stars"], "smoke", root=root)
    simple = benchmarks.ensure(SMOKE["captions-simple"], "smoke", root=root)
    pairs = benchmarks.ensure(SMOKE["pairs"], "smoke", root=root)
    repositories = {
        "datasets/clip-benchmark/wds_fgvc_aircraft": stars,
        "datasets/clip-benchmark/wds_flickr8k": simple,
        "datasets/MMVP/MMVP_VLM": pairs,
    }

    def ask(*names, **extra):
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(REPO), **extra}
        command = [sys.executable, "-c", _FROM_HUB, *names]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout.splitlines()

    with HubServer(repositories, large=50_000) as server:
        commit = server.commit("datasets/clip-benchmark/wds_fgvc_aircraft")
        lines = ask("Aircraft:test", "flickr8k:test", "mmvp_vlm:test", HF_ENDPOINT=server.url)
        assert lines == [
            f"fgvc_aircraft classification Aircraft 96 32 32 {commit[:7]}",
            f"flickr8k retrieval Flickr8k 48 32 32 {server.commit('datasets/clip-benchmark/wds_flickr8k')[:7]}",
            f"mmvp_vlm mmvp MMVP-VLM 108 32 32 {server.commit('datasets/MMVP/MMVP_VLM')[:7]}",
        ]
        assert not server.downloads("train/0.tar"), "only the split asked for is fetched"
        fetched = len(server.downloads("test/0.tar"))
        lines = ask(f"clip-benchmark/wds_fgvc_aircraft@{commit}:test", HF_ENDPOINT=server.url)
        assert lines == [f"fgvc_aircraft classification Aircraft 96 32 32 {commit[:7]}"]
        assert len(server.downloads("test/0.tar")) == fetched, "the cache was used"
        lines = ask("clip-benchmark/wds_fgvc_aircraft@v9:test", HF_ENDPOINT=server.url)
        assert "no revision 'v9'" in lines[0]
        lines = ask("Aircraft:val", HF_ENDPOINT=server.url)
        assert "no split 'val'" in lines[0] and "test, train" in lines[0]
    (offline,) = ask("Aircraft:test", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline == f"fgvc_aircraft classification Aircraft 96 32 32 {commit[:7]}"
    (absent,) = ask("DTD:test", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert absent.startswith("HubError") and "hf download clip-benchmark/wds_vtab-dtd" in absent
