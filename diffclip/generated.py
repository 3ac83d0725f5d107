"""What is in the generated evaluation sets: recipes from the embedded world, and how hard each of them is.

Every set has a stream of scenes of its own, one a split, so that no scene is in two sets, two splits, or a training
corpus. All recipes are functions of (set, split, index): a sample can be made alone, and is the same everywhere.
benchmarks.py writes what is made here in the layouts of the real sets.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from diffclip import world
from diffclip.counter import Draws
from diffclip.wording import NUMBERS, describe, relate, with_article
from diffclip.world import Scene, Thing, sample_scene


# ---------------------------------------------------------------------------------------------------- difficulty
@dataclass(frozen=True)
class Difficulty:
    """How hard the pictures of a set are to read.

    size: half extent of the subject, smallest and largest, as shares of the side. clutter: small things behind it.
    haze: share of grey mixed into the picture. grain: largest change of a pixel by noise, in grey levels of 255.
    coarse: the picture is painted so many times smaller and enlarged again. wash: the picture becomes a drawing, dark
    contours over a wash with this share of its colour (0: it stays as it is).
    """

    size: tuple[float, float] = (0.2, 0.38)
    clutter: int = 0
    haze: float = 0.0
    grain: int = 0
    coarse: float = 1.0
    wash: float = 0.0


# The one place to tune. At `mini` a trained baseline should sit well above chance and well below 100 % on every set.
DIFFICULTY: dict[str, Difficulty] = {
    "world-shapes": Difficulty(size=(0.38, 0.48)),
    "world-surfaces": Difficulty(size=(0.3, 0.42)),
    "world-creatures": Difficulty(size=(0.28, 0.4)),
    "world-garden": Difficulty(size=(0.2, 0.34), clutter=1, grain=15),
    "world-places": Difficulty(haze=0.7, grain=40),
    "world-stars": Difficulty(size=(0.28, 0.4)),
    "digits": Difficulty(),
    "world-tiny": Difficulty(size=(0.2, 0.34), clutter=1, coarse=2.0),
    "world-kitchen": Difficulty(size=(0.38, 0.48)),
    "world-objects": Difficulty(size=(0.28, 0.42)),
    "world-objects-resampled": Difficulty(size=(0.26, 0.42)),
    "world-objects-cluttered": Difficulty(size=(0.26, 0.38), clutter=2),
    "world-objects-renditions": Difficulty(size=(0.28, 0.42)),
    # Drawings without colour or place, as the world's own style "sketch" has them, are near chance for models this small.
    "world-objects-sketches": Difficulty(size=(0.28, 0.42), wash=0.5),
    "captions-simple": Difficulty(),
    "captions-mixed": Difficulty(),
    "captions-busy": Difficulty(),
    "pairs": Difficulty(),
    "presence": Difficulty(),
}


# ------------------------------------------------------------------------------------------------------ the sets
_PROMPTS = (
    "a photo of a {c}", "a picture of a {c}", "an image of a {c}", "there is a {c}",
    "a {c}", "a small {c}", "a large {c}",
)  # fmt: skip
# As the templates of ImageNet have them too, for its renditions and sketches.
_AS_MADE = (
    "a sketch of a {c}", "a chalk drawing of a {c}", "a neon sign of a {c}", "a mosaic of a {c}", "a painting of a {c}",
)  # fmt: skip


class ClassSet(NamedTuple):
    """A classification set. ``classes``: name -> attributes told to the world; a tuple of values means any of them."""

    classes: dict[str, dict[str, Any]]
    templates: tuple[str, ...] = _PROMPTS
    kinds: tuple[str, ...] = ("single",)
    angles: bool = True  # some things are seen from the side or from above
    styles: tuple[str, ...] = ("photo",)


_FREE_OF_NAMES = ("circle", "square", "triangle", "hexagon", "heart", "cloud", "drop", "bell", "apple", "mushroom")


def _objects(at_home: bool = False, **kwargs) -> ClassSet:
    """A class a common shape; at home they stand where the training scenes expect them, else anywhere."""
    homes = {s: tuple(name for name, place in world.PLACES.items() if s in place.expects) for s in world.COMMON}
    classes = {s: {"shape": s} | ({"background": homes[s]} if at_home else {}) for s in world.COMMON}
    return ClassSet(classes, (*_PROMPTS, *_AS_MADE), **kwargs)


_THINGS = ("single", "pair", "group", "several")
_PLAIN = {"broken": False, "extra": ""}
_SAMPLE = {"colour": "blue", "accent": "white", "background": "plain wall", **_PLAIN}  # nothing varies but the surface
CLASS_SETS: dict[str, ClassSet] = {
    "world-shapes": ClassSet({s: {"shape": s} for s in (*world.COMMON[::2], "boat", "umbrella", "key", "car", "bird", "leaf")}),
    "world-surfaces": ClassSet(
        {f"{fill} shape": {"shape": _FREE_OF_NAMES, "fill": fill, **_SAMPLE} for fill in world.FILLS}
        | {
            f"shape with a {name}": {"shape": _FREE_OF_NAMES, "fill": "solid", **_SAMPLE, "extra": extra}
            for name, extra in (("hole in it", "hole"), ("dark border", "border"))
        }
    ),
    "world-creatures": ClassSet(
        {
            f"{colour} {shape}": {"shape": shape, "colour": colour}
            for shape in ("fish", "bird", "butterfly")
            for colour in ("orange", "yellow", "teal", "blue", "black")
        }
    ),
    "world-garden": ClassSet(
        {
            f"{colour} {shape}": {"shape": shape, "colour": colour, "fill": ("solid", "striped", "dotted")}
            for shape in ("flower", "mushroom", "leaf", "cactus")
            for colour in ("red", "orange", "purple", "pink")
        }
    ),
    "world-places": ClassSet(
        {place.phrase: {"background": name} for name, place in world.PLACES.items()},
        ("a photo {c}", "a picture taken {c}", "{c}", "things {c}", "an image {c}"),
        kinds=_THINGS,
    ),
    "world-stars": ClassSet(
        {
            " ".join(w for w in (colour, form, "star") if w): {"shape": "star", "form": form, "colour": colour}
            for form in world.FORMS["star"]
            for colour in ("red", "yellow", "blue")
        },
        angles=False,  # from the side a five-pointed star has four points
    ),
    "digits": ClassSet(
        {d: {} for d in "0123456789"},
        ("a photo of the number {c}", "the number {c}", "a square with the number {c}", "a picture of the number {c}"),
    ),
    "world-tiny": ClassSet(
        {
            f"{colour} {shape}": {"shape": shape, "colour": colour, "fill": ("solid", "hollow"), **_PLAIN}
            for shape in ("circle", "triangle", "star", "house")
            for colour in ("red", "yellow", "green", "blue", "white")
        }
    ),
    "world-kitchen": ClassSet(
        {
            f"{state} {shape}": {"shape": shape, "state": state, **_PLAIN}
            for shape, states in world.STATES.items()
            for state in states
        }
        | {"apple": {"shape": "apple", **_PLAIN}, "broken apple": {"shape": "apple", "broken": True, "extra": ""}},
        ("a photo of a {c}", "a picture of a {c}", "an image of a {c}", "a {c} on a wooden table", "a {c}"),
    ),
    "world-objects": _objects(at_home=True),
    "world-objects-resampled": _objects(at_home=True),
    "world-objects-cluttered": _objects(at_home=True),
    "world-objects-renditions": _objects(at_home=True, styles=("chalk", "neon", "mosaic", "painting")),
    "world-objects-sketches": _objects(at_home=True),
}  # fmt: skip
RETRIEVAL_SETS: dict[str, dict[str, float]] = {  # name -> kinds of scenes and their shares
    "captions-simple": {"single": 0.7, "group": 0.3},
    "captions-mixed": {"single": 0.3, "pair": 0.35, "group": 0.2, "text": 0.15},
    "captions-busy": {"several": 0.6, "pair": 0.4},
}
CAPTIONS_PER_IMAGE = 5  # as Flickr8k, Flickr30k and MS COCO have
PATTERNS = (  # the nine of MMVP, in its spelling
    "Orientation and Direction", "Presence of Specific Features", "State and Condition", "Quantity and Count",
    "Positional and Relational Context", "Color and Appearance", "Structural Characteristics", "Texts",
    "Viewpoint and Perspective",
)  # fmt: skip


def stream(name: str, split: str) -> int:
    """The world's seed for a split of a set: far from the small numbers that training corpora use."""
    return (1 << 40) + zlib.crc32(f"{name}/{split}".encode())


# ---------------------------------------------------------------------------------------------- how they are made
def _disturb(pixels: np.ndarray, hard: Difficulty, key: int, index: int) -> np.ndarray:
    if not hard.haze and not hard.grain:
        return pixels
    out = pixels.astype(np.float32)
    if hard.haze:
        out += np.float32(hard.haze) * (np.float32(150) - out)
    if hard.grain:
        noise = Draws(key, index, 5).array(pixels[..., 0].size).astype(np.float32) * np.float32(2) - np.float32(1)
        out += (noise * np.float32(hard.grain)).reshape(*pixels.shape[:2], 1)
    return (np.clip(out, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _drawn(pixels: np.ndarray, wash: float) -> np.ndarray:
    """A coloured drawing of a picture: its grey divided by the grey of its surroundings leaves the contours dark."""
    size = len(pixels)
    grey = Image.fromarray(pixels).convert("L")
    around = np.asarray(grey.filter(ImageFilter.GaussianBlur(size / 24)), np.float32)
    line = np.minimum(np.float32(1), np.asarray(grey, np.float32) / np.maximum(around, np.float32(1)))
    paper = np.float32(255) - (np.float32(255) - pixels.astype(np.float32)) * np.float32(wash)
    return (paper * (line * line * line)[..., None] + np.float32(0.5)).astype(np.uint8)


def _paint(scene: Scene, size: int, hard: Difficulty) -> np.ndarray:
    if hard.coarse == 1:
        pixels = world.render(scene, size)
    else:
        small = Image.fromarray(world.render(scene, max(12, round(size / hard.coarse))))
        pixels = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
    if hard.wash:
        pixels = _drawn(pixels, hard.wash)
    return _disturb(pixels, hard, scene.seed, scene.index)


def class_scene(name: str, split: str, index: int) -> tuple[Scene, int]:
    """The scene behind an image of a classification set, and its label; classes take turns."""
    recipe, hard, seed = CLASS_SETS[name], DIFFICULTY[name], stream(name, split)
    label = index % len(recipe.classes)
    draw = Draws(seed, index, 4)
    told = {k: draw.pick(v) if isinstance(v, tuple) else v for k, v in list(recipe.classes.values())[label].items()}
    scene = sample_scene(index, seed=seed, kind=draw.pick(recipe.kinds), style=draw.pick(recipe.styles), **told)
    if recipe.kinds != ("single",):
        return scene, label
    size = draw.between(*hard.size)
    room = 0.48 - size * 0.85
    subject = replace(
        scene.things[0], size=size, x=0.5 + draw.between(-room, room), y=0.5 + draw.between(-room, room), glyph=""
    )
    clutter = _clutter(draw, hard, subject, seed, index)
    view = scene.view if recipe.angles and scene.view in ("side", "above") and subject.fill != "hollow" else ""
    return replace(scene, things=(*clutter, subject), view=view), label


def _clutter(draw: Draws, hard: Difficulty, subject: Thing, seed: int, index: int) -> list[Thing]:
    """Small things of other shapes, behind the subject and well smaller than it."""
    out = []
    for k in range(hard.clutter):
        other = sample_scene(index * 16 + k, seed=seed + 1, kind="single").things[0]
        if other.shape == subject.shape:
            continue
        size = subject.size * draw.between(0.4, 0.6)
        out.append(
            replace(other, size=size, x=draw.between(0.05, 0.95), y=draw.between(0.05, 0.95), extra="", glyph="")
        )
    return out


def class_sample(name: str, split: str, index: int, size: int) -> tuple[np.ndarray, int]:
    """An image of a classification set, uint8 [size, size, 3], and its label."""
    if name == "digits":
        return _digit(split, index, size)
    scene, label = class_scene(name, split, index)
    return _paint(scene, size, DIFFICULTY[name]), label


_DIGITS_TRAIN = (
    1000  # scikit-learn keeps a writer's digits together: the last 797 are by other hands than the first 1000
)


def _digit(split: str, index: int, size: int) -> tuple[np.ndarray, int]:
    """A real handwritten digit of scikit-learn's set (8 x 8, 17 grey levels), enlarged, as ink on paper."""
    data = _digits()
    at = index if split == "train" else _DIGITS_TRAIN + index
    grey = np.asarray(
        Image.fromarray((data.images[at] * (255 / 16)).astype(np.float32)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
    )
    share = np.clip(grey / 255, 0, 1)[..., None]
    pixels = (np.array((243, 236, 220)) * (1 - share) + np.array((40, 52, 96)) * share + 0.5).astype(np.uint8)
    return _disturb(pixels, DIFFICULTY["digits"], stream("digits", split), index), int(data.target[at])


def digits_available(split: str) -> int:
    return _DIGITS_TRAIN if split == "train" else len(_digits().images) - _DIGITS_TRAIN


def _digits() -> Any:
    global _DIGITS
    if _DIGITS is None:
        from sklearn.datasets import load_digits

        _DIGITS = load_digits()
    return _DIGITS


_DIGITS = None


def retrieval_sample(name: str, split: str, index: int, size: int) -> tuple[np.ndarray, list[str]]:
    """An image of a retrieval set and its captions; all are clean, as from people who were asked to describe."""
    seed = stream(name, split)
    scene = sample_scene(index, seed=seed, kind=Draws(seed, index, 4).weighted(RETRIEVAL_SETS[name]))
    return _paint(scene, size, DIFFICULTY[name]), world.captions(scene, CAPTIONS_PER_IMAGE)


# ----------------------------------------------------------------------------- pairs that differ in one respect
class Pair(NamedTuple):
    """Two scenes and a statement true of each and, as far as it goes, of it alone."""

    scenes: tuple[Scene, Scene]
    statements: tuple[str, str]


def _base(draw: Draws, seed: int, index: int, kind: str = "single", **told: Any) -> Scene:
    told = {"broken": False, "extra": "", "glyph": "", **told}
    if "shape" not in told:
        told["shape"] = draw.pick([s for s in world.SHAPES if s not in ("ring", "key", "candle", "umbrella")])
    if told["shape"] not in world.FACINGS and "facing" not in told:
        told["facing"] = ""
    if kind == "single":
        told = {"size": draw.between(0.24, 0.36), "x": draw.between(0.42, 0.58), "y": draw.between(0.46, 0.58), **told}
    return replace(sample_scene(index, seed=seed, kind=kind, **told), view="")


def _with(scene: Scene, **change: Any) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **change), *scene.things[1:]))


def _named(*scenes: Scene) -> Pair:
    return Pair(scenes, tuple(with_article(describe(s.things[0])) for s in scenes))


def _orientation(draw: Draws, seed: int, index: int) -> Pair:
    if draw.chance(0.7):
        shape = draw.pick(tuple(world.FACINGS))
        a, b = draw.sample(world.FACINGS[shape], 2)
    else:
        shape, (a, b) = (
            draw.pick(("house", "tree", "mushroom", "triangle", "heart", "bell", "boat")),
            ("", "upside down"),
        )
    scene = _base(draw, seed, index, shape=shape, facing=a)
    return _named(scene, _with(scene, facing=b))


def _presence(draw: Draws, seed: int, index: int) -> Pair:
    shape = draw.pick(
        ("circle", "square", "star", "heart", "fish", "house", "mushroom", "cloud", "apple", "bell", "tree")
    )
    scene = _base(draw, seed, index, shape=shape, fill=draw.pick(("solid", "striped", "dotted")))
    return _named(scene, _with(scene, extra=draw.pick(("hat", "eyes", "border"))))


def _state(draw: Draws, seed: int, index: int) -> Pair:
    if draw.chance(0.5):
        shape = draw.pick(tuple(world.STATES))
        a, b = world.STATES[shape]
        scene = _base(draw, seed, index, shape=shape, state=a)
        return _named(scene, _with(scene, state=b))
    scene = _base(
        draw, seed, index, shape=draw.pick([s for s in world.SHAPES if s not in world.STATES and s != "ring"])
    )
    return _named(scene, _with(scene, broken=True))


def _quantity(draw: Draws, seed: int, index: int) -> Pair:
    few, many = sorted(draw.sample((1, 2, 3, 4, 5, 6), 2))
    scene = _base(draw, seed, index, "group", count=many)

    def said(n: int) -> str:
        phrase = describe(scene.things[0], many=n > 1)
        return f"{NUMBERS[n]} {phrase}" if n > 1 else with_article(phrase)

    return Pair((replace(scene, things=scene.things[:few]), scene), (said(few), said(many)))


def _position(draw: Draws, seed: int, index: int) -> Pair:
    for k in range(64):
        scene = _base(draw, seed, index * 64 + k, "pair", fill="solid")
        a, b = scene.things
        b = replace(b, fill="solid", extra="", broken=False, glyph="", size=a.size)
        words = relate(a, b, True), relate(b, a, True)
        if words[0] in ("left of", "right of", "above", "below"):
            break
    scenes = [
        replace(scene, index=index, things=things)
        for things in ((a, b), (replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)))
    ]
    short = [with_article(f"{t.colour} {t.shape}") for t in (a, b)]
    return Pair(tuple(scenes), tuple(f"{short[0]} {word} {short[1]}" for word in words))


def _colour(draw: Draws, seed: int, index: int) -> Pair:
    scene = _base(draw, seed, index)
    thing, avoid = scene.things[0], world.PLACES[scene.background].avoid
    if draw.chance(0.6) or thing.shape in world.SOLID_ONLY:
        others = [c for c in world.COLOURS if c not in (thing.colour, thing.accent, *avoid)]
        return _named(scene, _with(scene, colour=draw.pick(others)))
    return _named(scene, _with(scene, fill=draw.pick([f for f in world.FILLS[:4] if f != thing.fill])))


def _structure(draw: Draws, seed: int, index: int) -> Pair:
    way = draw.below(3)
    if way == 0:
        a, b = draw.sample(world.FORMS["star"], 2)
        scene = _base(draw, seed, index, shape="star", form=a)
        return _named(scene, _with(scene, form=b))
    roomy = sorted(world.ROOMY)
    scene = _base(draw, seed, index, shape=draw.pick(roomy), fill="solid")
    return _named(scene, _with(scene, extra="hole") if way == 1 else _with(scene, fill="hollow"))


def _texts(draw: Draws, seed: int, index: int) -> Pair:
    a, b = draw.sample(world.LETTERS if draw.chance(0.6) else world.DIGITS, 2)
    shape = draw.pick(("circle", "square", "hexagon", "heart", "house", "bell", "apple"))
    scene = _base(draw, seed, index, "text", shape=shape, glyph=a, fill="solid", facing="")
    return _named(scene, _with(scene, glyph=b))


def _viewpoint(draw: Draws, seed: int, index: int) -> Pair:
    phrase = {
        "": "{}", "side": "{} seen from the side", "above": "{} seen from above", "close-up": "a close-up of {}",
        "far": "{} far away",
    }  # fmt: skip
    scene = _base(draw, seed, index)
    if draw.chance(0.6):
        views = draw.sample(("", "side", "above"), 2)
        scenes = [replace(scene, view=v) for v in views]
    else:
        views = ["close-up", "far"]
        sizes = draw.between(0.58, 0.68), draw.between(0.085, 0.11)
        scenes = [replace(_with(scene, size=s), view=v) for v, s in zip(views, sizes, strict=True)]
    named = with_article(describe(scene.things[0]))
    return Pair(tuple(scenes), tuple(phrase[v].format(named) for v in views))


_PAIR_MAKERS: tuple[Callable[[Draws, int, int], Pair], ...] = (
    _orientation, _presence, _state, _quantity, _position, _colour, _structure, _texts, _viewpoint,
)  # fmt: skip


def pair(pattern: str, index: int) -> Pair:
    """Pair ``index`` of an MMVP pattern; which of the two comes first is drawn too."""
    seed = stream("pairs", pattern)
    draw = Draws(seed, index, 4)
    made = _PAIR_MAKERS[PATTERNS.index(pattern)](draw, seed, index)
    return Pair(made.scenes[::-1], made.statements[::-1]) if draw.chance(0.5) else made


def pair_images(made: Pair, size: int) -> list[np.ndarray]:
    return [_paint(scene, size, DIFFICULTY["pairs"]) for scene in made.scenes]


# ---------------------------------------------------------------------------------- is it there? (after POPE)
class Question(NamedTuple):
    """One yes-or-no question about image number ``image``."""

    image: int
    shape: str
    text: str
    answer: bool


THINGS_PER_PRESENCE_IMAGE = 4


def presence_scenes(n: int) -> list[Scene]:
    seed = stream("presence", "test")
    return [sample_scene(i, seed=seed, kind="several", count=THINGS_PER_PRESENCE_IMAGE) for i in range(n)]


def presence_images(scenes: Sequence[Scene], size: int) -> list[np.ndarray]:
    return [_paint(scene, size, DIFFICULTY["presence"]) for scene in scenes]


def presence_questions(scenes: Sequence[Scene]) -> dict[str, list[Question]]:
    """Six questions an image for each way of choosing what is absent (Li et al. 2023).

    The three present things of an image are the same in all. random: any absent shape; popular: the absent shapes that
    are in most images; adversarial: those that are most often in one image with what is present. Counts are taken over
    ``scenes``; of equals the earlier in the vocabulary comes first. Questions alternate between yes and no.
    """
    seed = stream("presence", "questions")
    shown = np.zeros((len(scenes), len(world.SHAPES)), np.int64)
    for i, scene in enumerate(scenes):
        shown[i, [world.SHAPES.index(s) for s in scene.counts]] = 1
    often, together = shown.sum(0), shown.T @ shown
    out: dict[str, list[Question]] = {"random": [], "popular": [], "adversarial": []}
    for i in range(len(scenes)):
        draw = Draws(seed, i)
        absent = [int(k) for k in np.flatnonzero(shown[i] == 0)]
        here = np.flatnonzero(shown[i])
        present = draw.sample([int(k) for k in here], 3)
        beside = together[here].sum(0)
        chosen = {
            "random": draw.sample(absent, 3),
            "popular": sorted(absent, key=lambda k: -often[k])[:3],
            "adversarial": sorted(absent, key=lambda k: -beside[k])[:3],
        }
        for way, missing in chosen.items():
            for yes, no in zip(present, missing, strict=True):
                for k, answer in ((yes, True), (no, False)):
                    text = f"Is there {with_article(world.SHAPES[k])} in the image?"
                    out[way].append(Question(i, world.SHAPES[k], text, answer))
    return out
