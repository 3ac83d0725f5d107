"""Files shaped like the authors' checkpoints: opened safely, read exactly, written back bit-equal."""

import argparse
import os
import pathlib
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from diffclip import released
from diffclip.model import SIZES, VARIANTS, ModelConfig, create_model, save_model
from diffclip.released import load_released, locate, read_released, save_released, to_released_key
from diffclip.towers import TextConfig, VisionConfig

GOLDEN = Path(__file__).parent / "golden"


def golden_state(name):
    tensors = load_file(GOLDEN / f"{name}_tiny.safetensors")
    return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}


GOLDEN_SIZE = ModelConfig("golden", 24, VisionConfig(32, 8, 48, 3, 4), TextConfig(32, 3, 4, 16, 96))


def released_style(path, state, **besides):
    """Write a state dict the way the released checkpoints are written."""
    content = {
        "epoch": 3,
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_acc1": np.float64(0.25),
        "args": argparse.Namespace(output_dir=pathlib.Path("runs/x"), lr=1e-3),
        **besides,
    }
    torch.save(content, path)
    return path


def equal(model, other):
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), b in pairs)


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_bit_equal(variant, tmp_path):
    model = create_model(variant, "smoke", seed=4)
    again = load_released(save_released(model, tmp_path / "weights.safetensors"))
    assert (again.variant, again.config, again.training) == (variant, model.config, False)
    assert again.lambdas() == model.lambdas()
    assert equal(model, again)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_through_a_pickle(variant, tmp_path):
    model = create_model(variant, "smoke", seed=4)
    state = {to_released_key(k): v for k, v in model.state_dict().items()}
    again = load_released(released_style(tmp_path / "checkpoint_best.pt", state), size="smoke", variant=variant)
    assert again.variant == variant and equal(model, again)


@pytest.mark.parametrize("name", ["clip", "diffclip"])
def test_golden_checkpoints_come_back_bit_equal(name, tmp_path):
    """Pickle -> model -> released key names: every tensor as it was, under the name it had."""
    model = load_released(GOLDEN / f"{name}_tiny_released_style.pt", size=GOLDEN_SIZE if name == "clip" else None)
    assert model.variant == name and not model.training
    written = load_file(save_released(model, tmp_path / "again.safetensors"))
    expected = golden_state(name)
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(written[key], value) and written[key].dtype == value.dtype, key


def test_what_is_read_off_the_weights():
    model = load_released(GOLDEN / "diffclip_tiny_released_style.pt")
    assert model.config == ModelConfig("released", 24, GOLDEN_SIZE.vision, GOLDEN_SIZE.text)
    with pytest.raises(ValueError, match="width of 48 gives no number of heads; pass size="):
        load_released(GOLDEN / "clip_tiny_released_style.pt")  # heads of ordinary attention leave no trace


def test_released_size_is_recognised():
    """From shapes alone, CLIP and DiffCLIP with a ViT-B/16 are known as such."""
    for variant in VARIANTS:
        with torch.device("meta"):
            state = {to_released_key(k): v for k, v in create_model(variant, "vit_b_16").state_dict().items()}
        assert released._config_of(state, "x") == SIZES["vit_b_16"]
        found = released._variant_of(state, "x")
        assert found == ("diffclip" if variant == "diffclip_dynamic" else variant)


def test_variant_is_read_off_the_weights_and_may_be_asked_for(tmp_path):
    path = GOLDEN / "diffclip_tiny_released_style.pt"
    assert load_released(path, variant="diffclip_dynamic").variant == "diffclip_dynamic"
    with pytest.raises(ValueError, match="holds the weights of a 'diffclip', but 'clip' was asked for"):
        load_released(path, variant="clip")
    with pytest.raises(ValueError, match="Unknown variant 'star'"):
        load_released(path, variant="star")
    state = golden_state("diffclip")
    for key in [k for k in state if k.startswith("visual.") and "lambda" in k]:
        del state[key]
    with pytest.raises(ValueError, match="text tower alone; no variant"):
        load_released(released_style(tmp_path / "x.pt", state))


def test_loading_draws_no_random_number():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_released(GOLDEN / "diffclip_tiny_released_style.pt")
    assert torch.equal(torch.rand(1), expected)


def test_plain_state_dicts_and_folders(tmp_path):
    """Without the wrapping dict, without `module.`, in a folder: still the same weights."""
    state = golden_state("diffclip")
    torch.save(state, tmp_path / "checkpoint_best.pt")
    expected = load_released(GOLDEN / "diffclip_tiny_released_style.pt")
    assert equal(load_released(tmp_path), expected)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(load_released(str(tmp_path / "old.pt")), expected)


def test_mini_and_released_are_used_alike(tmp_path):
    """A model from this kit and one with the released key names: the same type, the same face."""
    ours = create_model(checkpoint=save_model(create_model("diffclip", "smoke", seed=0), tmp_path))
    theirs = load_released(GOLDEN / "diffclip_tiny_released_style.pt")
    assert type(ours) is type(theirs)
    for model in (ours, theirs):
        size, text = model.config.vision.image_size, model.config.text
        out = model(torch.randn(1, 3, size, size), torch.randint(0, text.vocab_size, (1, text.context_length)))
        assert list(out) == ["image_embed", "text_embed", "logit_scale"]


# ---------------------------------------------------------------------------------------------------------- safe opening


def with_pickle(source, target, change):
    """Copy a checkpoint, its pickle passed through `change` (bytes -> bytes)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return target


@pytest.mark.parametrize("numpy_module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
@pytest.mark.parametrize("path_module", [b"pathlib", b"pathlib._local"])
def test_names_of_other_python_and_numpy_versions(numpy_module, path_module, tmp_path):
    """A GLOBAL instruction names a module and a line later its member; both names of both types must open."""

    def change(content):
        assert b"cnumpy._core.multiarray\nscalar\n" in content and b"cpathlib\nPosixPath\n" in content
        content = content.replace(b"cnumpy._core.multiarray\n", b"c" + numpy_module + b"\n")
        return content.replace(b"cpathlib\n", b"c" + path_module + b"\n")

    path = with_pickle(GOLDEN / "diffclip_tiny_released_style.pt", tmp_path / "x.pt", change)
    state, _ = read_released(path)
    expected = golden_state("diffclip")
    assert state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())


@pytest.mark.parametrize("scalar", [np.float64(0.5), np.float32(0.5), np.int64(3), np.float16(1), np.bool_(True)])
def test_any_plain_numpy_number_may_be_in_the_file(scalar, tmp_path):
    path = released_style(tmp_path / "x.pt", golden_state("diffclip"), best_acc1=scalar)
    assert load_released(path).variant == "diffclip"


class Payload:
    """What an attacker puts into a pickle: a call, made while it is opened."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


class Custom:
    """An ordinary object of somebody's own class."""


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "make, name",
    [
        (lambda target: Payload(os.system, f"touch {target}"), f"{os.system.__module__}.system"),
        (lambda target: Payload(eval, f"open({str(target)!r}, 'w')"), "eval"),
        (lambda target: Payload(Path.touch, target), "getattr"),
        (lambda target: Custom(), f"{Custom.__module__}.Custom"),
    ],
    ids=["os.system", "eval", "method", "custom class"],
)
def test_a_pickle_with_any_other_type_is_refused_by_name(make, name, new_format, tmp_path):
    target = tmp_path / "the_payload_ran"
    path = tmp_path / "x.pt"
    content = {"state_dict": golden_state("diffclip"), "args": make(target)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError) as error:
        load_released(path)
    message = str(error.value)
    assert re.search(rf"was not opened: it names \S*\b{re.escape(name)}\b", message), message
    assert "could run code" in message and "safetensors" in message and "\n" not in message
    assert not target.exists()


def test_all_foreign_types_are_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {}, "a": Custom(), "b": np.arange(3)}, path)
    with pytest.raises(ValueError, match=rf"it names numpy\S*_reconstruct, .*{Custom.__module__}\.Custom, and"):
        load_released(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_another_protocol_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    target = tmp_path / "the_payload_ran"
    path.write_bytes(pickle.dumps(Payload(os.system, f"touch {target}"), protocol=4))
    with pytest.raises(ValueError, match="was not opened: it is not pickled as PyTorch does"):
        load_released(path)
    torch.save({"state_dict": {}, "args": Payload(os.system, f"touch {target}")}, path, pickle_protocol=4)
    with pytest.raises(ValueError, match="was not opened"):
        load_released(path)
    assert not target.exists()


def test_the_allow_list_is_gone_afterwards():
    before = set(torch.serialization.get_safe_globals())  # PyTorch keeps a set and lists it in any order
    load_released(GOLDEN / "diffclip_tiny_released_style.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(GOLDEN / "diffclip_tiny_released_style.pt")


# ------------------------------------------------------------------------------------------------- files that do not fit


def test_missing_extra_and_misshapen_keys_are_named(tmp_path):
    state = golden_state("diffclip")
    del state["visual.blocks.1.attn.out_proj.bias"], state["ln_final.weight"]
    state["visual.head.weight"] = torch.ones(3)
    state["visual.blocks.0.norm1.weight"] = torch.ones(47)
    with pytest.raises(ValueError) as error:
        load_released(released_style(tmp_path / "x.pt", state))
    message = str(error.value)
    assert "2 missing: text.norm.weight, vision.trunk.blocks.1.attn.out_proj.bias" in message
    assert "1 not known to this model: visual.head.weight" in message
    assert "1 of another shape: vision.trunk.blocks.0.norm1.weight [47] instead of [48]" in message


def test_many_missing_keys_are_counted(tmp_path):
    state = {k: v for k, v in golden_state("diffclip").items() if ".blocks.1." not in k}
    with pytest.raises(ValueError, match=r"21 missing: .* and 16 more"):
        load_released(released_style(tmp_path / "x.pt", state))


def test_keys_that_tell_the_size_are_named_too(tmp_path):
    state = golden_state("diffclip")
    del state["image_projection"]
    state["positional_embedding"] = torch.ones(16)
    with pytest.raises(ValueError, match=r"image_projection is missing, positional_embedding has shape \[16\]"):
        load_released(released_style(tmp_path / "x.pt", state))
    state = golden_state("diffclip")
    state["visual.blocks.0.attn.lambda_q1"] = torch.ones(7)
    with pytest.raises(ValueError, match="width of 48 gives no number of heads"):
        load_released(released_style(tmp_path / "x.pt", state))
    state = {k: v for k, v in golden_state("diffclip").items() if not k.startswith("visual.blocks")}
    state["visual.patch_embed.proj.weight"] = torch.ones(64, 3, 8, 8)
    for key in [k for k in state if k.startswith("transformer.")]:
        del state[key]
    with pytest.raises(ValueError, match="cannot be read off its weights: VisionConfig.depth must be"):
        load_released(released_style(tmp_path / "x.pt", state))


def test_damaged_files(tmp_path):
    path = tmp_path / "checkpoint_best.pt"
    whole = (GOLDEN / "diffclip_tiny_released_style.pt").read_bytes()
    for content in (b"", whole[:1000], whole[:-10], b"hello world", b"\x80\x02", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            load_released(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert re.search("is damaged or not a PyTorch checkpoint .* Fetch it again|was not opened", str(error.value))
    path = tmp_path / "x.safetensors"
    whole = save_released(create_model("clip", "smoke", seed=0), path).read_bytes()
    for content in (b"", whole[:-4], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file.*Fetch it again"):
            load_released(path)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "x.pt"
    for content, word in (
        ([1, 2], "holds a list; expected a dict"),
        ({"state_dict": [1]}, "holds a list; expected a dict"),
        ({"state_dict": {"a": torch.ones(1), "step": 3}}, "these entries are none: step"),
        ({"state_dict": {3: torch.ones(1)}}, "these entries are none: 3"),
        ({"epoch": 4, "best_acc1": 0.5}, "these entries are none: epoch, best_acc1"),
        ({"state_dict": {"weight": torch.ones(2)}}, "no key starts with 'visual.'"),
        ({}, "no key starts with 'visual.'"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=word):
            load_released(path)
    ours = save_model(create_model("clip", "smoke", seed=0), tmp_path)
    with pytest.raises(ValueError, match=r"create_model\(checkpoint=\.\.\.\)"):
        load_released(ours)


# -------------------------------------------------------------------------------------------------------------- sources


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither checkpoint_best.pt nor model.safetensors"):
        load_released(tmp_path)
    for name in ("diffclip-cc4m", "weights/best.pt", str(tmp_path / "none.safetensors"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is not the name of a released one .diffclip-cc3m, diffclip-cc12m"):
            load_released(name)


def test_registry_can_be_overridden(tmp_path, monkeypatch):
    path = GOLDEN / "diffclip_tiny_released_style.pt"
    monkeypatch.setenv("DIFFCLIP_RELEASED_CLIP_CC3M", str(path))
    assert locate("clip-cc3m") == path
    monkeypatch.setenv("DIFFCLIP_RELEASED_DIFFCLIP_CC12M", str(path))
    assert load_released("diffclip-cc12m").variant == "diffclip"
    asked = []

    def fetch(repository, filename, *, revision=None):
        asked.append((repository, filename, revision))
        return path

    monkeypatch.setattr("diffclip.hub.fetch", fetch)
    locate("diffclip-cc3m", revision="main")
    locate("someone/else")
    assert asked == [
        ("hammh0a/DiffCLIP_ViTB16_CC3M", "checkpoint_best.pt", "main"),
        ("someone/else", "checkpoint_best.pt", None),
    ]


def test_header_of_a_written_file_names_the_variant(tmp_path):
    path = save_released(create_model("diffclip_dynamic", "smoke", seed=0), tmp_path / "x.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        assert '"diffclip_dynamic"' in file.metadata()["released"]
        assert "visual.blocks.0.attn.lambda_q1" in file.keys()  # noqa: SIM118  (no dict)
    no_notes = tmp_path / "bare.safetensors"
    save_file(load_file(path), no_notes)
    assert load_released(no_notes, size="smoke").variant == "diffclip"  # lambda_init is no weight: not told apart
