"""The hub through its own libraries, against a server on loopback with the hub's addresses.

HF_ENDPOINT and HF_HOME are read when huggingface_hub is imported, so each scene is a script of its own process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import Cut, HubServer
from pictures import encode, picture, write_shards

from diffclip import hub, released
from diffclip.model import create_model, save_model
from diffclip.released import to_released_key
from diffclip.shards import write_shard

pytestmark = pytest.mark.processes

MODEL, TRAIN, BENCHMARK = "someone/DiffCLIP_small", "someone/cc-wds", "someone/wds_shapes"


@dataclass
class Loopback:
    """The server, its folders, and a way to run Python against it."""

    server: HubServer
    folder: Path
    home: Path
    environment: dict = field(default_factory=dict)

    def run(self, code: str, *arguments: object, **environment: str) -> list:
        """Run code in a fresh process; what it hands to `tell` comes back."""
        prelude = "import json, sys\ndef tell(*x): print('TOLD', json.dumps(x))\n"
        variables = os.environ | {"HF_ENDPOINT": self.server.url, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0"}
        variables |= {"DIFFCLIP_DATA": str(self.folder / "data"), "PYTHONPATH": os.getcwd()} | environment
        command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, check=False, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        self.errors = done.stderr
        return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("TOLD ")]


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """A model and two data sets, as they lie on the hub."""
    folder = tmp_path_factory.mktemp("repositories")
    model = folder / "model"
    model.mkdir()
    (model / "README.md").write_text("# A model\n")
    (model / "big.bin").write_bytes(random_bytes(25_000_000))
    small = create_model("diffclip", "smoke", seed=5)
    state = {"module." + to_released_key(k): v for k, v in small.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, model / released.RELEASED_FILE)
    save_model(small, folder / "ours")
    write_shards(folder / "train", 3, 20)
    for shard in (folder / "train").glob("*.tar"):
        shard.rename(shard.with_name(f"cc-train-{shard.name}"))
    write_shard(folder / "train" / "cc-validation-0000.tar", [("0", {"jpg": encode(picture(0)), "txt": b"validation"})])
    benchmark = folder / "benchmark"
    for split in ("train", "test"):
        samples = [(f"s{i}", {"png": encode(picture(i), "PNG"), "cls": str(i % 3).encode()}) for i in range(6)]
        write_shard(benchmark / split / "0.tar", samples)
        (benchmark / split / "nshards.txt").write_text("1\n")
    (benchmark / "classnames.txt").write_text("circle\nsquare\nstar\n")
    (benchmark / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return folder


@pytest.fixture
def loopback(repositories, tmp_path):
    served = {
        f"models/{MODEL}": repositories / "model",
        "models/someone/ours": repositories / "ours",
        "models/someone/gated": repositories / "model",
        f"datasets/{TRAIN}": repositories / "train",
        f"datasets/{BENCHMARK}": repositories / "benchmark",
    }
    with HubServer(served, gated=("models/someone/gated",)) as server:
        yield Loopback(server, tmp_path, tmp_path / "home")


FETCH = """
from diffclip import hub
path = hub.fetch(sys.argv[1], sys.argv[2], revision=sys.argv[3] if len(sys.argv) > 3 else None)
import hashlib
tell(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), hub.commit_of(path))
"""


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_fetched_once_and_then_found_offline(loopback, repositories):
    commit = loopback.server.commit(f"models/{MODEL}")
    expected = sha256_of(repositories / "model" / "big.bin")
    [(path, digest, from_commit)] = loopback.run(FETCH, MODEL, "big.bin")
    assert (digest, from_commit) == (expected, commit)
    assert Path(path).is_relative_to(loopback.home)  # HF_HOME is honoured
    assert len(loopback.server.downloads("big.bin")) == 1
    loopback.run(FETCH, MODEL, "big.bin")
    assert len(loopback.server.downloads("big.bin")) == 1
    before = len(loopback.server.requests)
    assert loopback.run(FETCH, MODEL, "big.bin", HF_HUB_OFFLINE="1") == [[path, digest, commit]]
    assert loopback.run(FETCH, MODEL, "big.bin", commit, HF_HUB_OFFLINE="1") == [[path, digest, commit]]
    assert len(loopback.server.requests) == before


def test_a_download_cut_in_the_middle_goes_on_where_it_was(loopback, repositories):
    loopback.server.cuts["big.bin"] = Cut(after=15_000_000, times=2)
    [(_, digest, _)] = loopback.run(FETCH, MODEL, "big.bin")
    assert digest == sha256_of(repositories / "model" / "big.bin")
    first, second, *_ = loopback.server.downloads("big.bin")
    assert first.range is None
    # huggingface_hub writes whole chunks of 10 MiB: the second request asks only for what is beyond the first chunk.
    assert second.range == f"bytes={10 * 2**20}-"
    assert not any("xet" in request.path for request in loopback.server.requests)


def test_a_download_cut_by_a_reset_is_tried_again(loopback, repositories):
    loopback.server.cuts["big.bin"] = Cut(after=15_000_000, reset=True)
    [(_, digest, _)] = loopback.run(FETCH, MODEL, "big.bin")
    assert digest == sha256_of(repositories / "model" / "big.bin")
    assert len(loopback.server.downloads("big.bin")) >= 2


def test_a_revision_pins_the_content(loopback, repositories, tmp_path):
    moving = tmp_path / "moving"
    moving.mkdir()
    loopback.server.repositories["models/someone/moving"] = moving
    (moving / "notes.txt").write_text("first")
    first = loopback.server.commit("models/someone/moving")
    read = """
    from diffclip import hub
    tell(*(hub.fetch("someone/moving", "notes.txt", revision=r).read_text() for r in sys.argv[1:]))
    """
    assert loopback.run(read, first) == [["first"]]
    (moving / "notes.txt").write_text("second")
    assert loopback.run(read, first, "main") == [["first", "second"]]
    assert loopback.run(read, first, "main", HF_HUB_OFFLINE="1") == [["first", "second"]]


def test_what_cannot_be_had_is_explained(loopback):
    code = """
    from diffclip import hub
    def refused(action, *arguments, **options):
        try:
            action(*arguments, **options)
        except hub.HubError as error:
            tell(str(error))
    refused(hub.fetch, "someone/nothing", "big.bin")
    refused(hub.fetch, "someone/gated", "big.bin")
    refused(hub.fetch, "someone/DiffCLIP_small", "big.bin", revision="v9")
    refused(hub.fetch, "someone/DiffCLIP_small", "small.bin")
    refused(hub.snapshot, "someone/nothing", repo_type="dataset")
    refused(hub.list_files, "someone/nothing", repo_type="dataset")
    """
    unknown, gated, revision, file, snapshot, listing = (message for (message,) in loopback.run(code))
    assert "knows no model repository someone/nothing" in unknown and "hf auth login" in unknown
    assert "accept its terms" in gated and "someone/gated" in gated
    assert "no revision 'v9'" in revision
    assert "small.bin of the model repository someone/DiffCLIP_small" in file and "no such file" in file
    assert "knows no dataset repository someone/nothing" in snapshot
    assert "knows no dataset repository someone/nothing" in listing


def test_offline_it_says_what_to_fetch_and_where_to_put_it(loopback):
    code = """
    from diffclip import hub
    from diffclip.prepare import prepare
    from diffclip.released import load_released
    from diffclip.streaming import Stream
    for action in (
        lambda: hub.fetch("someone/DiffCLIP_small", "big.bin", revision="v1"),
        lambda: hub.snapshot("someone/wds_shapes", repo_type="dataset", patterns=["test/*"]),
        lambda: load_released("diffclip-cc3m"),
        lambda: prepare("cc3m"),
        lambda: Stream("cc12m"),
    ):
        try:
            action()
        except hub.HubError as error:
            tell(str(error))
    """
    told = [message for (message,) in loopback.run(code, HF_HUB_OFFLINE="1")]
    assert loopback.server.requests == []
    for message, command, folder in zip(
        told,
        (
            "hf download someone/DiffCLIP_small big.bin --revision v1",
            "hf download someone/wds_shapes --include 'test/*' --repo-type dataset",
            "hf download hammh0a/DiffCLIP_ViTB16_CC3M checkpoint_best.pt",
            "hf download pixparse/cc3m-wds --repo-type dataset",
            "hf download pixparse/cc12m-wds --repo-type dataset",
        ),
        (
            "models--someone--DiffCLIP_small",
            "datasets--someone--wds_shapes",
            "models--hammh0a--DiffCLIP_ViTB16_CC3M",
            "datasets--pixparse--cc3m-wds",
            "datasets--pixparse--cc12m-wds",
        ),
        strict=True,
    ):
        assert "HF_HUB_OFFLINE forbids" in message
        assert f"    {command}\n" in message
        assert folder in message and str(loopback.home / "hub") in message


def test_a_file_carried_over_as_the_message_says_is_found(loopback):
    """Fetched 'elsewhere', the folder copied into this machine's cache: then it works offline."""
    elsewhere = loopback.folder / "elsewhere"
    loopback.run(FETCH, MODEL, "README.md", HF_HOME=str(elsewhere))
    (loopback.home / "hub").mkdir(parents=True)
    name = f"models--{MODEL.replace('/', '--')}"
    (elsewhere / "hub" / name).rename(loopback.home / "hub" / name)
    [(path, _, _)] = loopback.run(FETCH, MODEL, "README.md", HF_HUB_OFFLINE="1")
    assert Path(path).read_text() == "# A model\n"


def test_released_and_own_checkpoints_load_by_hub_id(loopback, tmp_path):
    code = """
    import torch
    from diffclip import load_released
    from diffclip.classify import classify, open_checkpoint
    from diffclip.model import create_model
    ours = create_model("diffclip", "smoke", seed=5)
    found = load_released("someone/DiffCLIP_small", size="smoke")
    state = found.state_dict()
    tell(found.variant, all(torch.equal(v, state[k]) for k, v in ours.state_dict().items()))
    state = open_checkpoint("someone/ours").state_dict()
    tell(all(torch.equal(v, state[k]) for k, v in ours.state_dict().items()))
    tell(classify(sys.argv[1], ["dog", "cat"], "someone/ours") == classify(sys.argv[1], ["dog", "cat"], ours))
    """
    picture(1).save(tmp_path / "picture.png")
    assert loopback.run(code, tmp_path / "picture.png") == [["diffclip", True], [True], [True]]


def test_a_benchmark_in_folders_comes_as_a_snapshot(loopback, repositories):
    code = """
    from diffclip import hub
    folder = hub.snapshot("someone/wds_shapes", repo_type="dataset", patterns=["*.txt", "test/*"])
    tell(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
    from datasets import load_dataset
    rows = load_dataset("webdataset", data_files=str(folder / "test" / "*.tar"), split="train")
    tell([row["cls"] for row in rows], rows[0]["png"].size)
    """
    expected = ["classnames.txt", "test/0.tar", "test/nshards.txt", "zeroshot_classification_templates.txt"]
    assert loopback.run(code)[0] == [[*expected[:1], *expected[1:3], "train/nshards.txt", expected[3]]]
    assert loopback.run(code, HF_HUB_OFFLINE="1")[1] == [[0, 1, 2, 0, 1, 2], [60, 40]]


PREPARE = """
from diffclip.prepare import prepare
from diffclip.corpora import CorpusSpec, open_corpus
manifest = prepare("pictures", "someone/cc-wds", image_size=32, workers=1, keep_shards=len(sys.argv) > 1)
corpus = open_corpus(CorpusSpec("pictures", "prepared", image_size=32))
tell(manifest["source"], manifest["pairs"], [corpus.captions(i)[0] for i in range(len(corpus))])
"""


def test_a_corpus_is_prepared_from_the_hub_through_a_cut_and_a_lost_shard(loopback):
    captions = [f"picture number {i}" for i in range(60)]
    loopback.server.cuts["cc-train-00001.tar"] = Cut(after=30_000)
    commit = loopback.server.commit(f"datasets/{TRAIN}")
    expected = [{"kind": "hub", "repo": TRAIN, "revision": commit}, 60, captions]
    assert loopback.run(PREPARE) == [expected]
    assert not loopback.server.downloads("cc-validation-0000.tar")
    folder = loopback.folder / "data" / "cache" / "corpora" / "pictures"
    assert not list(folder.rglob("*.tar")), "what was downloaded is removed once it is indexed"
    # One part is lost: that shard alone is fetched again.
    (folder / "part-00002.arrow").unlink()
    counts = {name: len(loopback.server.downloads(f"cc-train-{name}.tar")) for name in ("00000", "00001", "00002")}
    assert loopback.run(PREPARE) == [expected]
    again = {name: len(loopback.server.downloads(f"cc-train-{name}.tar")) for name in counts}
    assert again == counts | {"00002": counts["00002"] + 1}


def test_a_corpus_is_prepared_offline_from_the_cache(loopback):
    online = loopback.run(PREPARE, "keep")
    folder = loopback.folder / "data" / "cache" / "corpora" / "pictures"
    manifest = json.loads((folder / "manifest.json").read_text())
    folder.rename(folder.with_name("before"))
    before = len(loopback.server.requests)
    assert loopback.run(PREPARE, HF_HUB_OFFLINE="1") == online
    assert len(loopback.server.requests) == before
    assert json.loads((folder / "manifest.json").read_text())["hash"] == manifest["hash"]


def test_shards_that_cannot_be_fetched_stop_it_and_the_rest_is_kept(loopback):
    code = """
    from diffclip import hub, prepare
    hub.PAUSE_S = 0
    try:
        prepare.prepare("pictures", "someone/cc-wds", image_size=32, workers=1)
    except hub.HubError as error:
        tell(str(error))
    """
    loopback.server.cuts["cc-train-00001.tar"] = Cut(after=100, times=1000, reset=True)
    [(message,)] = loopback.run(code)
    assert "1 parts could not be fetched" in message and "same command fetches the rest" in message
    assert "cc-train-00001.tar of the data set repository" in message
    folder = loopback.folder / "data" / "cache" / "corpora" / "pictures"
    assert [p.name for p in sorted(folder.glob("part-*.arrow"))] == ["part-00000.arrow", "part-00002.arrow"]
    loopback.server.cuts.clear()
    assert loopback.run(PREPARE)[0][1] == 60
    assert len(loopback.server.downloads("cc-train-00000.tar")) == 1


def test_a_stream_from_the_hub_needs_no_download_of_the_whole(loopback):
    code = """
    from diffclip.streaming import Stream
    stream = Stream("someone/cc-wds")
    samples = iter(stream)
    tell([next(samples)["captions"][0] for _ in range(5)], stream.shards)
    """
    [(captions, shards)] = loopback.run(code)
    commit = loopback.server.commit(f"datasets/{TRAIN}")
    assert captions == [f"picture number {i}" for i in range(5)]
    assert shards == [f"hf://datasets/{TRAIN}@{commit}/cc-train-{i:05d}.tar" for i in range(3)]
    assert "promises neither" in loopback.errors
    assert not loopback.server.downloads("cc-train-00002.tar")


# ----------------------------------------------------------------------------------------------------- without a server


def test_a_hub_out_of_reach_is_explained(monkeypatch):
    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no") from ConnectionError("Name or service not known")

    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(hub.HubError, match="could not be reached .Name or service not known(?s:.*)hf download a/b c"):
        hub.fetch("a/b", "c")


def test_a_full_disk_is_not_taken_for_a_bad_network(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left"):
        hub.fetch("a/b", "c")


def test_a_large_file_that_came_damaged_is_fetched_again(monkeypatch, tmp_path):
    content = random_bytes(1000)
    blob, tries = tmp_path / hashlib.sha256(content).hexdigest(), []

    def download(*_, **__):
        tries.append(1)
        blob.write_bytes(content if len(tries) > 1 else content[:-1] + b"x")
        return str(blob)

    monkeypatch.setattr(hub, "PAUSE_S", 0)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch("a/b", "c").read_bytes() == content
    assert len(tries) == 2


@pytest.mark.parametrize(
    "text, is_one",
    [("pixparse/cc3m-wds", True), ("a/b", True), ("a", False), ("a/b/c", False), ("../b", False), ("a/.b", False)],
)
def test_repository_names(text, is_one):
    assert hub.is_repo_id(text) == is_one
