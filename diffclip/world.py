"""The embedded world: small captioned scenes, made from an index, with every attribute and a mask per object known.

``sample_scene(index, seed=...)`` gives the attributes, ``render`` the picture at any size, ``captions`` several
wordings, some as sloppy as alt texts on the web. All three are functions of their arguments alone: scene 12 of seed 3
is the same scene, pixel by pixel, on every machine, and it costs the same as scene 0.

Lengths are shares of the image side, x to the right and y down from the top left corner; angles are degrees clockwise.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from diffclip import shapes
from diffclip.counter import Draws

SHAPES = tuple(shapes.SHAPES)
# Things are not equally frequent, as on the web; a small model that sees few pictures learns these first.
COMMON = (
    "circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow", "house", "tree", "fish", "cup", "flower",
    "cloud", "drop", "bell",
)  # fmt: skip
COLOURS = {
    "red": (214, 57, 54), "orange": (240, 138, 46), "yellow": (248, 205, 62), "green": (74, 158, 84),
    "teal": (42, 166, 166), "blue": (56, 104, 200), "purple": (128, 82, 176), "pink": (240, 138, 172),
    "brown": (134, 90, 60), "black": (44, 44, 52), "white": (250, 249, 245), "grey": (142, 146, 152),
}  # fmt: skip
FILLS = ("solid", "striped", "dotted", "checked", "hollow", "zigzag")
EXTRAS = ("hat", "eyes", "hole", "border")
# Where a shape can have a state, its states, the first as drawn when nothing is said. Everything can be broken.
STATES = {
    "cup": ("empty", "full"),
    "umbrella": ("open", "closed"),
    "candle": ("unlit", "lit"),
    "box": ("closed", "open"),
}
FORMS = {"star": ("", "four-pointed", "six-pointed", "eight-pointed")}
# Shapes drawn facing right, which may face any of the ways listed; all others stand upright, or upside down.
FACINGS = {
    "arrow": ("right", "left", "up", "down"), "key": ("right", "left", "up", "down"), "fish": ("right", "left"),
    "car": ("right", "left"), "bird": ("right", "left"),
}  # fmt: skip
ROUND = frozenset(
    {"circle", "square", "hexagon", "diamond", "star", "ring", "cross", "flower"}
)  # upside down: no difference
# Shapes with room for a hole in the middle.
ROOMY = ROUND - {"ring", "flower"} | {"triangle", "heart", "fish", "tree", "mushroom", "cloud", "drop", "bell", "apple"}
SOLID_ONLY = frozenset({"key", "candle"})  # too thin for a pattern to be seen
STYLES = ("photo", "sketch", "chalk", "neon", "mosaic", "painting")
LETTERS, DIGITS = shapes.LETTERS, shapes.DIGITS


@dataclass(frozen=True)
class Place:
    """A background: how it is said, the shapes one expects there, and the colours that would drown in it."""

    phrase: str
    expects: tuple[str, ...]
    avoid: tuple[str, ...]


PLACES = {
    "meadow": Place("in a meadow", ("flower", "tree", "butterfly", "mushroom", "house"), ("green",)),
    "mountains": Place("in the mountains", ("tree", "cloud", "bird", "house"), ("grey", "teal")),
    "desert": Place("in the desert", ("cactus", "car", "moon", "key"), ("orange", "yellow", "brown")),
    "sea": Place("at sea", ("boat", "fish", "bird", "cloud"), ("blue", "teal")),
    "sunset": Place("at sunset", ("bird", "boat", "heart", "cloud"), ("orange", "pink", "purple")),
    "night sky": Place("in the night sky", ("moon", "star", "rocket", "ring"), ("black", "purple")),
    "snow": Place("in the snow", ("tree", "house", "hexagon", "star"), ("white", "grey")),
    "city": Place("in front of a city", ("car", "house", "umbrella", "bolt"), ("grey", "purple")),
    "forest": Place("in a forest", ("mushroom", "leaf", "bird", "tree"), ("green", "brown", "black")),
    "brick wall": Place("on a brick wall", ("arrow", "bell", "heart", "cross"), ("red", "brown")),
    "wooden table": Place("on a wooden table", ("cup", "candle", "apple", "key", "box"), ("brown", "orange")),
    "graph paper": Place("on graph paper", ("triangle", "circle", "square", "hexagon", "diamond"), ("white",)),
    "tiled floor": Place("on a tiled floor", ("box", "cup", "drop", "square"), ("teal", "white")),
    "curtain": Place("in front of a curtain", ("crown", "candle", "bell", "diamond"), ("purple", "red")),
    "plain wall": Place("on a plain wall", ("circle", "arrow", "key", "apple"), ()),
    "water": Place("under water", ("fish", "drop", "ring", "bolt"), ("blue", "teal")),
}  # fmt: skip
KINDS = {"single": 0.5, "pair": 0.22, "group": 0.12, "several": 0.08, "text": 0.08}


@dataclass(frozen=True)
class Thing:
    """One object. ``size`` is its half extent; ``accent`` the second colour of a pattern."""

    shape: str
    colour: str
    fill: str = "solid"
    accent: str = "white"
    x: float = 0.5
    y: float = 0.5
    size: float = 0.28
    facing: str = ""
    tilt: float = 0.0
    form: str = ""
    state: str = ""
    broken: bool = False
    extra: str = ""
    glyph: str = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background with things, painted in order: later ones cover earlier ones.

    ``look`` are four numbers in [0, 1) for what no caption speaks of (the height of the horizon, where the clouds are).
    ``view`` is "", "side" or "above" for things seen at an angle, "close-up" or "far".
    """

    index: int
    seed: int
    kind: str
    background: str
    things: tuple[Thing, ...]
    look: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)
    view: str = ""
    style: str = "photo"

    @property
    def counts(self) -> Counter:
        """How many things of each shape."""
        return Counter(t.shape for t in self.things)

    def attributes(self) -> dict[str, Any]:
        """Everything known about the scene, as plain data fit for JSON; relations are (i, word, j)."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "things"}
        out["look"] = list(self.look)
        out["things"] = [dict(vars(t)) for t in self.things]
        out["counts"] = dict(self.counts)
        n = len(self.things)
        pairs = [(i, relation(self.things[i], self.things[j]), j) for i in range(n) for j in range(n) if i != j]
        out["relations"] = [list(p) for p in pairs if p[1]]
        return out


def relation(a: Thing, b: Thing) -> str:
    """Where a stands seen from b: "left of", "right of", "above", "below", or "" where neither axis is clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= 1.6 * abs(dy) and abs(dx) > 0.1:
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= 1.6 * abs(dx) and abs(dy) > 0.1:
        return "above" if dy < 0 else "below"
    return ""


def state_of(thing: Thing) -> str:
    """The state as it is said: "broken", "open", "lit", ...; "" where there is nothing to say."""
    return "broken" if thing.broken else thing.state


# ----------------------------------------------------------------------------------------------------- sampling
def _thing(draw: Draws, background: str, shapes_from: tuple[str, ...] | None, fixed: dict[str, Any], taken=()) -> Thing:
    """A thing in keeping with its place; attributes in ``fixed`` are as told."""
    place = PLACES[background]
    shape = fixed.get("shape")
    if shape is None:
        fate = draw.u()
        pool = shapes_from or (place.expects if fate < 0.5 else COMMON if fate < 0.9 else SHAPES)
        shape = draw.pick([s for s in pool if s not in taken] or [s for s in SHAPES if s not in taken])
    colour = fixed.get("colour") or draw.pick([c for c in COLOURS if c not in place.avoid])
    fill = "solid" if shape in SOLID_ONLY or draw.chance(0.5) else draw.pick(FILLS[1:])
    fill = fixed.get("fill", fill)
    accent = "white" if draw.chance(0.65) else draw.pick(("yellow", "black", "blue", "red", "grey"))
    if accent == colour or (colour in ("white", "yellow", "grey") and accent in ("white", "grey", "yellow")):
        accent = "blue" if colour == "black" else "black"
    extra, glyph, broken = "", "", False
    fate = draw.u()
    if fate < 0.06 and fill != "hollow":
        extra = "hat"
    elif fate < 0.12 and fill != "hollow":
        extra = "eyes"
    elif fate < 0.16 and fill != "hollow" and shape in ROOMY:
        extra = "hole"
    elif fate < 0.21:
        extra = "border" if fill != "hollow" else ""
    elif fate < 0.28:
        broken = True
    facings = FACINGS.get(shape)
    if facings:
        facing = draw.pick(facings)
    else:
        facing = "upside down" if draw.chance(0.07) and shape not in ROUND else ""
    thing = Thing(
        shape, colour, fill, accent, facing=facing, tilt=draw.between(-9, 9), form=draw.pick(FORMS.get(shape, ("",))),
        state=draw.pick(STATES.get(shape, ("",))), broken=broken, extra=extra, glyph=glyph, shade=draw.between(-1, 1),
    )  # fmt: skip
    return replace(thing, **fixed) if fixed else thing


_CELLS = [(c, r) for r in range(3) for c in range(3)]


def _scatter(draw: Draws, n: int) -> list[tuple[float, float]]:
    """n places on a jittered three by three board, so that things seldom hide each other."""
    cells = draw.sample(_CELLS, n)
    return [
        (
            (c + 0.5) / 3 * 0.94 + 0.03 + draw.between(-0.05, 0.05),
            (r + 0.5) / 3 * 0.92 + 0.05 + draw.between(-0.05, 0.05),
        )
        for c, r in cells
    ]


def _single(draw: Draws, background: str, fixed: dict[str, Any]) -> tuple[list[Thing], str]:
    size = draw.between(0.21, 0.41)
    room = 0.5 - size * 0.9
    where = {"x": 0.5 + draw.between(-room, room), "y": 0.52 + draw.between(-room, room) * 0.9}
    view = ""
    if draw.chance(0.12):
        view = draw.pick(("side", "above", "close-up", "far"))
        if view in ("close-up", "far"):
            size = draw.between(0.58, 0.68) if view == "close-up" else draw.between(0.085, 0.11)
            where = {"x": draw.between(0.42, 0.58), "y": draw.between(0.45, 0.6)}
    return [_thing(draw, background, None, {"size": size, **where, **fixed})], view


def _pair(draw: Draws, background: str, fixed: dict[str, Any]) -> tuple[list[Thing], str]:
    way, sizes = draw.below(5), (draw.between(0.14, 0.22), draw.between(0.14, 0.22))
    centre, gap, slip = draw.between(0.45, 0.55), draw.between(0.22, 0.27), draw.between(-0.08, 0.08)
    if way < 2:  # side by side
        spots = [(centre - gap, 0.54 + slip), (centre + gap, 0.54 - slip)]
    elif way < 4:  # one over the other
        spots = [(centre + slip, 0.5 - gap), (centre - slip, 0.54 + gap)]
    else:  # the second partly in front of the first
        spots = [(centre - 0.1, 0.46 + slip), (centre + 0.08, 0.58 - slip)]
        sizes = (draw.between(0.24, 0.28), draw.between(0.14, 0.18))
    if way in (1, 3):
        spots.reverse()
    first = _thing(draw, background, None, {"x": spots[0][0], "y": spots[0][1], "size": sizes[0], **fixed})
    second = _thing(
        draw, background, None, {"x": spots[1][0], "y": spots[1][1], "size": sizes[1]}, taken=(first.shape,)
    )
    return [first, second], ""


def _group(draw: Draws, background: str, fixed: dict[str, Any], n: int | None = None) -> tuple[list[Thing], str]:
    n = n or 2 + draw.below(5)
    model = _thing(draw, background, None, {"broken": False, "extra": "", **fixed})
    size = (0.22, 0.19, 0.17, 0.155, 0.145, 0.14, 0.135, 0.13)[min(n, 9) - 2] if n > 1 else 0.26
    things = []
    for x, y in _scatter(draw, n):
        things.append(replace(model, x=x, y=y, size=size * draw.between(0.9, 1.06), tilt=draw.between(-10, 10)))
    return things, ""


def _several(draw: Draws, background: str, fixed: dict[str, Any], n: int | None = None) -> tuple[list[Thing], str]:
    things: list[Thing] = []
    for i, (x, y) in enumerate(_scatter(draw, n or 3 + draw.below(3))):
        told = {"x": x, "y": y, "size": draw.between(0.125, 0.18)}
        things.append(
            _thing(draw, background, None, {**told, **fixed} if i == 0 else told, taken=[t.shape for t in things])
        )
    return things, ""


_CARDS = ("circle", "square", "hexagon", "heart", "house", "bell", "drop", "cup", "apple", "cloud")


def _text(draw: Draws, background: str, fixed: dict[str, Any]) -> tuple[list[Thing], str]:
    size = draw.between(0.28, 0.4)
    room = 0.5 - size
    told = {
        "size": size, "x": 0.5 + draw.between(-room, room), "y": 0.52 + draw.between(-room, room) * 0.8,
        "fill": "solid", "glyph": draw.pick(LETTERS + DIGITS), "extra": "", "broken": False, "facing": "",
    }  # fmt: skip
    return [_thing(draw, background, _CARDS, {**told, **fixed})], ""


_MAKERS = {"single": _single, "pair": _pair, "group": _group, "several": _several, "text": _text}


def sample_scene(
    index: int,
    *,
    seed: int = 0,
    kind: str = "mixed",
    background: str | None = None,
    count: int | None = None,
    style: str | None = None,
    **subject: Any,
) -> Scene:
    """Scene ``index`` of the stream ``seed``.

    ``kind`` is one of KINDS ("single", "pair", "group", "several", "text") or "mixed" for their blend. Attributes of
    the first thing (of every thing in a group) may be told: ``sample_scene(7, shape="star", fill="striped")``;
    ``count`` tells how many things a "group" or "several" has. What is not told is drawn, the same for the same
    arguments on every machine. One in four "mixed" scenes is a drawing, a mosaic or the like unless ``style`` is told;
    other kinds are photos. Raises ValueError for words the world does not know.
    """
    if style is None:
        other = Draws(seed, index, 8)
        style = other.pick(STYLES[1:]) if kind == "mixed" and other.chance(0.25) else "photo"
    _check(kind=kind, background=background, style=style, count=count, **subject)
    draw = Draws(seed, index, 1)
    if kind == "mixed":
        kind = draw.weighted(KINDS)
    if background is None:
        background = draw.pick(tuple(PLACES))
    look = (draw.u(), draw.u(), draw.u(), draw.u())
    if count is not None:
        things, view = _MAKERS[kind](draw, background, subject, count)
    else:
        things, view = _MAKERS[kind](draw, background, subject)
    return Scene(index, seed, kind, background, tuple(things), look, view, style)


_WORDS: dict[str, Any] = {
    "kind": ("mixed", *KINDS), "background": tuple(PLACES), "style": STYLES, "shape": SHAPES, "colour": tuple(COLOURS),
    "fill": FILLS, "accent": tuple(COLOURS), "extra": ("", *EXTRAS), "glyph": ("", *LETTERS, *DIGITS),
    "state": ("", *(s for states in STATES.values() for s in states)), "form": FORMS["star"],
    "facing": ("", "right", "left", "up", "down", "upside down"),
}  # fmt: skip
_FREE = {"x", "y", "size", "tilt", "broken", "shade"}


def _check(count: int | None, **words: Any) -> None:
    for name, value in words.items():
        if name in _FREE or (value is None and name == "background"):
            continue
        if name not in _WORDS:
            raise ValueError(f"A thing has no attribute {name!r}. It has: {', '.join(f.name for f in fields(Thing))}.")
        if value not in _WORDS[name]:
            raise ValueError(
                f"The world knows no {name} {value!r}. It knows: {', '.join(w for w in _WORDS[name] if w)}."
            )
    if count is not None and (words["kind"] not in ("group", "several") or not 1 <= count <= 9):
        raise ValueError(f"count={count} does not go with kind={words['kind']!r}: a 'group' or 'several' has 1 to 9.")


# ---------------------------------------------------------------------------------------------------- the faces
def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture as uint8 [size, size, 3]. The same scene at another size is the same picture, finer or coarser."""
    from diffclip import painting

    return painting.paint(scene, size)[0]


def render_with_masks(scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The picture and, per thing, its visible pixels: (uint8 [size, size, 3], bool [n_things, size, size]).

    A pixel belongs to the topmost thing that covers at least half of it; shadows belong to nothing.
    """
    from diffclip import painting

    return painting.paint(scene, size, masks=True)


def captions(scene: Scene, n: int = 5, *, noisy: float = 0.0, stream: int = 0) -> list[str]:
    """``n`` captions of different wording; each is noisy in a web-like way with probability ``noisy``.

    A caption that is not noisy says only what is true and leaves out at most details. ``stream`` gives other
    wordings of the same scene.
    """
    from diffclip import wording

    return [text for text, _ in wording.captions(scene, n, noisy, stream)]


def fingerprint(scene: Scene, size: int = 64) -> str:
    """A short hash over attributes, picture and captions: two machines agree on it or do not make the same world."""
    digest = hashlib.sha256(repr(scene).encode())
    digest.update(render(scene, size).tobytes())
    digest.update("\n".join(captions(scene, 5, noisy=0.5)).encode())
    return digest.hexdigest()[:16]
