"""The shapes of the embedded world as signed distances.

A shape is a function of two coordinate arrays (x to the right, y up, the shape inside the unit box [-1, 1]^2) that
gives the signed distance to its outline, negative inside. Distances combine (``min`` joins, ``max`` with a minus cuts)
and turn into anti-aliased coverage at any resolution. Each shape is evaluated once a process on a fixed grid; painting
reads that table with bilinear interpolation, so a scene costs the same whatever the shape, and the definitions here can
afford to be plain. Some shapes have a second region of another colour (the trunk of the tree, the eye of the fish).

Only +, -, *, / and the square root act on arrays: these are correctly rounded everywhere, so pictures are the same bit
by bit on every machine. Corners that need a sine are rounded to six digits first for the same reason.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Array = np.ndarray
GRID = 192  # cells a side of a table
REACH = 1.2  # the table covers [-REACH, REACH]^2
CELLS = (GRID - 1) / (2 * REACH)  # cells in a unit


# ---------------------------------------------------------------------------------------------- building blocks
def _disc(x: Array, y: Array, cx: float, cy: float, r: float) -> Array:
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - r


def _box(x: Array, y: Array, cx: float, cy: float, hx: float, hy: float, r: float = 0.0) -> Array:
    """Rectangle of half sides hx, hy, its corners rounded with radius r."""
    dx, dy = np.abs(x - cx) - (hx - r), np.abs(y - cy) - (hy - r)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0) - r


def _line(x: Array, y: Array, points: list[tuple[float, float]], half_width: float) -> Array:
    """A stroke with round ends along a polyline."""
    best = None
    for (ax, ay), (bx, by) in pairwise(points):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        d = (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2
        best = d if best is None else np.minimum(best, d)
    return np.sqrt(best) - half_width


def _polygon(x: Array, y: Array, points: list[tuple[float, float]], r: float = 0.0) -> Array:
    """A polygon grown outwards by r, which rounds its corners; even-odd rule for the inside."""
    closed = [*points, points[0]]
    distance = _line(x, y, closed, 0.0)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in pairwise(closed):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return np.where(inside, -distance, distance) - r


def _ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    """Near the outline a first-order distance, which is where it matters."""
    k = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    g = np.sqrt(((x - cx) / rx**2) ** 2 + ((y - cy) / ry**2) ** 2) + 1e-6
    return k * (k - 1) / np.maximum(g, 0.3)


def _around(n: int, radius: float, start: float = 90.0) -> list[tuple[float, float]]:
    turn = [math.radians(start + 360 * i / n) for i in range(n)]
    return [(round(radius * math.cos(a), 6), round(radius * math.sin(a), 6)) for a in turn]


def _star_points(n: int, inner: float) -> list[tuple[float, float]]:
    outside, inside = _around(n, 0.97), _around(n, inner, 90 + 180 / n)
    return [p for pair in zip(outside, inside, strict=True) for p in pair]


def _join(*distances: Array) -> Array:
    out = distances[0]
    for d in distances[1:]:
        out = np.minimum(out, d)
    return out


def _cut(a: Array, *holes: Array) -> Array:
    for hole in holes:
        a = np.maximum(a, -hole)
    return a


# ------------------------------------------------------------------------------------------------------ the shapes
def _heart(x: Array, y: Array) -> Array:
    curve = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        px = 16 * math.sin(t) ** 3
        py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((round(px / 17.2, 6), round((py + 2.4) / 16.2, 6)))
    return _polygon(x, y, curve)


def _flower(x: Array, y: Array) -> Array:
    return _join(*(_disc(x, y, px, py, 0.36) for px, py in _around(6, 0.56)), _disc(x, y, 0, 0, 0.4))


def _house(x: Array, y: Array) -> Array:
    roof = _polygon(x, y, [(-0.95, 0.08), (0, 0.92), (0.95, 0.08)])
    return _join(roof, _box(x, y, 0, -0.4, 0.7, 0.52), _box(x, y, 0.52, 0.6, 0.12, 0.28))


def _house_detail(x: Array, y: Array) -> Array:
    return _join(_box(x, y, -0.3, -0.56, 0.17, 0.36), _box(x, y, 0.3, -0.28, 0.19, 0.19))


def _tree(x: Array, y: Array) -> Array:
    crown = [
        _polygon(x, y, [(-w, b), (0, t), (w, b)], 0.03)
        for w, b, t in ((0.78, -0.5, 0.3), (0.62, 0, 0.62), (0.44, 0.42, 0.95))
    ]
    return _join(*crown, _tree_detail(x, y))


def _tree_detail(x: Array, y: Array) -> Array:
    return _box(x, y, 0, -0.74, 0.14, 0.22)


def _fish(x: Array, y: Array) -> Array:
    body = np.maximum(_disc(x, y, 0.2, -0.5, 0.95), _disc(x, y, 0.2, 0.5, 0.95))
    tail = _polygon(x, y, [(-0.35, 0), (-0.95, 0.48), (-0.78, 0), (-0.95, -0.48)], 0.03)
    return _join(body, tail, _polygon(x, y, [(-0.1, 0.38), (0.3, 0.72), (0.4, 0.36)]))


def _leaf(x: Array, y: Array) -> Array:
    blade = np.maximum(_disc(x, y, -0.55, 0.1, 1.02), _disc(x, y, 0.55, 0.1, 1.02))
    return _join(blade, _line(x, y, [(0, -0.7), (0.05, -0.97)], 0.06))


def _leaf_detail(x: Array, y: Array) -> Array:
    veins = [_line(x, y, [(0, b), (s * 0.26, b + 0.26)], 0.035) for b in (-0.35, 0.0, 0.3) for s in (-1, 1)]
    return _join(_line(x, y, [(0, -0.9), (0, 0.7)], 0.05), *veins)


def _mushroom(x: Array, y: Array) -> Array:
    cap = np.maximum(_ellipse(x, y, 0, -0.02, 0.95, 0.92), -(y + 0.02)) - 0.02
    return _join(cap, _mushroom_detail(x, y))


def _mushroom_detail(x: Array, y: Array) -> Array:
    return np.maximum(_box(x, y, 0, -0.5, 0.3, 0.5, 0.16), y + 0.04)


def _cup(x: Array, y: Array) -> Array:
    handle = np.abs(_disc(x, y, 0.58, -0.08, 0.3)) - 0.09
    body = _polygon(x, y, [(-0.72, 0.5), (0.5, 0.5), (0.34, -0.78), (-0.56, -0.78)], 0.04)
    return _join(body, handle, _cup_rim(x, y) - 0.1)


def _cup_rim(x: Array, y: Array) -> Array:
    return _ellipse(x, y, -0.11, 0.54, 0.55, 0.17)


def _key(x: Array, y: Array) -> Array:
    bow = np.abs(_disc(x, y, -0.55, 0, 0.28)) - 0.13
    shaft = _box(x, y, 0.35, 0, 0.6, 0.1, 0.03)
    return _join(bow, shaft, _box(x, y, 0.82, -0.2, 0.1, 0.22), _box(x, y, 0.52, -0.16, 0.08, 0.18))


def _cloud(x: Array, y: Array) -> Array:
    puffs = [(-0.55, -0.12, 0.36), (-0.12, 0.2, 0.46), (0.38, 0.06, 0.4), (0.68, -0.2, 0.28)]
    return _join(*(_disc(x, y, *p) for p in puffs), _box(x, y, 0.02, -0.28, 0.9, 0.22, 0.2))


def _boat(x: Array, y: Array) -> Array:
    sails = _join(
        _polygon(x, y, [(0.1, 0.95), (0.1, -0.2), (0.82, -0.2)], 0.02),
        _polygon(x, y, [(-0.1, 0.75), (-0.1, -0.2), (-0.6, -0.2)], 0.02),
    )
    return _join(sails, _boat_detail(x, y))


def _boat_detail(x: Array, y: Array) -> Array:
    hull = _polygon(x, y, [(-0.92, -0.38), (0.96, -0.38), (0.66, -0.85), (-0.66, -0.85)], 0.03)
    return _join(hull, _box(x, y, 0, 0.25, 0.05, 0.72))


def _bolt(x: Array, y: Array) -> Array:
    return _polygon(
        x, y, [(0.2, 0.96), (-0.6, -0.1), (-0.08, -0.1), (-0.25, -0.96), (0.6, 0.24), (0.06, 0.24), (0.5, 0.96)]
    )


def _drop(x: Array, y: Array) -> Array:
    return _join(_disc(x, y, 0, -0.34, 0.6), _polygon(x, y, [(0, 0.95), (-0.535, -0.07), (0.535, -0.07)], 0.01))


def _umbrella(x: Array, y: Array) -> Array:
    scallops = [_disc(x, y, c, 0.0, 0.33) for c in (-0.63, 0, 0.63)]
    dome = np.maximum(_disc(x, y, 0, -0.02, 0.94), -(y - 0.02))
    return _join(_cut(dome, *scallops), _umbrella_detail(x, y))


def _umbrella_detail(x: Array, y: Array) -> Array:
    return _line(x, y, [(0, 0.3), (0, -0.78), (0.1, -0.9), (0.24, -0.88), (0.3, -0.74)], 0.06)


def _umbrella_closed(x: Array, y: Array) -> Array:
    cloth = _polygon(x, y, [(0, 0.95), (-0.24, -0.3), (-0.1, -0.42), (0.1, -0.42), (0.24, -0.3)], 0.03)
    return _join(cloth, _umbrella_detail(x, y))


def _candle(x: Array, y: Array) -> Array:
    return _join(_box(x, y, 0, -0.38, 0.32, 0.58, 0.05), _box(x, y, 0, -0.86, 0.6, 0.1, 0.08), _wick(x, y))


def _wick(x: Array, y: Array) -> Array:
    return _line(x, y, [(0, 0.2), (0.02, 0.36)], 0.05)


def _flame(x: Array, y: Array) -> Array:
    return _join(_disc(x, y, 0, 0.46, 0.21), _polygon(x, y, [(0.02, 0.97), (-0.19, 0.52), (0.2, 0.52)], 0.01))


def _candle_lit(x: Array, y: Array) -> Array:
    return _join(_candle(x, y), _flame(x, y))


def _crate(x: Array, y: Array) -> Array:
    return _join(_box(x, y, 0, -0.22, 0.72, 0.6, 0.04), _box(x, y, 0, 0.42, 0.84, 0.18, 0.05))


def _crate_detail(x: Array, y: Array) -> Array:
    return _join(_box(x, y, 0, 0.2, 0.74, 0.045), _box(x, y, 0, -0.1, 0.12, 0.7))


def _crate_open(x: Array, y: Array) -> Array:
    flaps = [_polygon(x, y, [(s * 0.7, 0.2), (s * 1.0, 0.72), (s * 0.62, 0.86), (s * 0.4, 0.25)]) for s in (-1, 1)]
    return _join(_box(x, y, 0, -0.3, 0.72, 0.52, 0.04), *flaps, _crate_inside(x, y) - 0.05)


def _crate_inside(x: Array, y: Array) -> Array:
    return _polygon(x, y, [(-0.66, 0.1), (-0.42, 0.46), (0.42, 0.46), (0.66, 0.1)])


def _car(x: Array, y: Array) -> Array:
    cabin = _polygon(x, y, [(-0.6, 0.05), (-0.42, 0.5), (0.2, 0.5), (0.48, 0.05)], 0.05)
    return _join(_box(x, y, 0, -0.14, 0.95, 0.26, 0.14), cabin, _car_wheels(x, y))


def _car_wheels(x: Array, y: Array) -> Array:
    return _join(_disc(x, y, -0.5, -0.4, 0.25), _disc(x, y, 0.5, -0.4, 0.25))


def _car_detail(x: Array, y: Array) -> Array:
    windows = _join(
        _polygon(x, y, [(-0.46, 0.1), (-0.36, 0.4), (-0.16, 0.4), (-0.16, 0.1)]),
        _polygon(x, y, [(-0.04, 0.1), (-0.04, 0.4), (0.16, 0.4), (0.33, 0.1)]),
    )
    return _join(_car_wheels(x, y), windows)


def _bell(x: Array, y: Array) -> Array:
    skirt = _polygon(x, y, [(-0.4, 0.4), (0.4, 0.4), (0.5, -0.1), (0.82, -0.55), (-0.82, -0.55), (-0.5, -0.1)], 0.06)
    return _join(skirt, _disc(x, y, 0, 0.4, 0.45), _disc(x, y, 0, 0.86, 0.12), _disc(x, y, 0, -0.72, 0.22))


def _crown(x: Array, y: Array) -> Array:
    points = [(-0.8, -0.7), (-0.9, 0.45), (-0.45, -0.02), (0, 0.7), (0.45, -0.02), (0.9, 0.45), (0.8, -0.7)]
    balls = [_disc(x, y, bx, by, 0.13) for bx, by in ((-0.88, 0.5), (0, 0.78), (0.88, 0.5))]
    return _join(_polygon(x, y, points), *balls)


def _apple(x: Array, y: Array) -> Array:
    body = _join(_disc(x, y, -0.3, -0.02, 0.56), _disc(x, y, 0.3, -0.02, 0.56), _ellipse(x, y, 0, -0.3, 0.62, 0.64))
    return _join(body, _apple_detail(x, y))


def _apple_detail(x: Array, y: Array) -> Array:
    leaf = np.maximum(_disc(x, y, 0.14, 0.92, 0.36), _disc(x, y, 0.5, 0.6, 0.36))
    return _join(_line(x, y, [(0, 0.4), (0.05, 0.72)], 0.07), leaf)


def _rocket(x: Array, y: Array) -> Array:
    body = np.maximum(_disc(x, y, -0.78, 0, 1.14), _disc(x, y, 0.78, 0, 1.14))
    body = np.maximum(np.maximum(body, _disc(x, y, 0, 0.1, 0.88)), -(y + 0.62))
    fins = [
        _polygon(x, y, [(s * 0.22, -0.1), (s * 0.66, -0.55), (s * 0.66, -0.92), (s * 0.22, -0.62)], 0.02)
        for s in (-1, 1)
    ]
    return _join(body, *fins, _box(x, y, 0, -0.7, 0.16, 0.12))


def _cactus(x: Array, y: Array) -> Array:
    arms = [[(-0.6, 0.35), (-0.6, -0.02), (0, -0.12)], [(0.6, 0.55), (0.6, 0.18), (0, 0.05)]]
    return _join(_line(x, y, [(0, 0.74), (0, -0.8)], 0.22), *(_line(x, y, a, 0.16) for a in arms))


def _butterfly(x: Array, y: Array) -> Array:
    wings = []
    for s in (-1, 1):
        wings.append(
            _polygon(
                x, y, [(s * 0.08, 0.0), (s * 0.45, 0.68), (s * 0.78, 0.62), (s * 0.74, 0.15), (s * 0.3, -0.06)], 0.14
            )
        )
        wings.append(_disc(x, y, s * 0.42, -0.44, 0.36))
    return _join(*wings, _butterfly_detail(x, y))


def _butterfly_detail(x: Array, y: Array) -> Array:
    feelers = [_line(x, y, [(0, 0.5), (s * 0.2, 0.85)], 0.04) for s in (-1, 1)]
    return _join(_line(x, y, [(0, 0.45), (0, -0.55)], 0.1), *feelers)


def _bird(x: Array, y: Array) -> Array:
    body = _ellipse(x, y, -0.05, -0.12, 0.6, 0.42)
    beak = _polygon(x, y, [(0.72, 0.46), (0.98, 0.32), (0.7, 0.22)])
    tail = _polygon(x, y, [(-0.5, -0.06), (-0.97, 0.32), (-0.94, -0.12), (-0.5, -0.3)], 0.02)
    return _join(
        body,
        _disc(x, y, 0.48, 0.34, 0.32),
        beak,
        tail,
        *(_line(x, y, [(a, -0.5), (a, -0.86)], 0.06) for a in (-0.12, 0.16)),
    )


def _eye(cx: float, cy: float) -> Callable[[Array, Array], Array]:
    return lambda x, y: _disc(x, y, cx, cy, 0.1)


def _hat(x: Array, y: Array) -> Array:
    return _join(_box(x, y, 0, -0.5, 0.98, 0.16, 0.1), _box(x, y, 0, 0.15, 0.58, 0.6, 0.06))


def _eyes(x: Array, y: Array) -> Array:
    return _join(_disc(x, y, -0.48, 0, 0.44), _disc(x, y, 0.48, 0, 0.44))


def _pupils(x: Array, y: Array) -> Array:
    return _join(_disc(x, y, -0.42, -0.06, 0.22), _disc(x, y, 0.54, -0.06, 0.22))


DARK, CREAM, BROWN, ORANGE, GREEN, YELLOW = (
    (58, 54, 66), (250, 238, 214), (122, 84, 58), (255, 170, 60), (88, 150, 70), (250, 206, 84),
)  # fmt: skip


class Shape(NamedTuple):
    """An outline, perhaps a region of another colour, and where a letter fits (x, y, half size) or a hat sits."""

    outline: Callable[[Array, Array], Array]
    detail: Callable[[Array, Array], Array] | None = None
    detail_colour: tuple[int, int, int] = DARK
    middle: tuple[float, float, float] = (0.0, 0.0, 0.5)
    top: tuple[float, float] = (0.0, 0.95)


def _polygon_shape(points: list[tuple[float, float]], r: float = 0.0, **kwargs) -> Shape:
    return Shape(lambda x, y: _polygon(x, y, points, r), **kwargs)


_ARROW = [(0.95, 0), (0.22, 0.72), (0.22, 0.3), (-0.9, 0.3), (-0.9, -0.3), (0.22, -0.3), (0.22, -0.72)]

SHAPES: dict[str, Shape] = {
    "circle": Shape(lambda x, y: _disc(x, y, 0, 0, 0.92), middle=(0, 0, 0.6)),
    "square": Shape(lambda x, y: _box(x, y, 0, 0, 0.82, 0.82, 0.05), middle=(0, 0, 0.66), top=(0, 0.8)),
    "triangle": _polygon_shape([(-0.9, -0.72), (0.9, -0.72), (0, 0.88)], 0.03, middle=(0, -0.28, 0.42)),
    "hexagon": _polygon_shape(_around(6, 0.95, 0), middle=(0, 0, 0.58), top=(0, 0.8)),
    "diamond": _polygon_shape([(0, 0.97), (0.68, 0), (0, -0.97), (-0.68, 0)], middle=(0, 0, 0.4)),
    "star": _polygon_shape(_star_points(5, 0.42), middle=(0, 0, 0.38)),
    "heart": Shape(_heart, middle=(0, 0.1, 0.5), top=(0, 0.7)),
    "ring": Shape(lambda x, y: np.abs(_disc(x, y, 0, 0, 0.68)) - 0.25),
    "cross": Shape(lambda x, y: _join(_box(x, y, 0, 0, 0.95, 0.3), _box(x, y, 0, 0, 0.3, 0.95)), middle=(0, 0, 0.36)),
    "moon": Shape(lambda x, y: _cut(_disc(x, y, 0, 0, 0.93), _disc(x, y, 0.42, 0.12, 0.74)), top=(-0.1, 0.9)),
    "arrow": _polygon_shape(_ARROW, middle=(0, 0, 0.32), top=(-0.2, 0.3)),
    "house": Shape(_house, _house_detail, CREAM, middle=(0, 0.2, 0.36)),
    "tree": Shape(_tree, _tree_detail, BROWN, middle=(0, -0.1, 0.36)),
    "fish": Shape(_fish, _eye(0.62, 0.12), DARK, middle=(0.1, 0, 0.36), top=(0.3, 0.5)),
    "leaf": Shape(_leaf, _leaf_detail, GREEN, top=(0, 0.9)),
    "mushroom": Shape(_mushroom, _mushroom_detail, CREAM, middle=(0, 0.36, 0.4), top=(0, 0.88)),
    "cup": Shape(_cup, _cup_rim, CREAM, middle=(-0.1, -0.15, 0.4), top=(-0.1, 0.7)),
    "key": Shape(_key, top=(-0.55, 0.4)),
    "flower": Shape(_flower, lambda x, y: _disc(x, y, 0, 0, 0.27), YELLOW, middle=(0, 0, 0.3)),
    "cloud": Shape(_cloud, middle=(0, -0.05, 0.42), top=(-0.1, 0.62)),
    "boat": Shape(_boat, _boat_detail, BROWN, top=(0.05, 0.95)),
    "bolt": Shape(_bolt),
    "drop": Shape(_drop, middle=(0, -0.34, 0.42)),
    "umbrella": Shape(_umbrella, _umbrella_detail, DARK, top=(0, 0.9)),
    "candle": Shape(_candle, _wick, DARK, middle=(0, -0.4, 0.26), top=(0, 0.3)),
    "box": Shape(_crate, _crate_detail, CREAM, top=(0, 0.58)),
    "car": Shape(_car, _car_detail, DARK, top=(-0.1, 0.52)),
    "bell": Shape(_bell, middle=(0, -0.05, 0.42), top=(0, 0.92)),
    "crown": Shape(_crown, middle=(0, -0.35, 0.32), top=(0, 0.85)),
    "apple": Shape(_apple, _apple_detail, GREEN, middle=(0, -0.2, 0.45), top=(0, 0.6)),
    "rocket": Shape(_rocket, lambda x, y: _disc(x, y, 0, 0.28, 0.18), (190, 226, 240), top=(0, 0.95)),
    "cactus": Shape(_cactus, top=(0, 0.92)),
    "butterfly": Shape(_butterfly, _butterfly_detail, DARK, top=(0, 0.6)),
    "bird": Shape(_bird, _eye(0.54, 0.4), DARK, top=(0.48, 0.62)),
}  # fmt: skip

# A shape in another form or state has an outline of its own: (shape, form) -> Shape.
_FORMS: dict[tuple[str, str], Shape] = {
    ("star", "four-pointed"): _polygon_shape(_star_points(4, 0.34), middle=(0, 0, 0.34)),
    ("star", "six-pointed"): _polygon_shape(_star_points(6, 0.55), middle=(0, 0, 0.45)),
    ("star", "eight-pointed"): _polygon_shape(_star_points(8, 0.62), middle=(0, 0, 0.5)),
    ("cup", "full"): Shape(_cup, _cup_rim, (110, 66, 40), middle=(-0.1, -0.15, 0.4), top=(-0.1, 0.7)),
    ("umbrella", "closed"): Shape(_umbrella_closed, _umbrella_detail, DARK, top=(0, 0.95)),
    ("candle", "lit"): Shape(_candle_lit, _flame, ORANGE, middle=(0, -0.4, 0.26), top=(0, 0.3)),
    ("box", "open"): Shape(_crate_open, _crate_inside, DARK, top=(0, 0.5)),
}  # fmt: skip
_PARTS = {"hat": _hat, "eyes": _eyes, "pupils": _pupils}

# Letters and digits as strokes on a grid five wide and seven high: pairs of digits are x and y, "|" lifts the pen.
# I and O are left out: beside 1 and 0 nobody could tell.
_GLYPHS = {
    "A": "00 26 40|12 32", "B": "00 06 36 45 44 33 03|33 42 41 30 00", "C": "45 36 16 05 01 10 30 41",
    "D": "00 06 26 44 42 20 00", "E": "46 06 00 40|03 33", "F": "46 06 00|03 33", "G": "45 36 16 05 01 10 30 41 43 23",
    "H": "00 06|40 46|03 43", "J": "46 41 30 10 01", "K": "00 06|46 03 40", "L": "06 00 40", "M": "00 06 23 46 40",
    "N": "00 06 40 46", "P": "00 06 36 45 44 33 03", "Q": "16 36 45 41 30 10 01 05 16|22 40", 
    "R": "00 06 36 45 44 33 03|23 40",
        "S": "45 36 16 05 04 13 33 42 41 30 10 01", "T": "06 46|26 20", "U": "06 01 10 30 41 46", "V": "06 20 46",
    "W": "06 10 24 30 46", "X": "00 46|06 40", "Y": "06 23 46|23 20", "Z": "06 46 00 40",
    "0": "16 36 45 41 30 10 01 05 16|12 34", "1": "14 26 20|10 30", "2": "05 16 36 45 44 00 40",
    "3": "05 16 36 45 44 33 13|33 42 41 30 10 01", "4": "30 36 02 42", "5": "46 06 03 33 42 41 30 10 01",
    "6": "45 36 16 05 01 10 30 41 42 33 03", "7": "06 46 10", "8": "33 44 45 36 16 05 04 13 33 42 41 30 10 01 02 13",
    "9": "43 13 04 05 16 36 45 41 30 10 01",
}  # fmt: skip
LETTERS = tuple(c for c in _GLYPHS if c.isalpha())
DIGITS = tuple(c for c in _GLYPHS if c.isdigit())


def _glyph(name: str, x: Array, y: Array) -> Array:
    strokes = [[((int(p[0]) - 2) * 0.31, (int(p[1]) - 3) * 0.28) for p in s.split()] for s in _GLYPHS[name].split("|")]
    return _join(*(_line(x, y, s, 0.135) for s in strokes))


def _halves(outline: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """The shape snapped along a zigzag, its halves drawn apart."""

    def zigzag(px: Array, py: Array) -> Array:
        f = py * 1.6 + 0.3
        return (px - 0.16 * (4 * np.abs(f - np.floor(f) - 0.5) - 1) + 0.15 * py) * 0.8

    left = np.maximum(outline(x + 0.13, y + 0.05), zigzag(x + 0.13, y + 0.05))
    right = np.maximum(outline(x - 0.13, y - 0.05), -zigzag(x - 0.13, y - 0.05))
    return np.minimum(left, right)


def find(shape: str, form: str = "") -> Shape:
    """The drawing of a shape in a form ("six-pointed") or state ("open"); the plain one where nothing changes."""
    return _FORMS.get((shape, form)) or SHAPES[shape]


def _deepened(distance: Array, axis: Array) -> Array:
    """Joined parts know no depth greater than that within one part; measure it anew from points on the outline."""
    from scipy.spatial import cKDTree  # here, for it takes long to import and few need it

    points = []
    for d, swap in ((distance, False), (distance.T, True)):
        row, col = np.nonzero((d[:, 1:] < 0) != (d[:, :-1] < 0))
        a, b = d[row, col], d[row, col + 1]
        along = axis[col] + a / (a - b) / CELLS
        points.append(np.stack((axis[row], along) if swap else (along, axis[row]), axis=1))
    inside = np.argwhere(distance < 0)
    depth, _ = cKDTree(np.concatenate(points)).query(axis[inside[:, ::-1]])
    out = distance.copy()
    # the points are up to a cell apart, so this depth may be half a cell too large right at the outline
    out[tuple(inside.T)] = np.minimum(out[tuple(inside.T)], 0.5 / CELLS - depth)
    return out


@cache
def table(
    name: str, form: str = "", broken: bool = False, hole: bool = False, detail: bool = False, deep: bool = False
) -> Array | None:
    """Signed distances on the grid, flat float32 of GRID * GRID, row 0 at y = -REACH; None for a missing detail.

    ``name`` is a shape, a part ("hat", "eyes", "pupils") or a letter or digit. ``deep`` makes the distances exact far
    inside too, as a hollow shape needs them.
    """
    axis = (np.arange(GRID) / CELLS - REACH).astype(np.float64)
    x, y = np.broadcast_to(axis[None, :], (GRID, GRID)), np.broadcast_to(axis[:, None], (GRID, GRID))
    if name in _GLYPHS:
        distance = _glyph(name, x, y)
    elif name in _PARTS:
        distance = _PARTS[name](x, y)
    else:
        shape = find(name, form)
        drawing = shape.detail if detail else shape.outline
        if drawing is None:
            return None
        distance = _halves(drawing, x, y) if broken else drawing(x, y)
        if hole:
            mx, my, _ = shape.middle
            distance = np.maximum(distance, 0.3 - np.sqrt((x - mx) ** 2 + (y - my) ** 2))
    if deep:
        distance = _deepened(distance, axis)
    return np.ascontiguousarray(distance, dtype=np.float32).reshape(-1)
