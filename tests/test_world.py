"""The embedded world: the same everywhere, true to its captions, and masks that agree with the picture."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from diffclip import world
from diffclip.counter import Draws
from diffclip.wording import captions as worded
from diffclip.wording import describe, relate
from diffclip.world import Thing, sample_scene

# Written down once. A change here means that every generated corpus and benchmark changes: bump nothing by accident.
KNOWN = {
    0: "2c7ca907e0b77839",
    1: "2355928d6104aee3",
    2: "ae54c5c9e81d843e",
    3: "33834b4946f3fa82",
    4: "a176834bc9b6ecb5",
    5: "e52a8e215c6c0ccc",
    1000: "51fbc06162abcea2",
    1000000000: "7d8070380bff5ef2",
}


def test_scenes_have_not_drifted():
    found = {index: world.fingerprint(sample_scene(index, seed=index % 3)) for index in KNOWN}
    assert found == KNOWN


def test_two_processes_make_the_same_scenes():
    code = (
        "from diffclip import world\n"
        "print(*[world.fingerprint(world.sample_scene(i, seed=9), 48) for i in (0, 5, 10**12)])\n"
    )
    outs = []
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
        )
        outs.append(run.stdout.split())
    assert outs[0] == outs[1]
    assert len(set(outs[0])) == 3


def test_a_scene_does_not_depend_on_what_was_made_before():
    alone = world.render(sample_scene(123, seed=4), 40)
    for i in range(30):
        world.render(sample_scene(i, seed=4), 40)
    assert np.array_equal(alone, world.render(sample_scene(123, seed=4), 40))


def test_seeds_and_indices_give_different_scenes():
    pictures = {world.render(sample_scene(i, seed=s), 24).tobytes() for i in range(60) for s in range(3)}
    assert len(pictures) == 180


def test_draws_are_uniform_and_streams_apart():
    values = np.array([Draws(3, i).u() for i in range(4000)])
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(values, [Draws(4, i).u() for i in range(4000)])[0, 1]) < 0.06
    long = Draws(1).array(150)
    assert len(set(long)) == 150  # over the end of a block


def test_splitmix64_reference_values():
    """The first outputs of splitmix64 from state 0, as every published implementation gives them."""
    draw = object.__new__(Draws)
    draw._base, draw._left = 0, []
    first = [int(draw.u() * 2**53) for _ in range(3)]
    assert first == [v >> 11 for v in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]


@pytest.mark.parametrize("size", [32, 48, 100])
def test_a_scene_is_the_same_picture_at_every_size(size):
    same, different = [], []
    for i in range(12):
        scene = sample_scene(i, seed=2, style="photo")  # a mosaic's tiles have a size in pixels
        fine = world.render(scene, 4 * size).astype(float).reshape(size, 4, size, 4, 3).mean((1, 3))
        coarse = world.render(scene, size).astype(float)
        same.append(np.abs(fine - coarse).mean())
        different.append(np.abs(world.render(sample_scene(i + 1, seed=2, style="photo"), size) - coarse).mean())
    assert np.mean(same) < 0.12 * np.mean(different), (np.mean(same), np.mean(different))
    assert max(same) < 0.3 * np.mean(different), (max(same), np.mean(different))


def test_pictures_are_anti_aliased():
    image = world.render(
        sample_scene(0, kind="single", shape="circle", fill="solid", colour="black", size=0.3, extra="")
    )
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 300


@pytest.mark.parametrize("style", world.STYLES)
def test_masks_agree_with_the_picture(style):
    """Taking a thing away changes its own pixels and hardly anything else but its shadow."""
    changed_inside, changed_far = [], []
    for i in range(20):
        scene = sample_scene(i, seed=7, kind="several", style=style)
        image, masks = world.render_with_masks(scene, 64)
        assert masks.shape == (len(scene.things), 64, 64) and masks.dtype == bool
        assert masks.sum(0).max() <= 1, "a pixel belongs to one thing"
        assert np.array_equal(image, world.render(scene, 64))
        without = world.render(dataclasses.replace(scene, things=scene.things[1:]), 64)
        differs = (image != without).any(2)
        if masks[0].any():
            changed_inside.append(differs[masks[0]].mean())
        t = scene.things[0]
        y, x = np.mgrid[:64, :64] / 64
        far = np.maximum(abs(x - t.x), abs(y - t.y)) > 1.8 * t.size + 0.1
        changed_far.append(differs[far].mean())
    assert np.mean(changed_inside) > (0.95 if style == "photo" else 0.25)  # a sketch's inside is paper
    assert np.max(changed_far) == 0


def test_covered_pixels_belong_to_the_thing_in_front():
    back = Thing("square", "red", x=0.5, y=0.5, size=0.3)
    front = Thing("circle", "blue", x=0.5, y=0.5, size=0.2)
    scene = world.Scene(0, 0, "pair", "plain wall", (back, front))
    image, masks = world.render_with_masks(scene, 64)
    assert masks[1, 32, 32] and not masks[0, 32, 32]
    r, _, b = image[32, 32].astype(int)
    assert b > r + 60
    area = masks.sum((1, 2)) / 64**2
    assert area[1] == pytest.approx(np.pi * (0.92 * 0.2) ** 2, rel=0.03)
    assert area.sum() == pytest.approx((2 * 0.82 * 0.3) ** 2, rel=0.03)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_is_drawn_within_its_bounds(shape):
    for state in world.STATES.get(shape, ("",)):
        scene = world.Scene(0, 0, "single", "plain wall", (Thing(shape, "red", size=0.3, state=state),))
        mask = world.render_with_masks(scene, 96)[1][0]
        rows, cols = np.nonzero(mask)
        assert mask.mean() > 0.03
        assert min(rows.min(), cols.min()) >= 96 * 0.19 and max(rows.max(), cols.max()) <= 96 * 0.81
    masks = []
    for broken in (False, True):
        scene = world.Scene(0, 0, "single", "plain wall", (Thing(shape, "red", size=0.3, broken=broken),))
        masks.append(world.render_with_masks(scene, 96)[1][0])
    assert (masks[0] != masks[1]).sum() > 0.04 * masks[0].sum()


def test_every_attribute_is_seen():
    base = Thing("star", "red", fill="striped", size=0.3)
    plain = world.render(world.Scene(0, 0, "single", "plain wall", (base,)), 48)
    for change in (
        {"colour": "blue"}, {"fill": "dotted"}, {"accent": "black"}, {"x": 0.4}, {"size": 0.2},
        {"facing": "upside down"}, {"form": "six-pointed"}, {"broken": True}, {"extra": "hat"}, {"extra": "eyes"},
        {"extra": "hole"}, {"extra": "border"}, {"glyph": "K"},
    ):  # fmt: skip
        other = world.render(world.Scene(0, 0, "single", "plain wall", (dataclasses.replace(base, **change),)), 48)
        assert np.abs(plain.astype(int) - other).mean() > 0.4, change
    glyphs = {
        world.render(world.Scene(0, 0, "text", "plain wall", (Thing("square", "blue", glyph=g),)), 32).tobytes()
        for g in world.LETTERS + world.DIGITS
    }
    assert len(glyphs) == len(world.LETTERS) + len(world.DIGITS) == 34


def test_clean_captions_are_true():
    """Every word of the vocabulary in a clean caption is an attribute of something in the scene."""
    for i in range(400):
        scene = sample_scene(i, seed=11)
        for text, noise in worded(scene, 4, noisy=0.0):
            assert noise == ""
            words = set(text.replace(",", " ").replace(" and ", " ").split())
            things = scene.things
            shown = {t.colour for t in things} | {t.accent for t in things}
            assert words & set(world.COLOURS) <= shown, text
            assert words & set(world.FILLS) <= {t.fill for t in things}, text
            assert words & set(world.SHAPES) <= {t.shape for t in things} | _place_words(scene), text
            assert words & {"broken", "open", "closed", "lit", "unlit", "full", "empty"} <= {
                w for t in things for w in (t.state, "broken" if t.broken else "") if w
            }, text
            named = world.Scene.counts.fget(scene)
            for word, n in (("two", 2), ("three", 3), ("four", 4), ("five", 5), ("six", 6)):
                assert word not in words or n in named.values(), text


def _place_words(scene):
    return set(world.PLACES[scene.background].phrase.split())


def test_relations_in_captions_are_true():
    left, right = Thing("star", "red", x=0.25), Thing("fish", "blue", x=0.75)
    assert relate(left, right, b_is_later=True) == "left of"
    assert relate(right, left, b_is_later=False) == "right of"
    top = dataclasses.replace(left, x=0.5, y=0.2)
    assert relate(top, dataclasses.replace(right, x=0.52, y=0.8), True) == "above"
    near = dataclasses.replace(left, x=0.65)
    assert relate(near, right, True) == "behind" and relate(near, right, False) == "in front of"


def test_captions_of_uncoloured_styles_name_no_colour():
    for style in ("sketch", "chalk", "painting"):
        for i in range(60):
            for text in world.captions(sample_scene(i, seed=1, style=style), 4, noisy=0.3):
                assert not set(text.replace("#", "").split()) & set(world.COLOURS), text


def test_hollow_shapes_are_empty_inside():
    """Joined discs have seams; a hollow cloud must not show them: from its middle out, one stroke and then nothing."""
    scene = world.Scene(0, 0, "single", "plain wall", (Thing("cloud", "red", "hollow", size=0.45),))
    mask = world.render_with_masks(scene, 128)[1][0]
    assert not mask[58:74, 40:88].any() and mask.mean() > 0.05


def test_noisy_captions_are_noisy_in_several_ways():
    kinds, texts = {}, 0
    for i in range(600):
        for _, noise in worded(sample_scene(i, seed=1), 2, noisy=0.4):
            kinds[noise] = kinds.get(noise, 0) + 1
            texts += 1
    assert set(kinds) == {"", "typo", "boilerplate", "vague", "tags", "irrelevant"}
    assert 0.55 < kinds[""] / texts < 0.65


def test_wordings_differ_and_have_streams():
    scene = sample_scene(3, kind="pair")
    assert len(set(world.captions(scene, 5))) == 5
    assert world.captions(scene, 5) != world.captions(scene, 5, stream=1)
    assert world.captions(scene, 5)[:3] == world.captions(scene, 3)


def test_describe_says_everything():
    thing = Thing("star", "red", "striped", facing="upside down", form="six-pointed", broken=True, extra="hat")
    assert describe(thing) == "broken upside-down striped red six-pointed star wearing a hat"
    assert describe(Thing("arrow", "blue", facing="left")) == "blue arrow pointing left"
    assert describe(Thing("leaf", "teal"), many=True) == "teal leaves"


def test_told_attributes_are_kept_and_the_rest_varies():
    scenes = [sample_scene(i, kind="group", count=4, shape="fish", colour="pink", background="sea") for i in range(8)]
    for scene in scenes:
        assert scene.counts == {"fish": 4} and scene.background == "sea"
        assert {t.colour for t in scene.things} == {"pink"}
    assert len({t.fill for s in scenes for t in s.things}) > 1


def test_attributes_are_plain_data():
    import json

    scene = sample_scene(5, kind="pair")
    told = json.loads(json.dumps(scene.attributes()))
    assert told["things"][0]["shape"] == scene.things[0].shape
    assert sum(told["counts"].values()) == 2
    assert all(len(r) == 3 for r in told["relations"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kind": "crowd"}, "crowd"), ({"shape": "pentacle"}, "pentacle"), ({"colour": "mauve"}, "mauve"),
        ({"background": "moonscape"}, "moonscape"), ({"style": "cubist"}, "cubist"), ({"weight": 3}, "weight"),
        ({"count": 3}, "count=3"), ({"kind": "group", "count": 12}, "count=12"),
    ],
)  # fmt: skip
def test_unknown_words_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        sample_scene(0, **arguments)


def test_impossible_pictures_and_captions_are_refused():
    with pytest.raises(ValueError, match="4 px"):
        world.render(sample_scene(0), 4)
    with pytest.raises(ValueError, match="0 captions"):
        world.captions(sample_scene(0), 0)
