"""From a scene to pixels: backgrounds, then things one over the other, each inside its own small box.

Everything is float32 in [0, 255], channels first, and kept to elementwise +, -, *, /, sqrt, floor, min, max, which give
the same bits on every machine. No sum over pixels, no sine of an array.
"""

import math
from functools import lru_cache

import numpy as np

from diffclip import shapes
from diffclip.counter import Draws
from diffclip.world import COLOURS, Scene, Thing

Array = np.ndarray
F = np.float32


def _rgb(*colour: float) -> Array:
    return np.array(colour, F).reshape(3, 1, 1)


_INK = {name: _rgb(*value) for name, value in COLOURS.items()}
_PAPER, _BOARD, _NIGHT, _PENCIL, _LEAD = (
    _rgb(247, 244, 236),
    _rgb(52, 78, 70),
    _rgb(18, 16, 34),
    _rgb(60, 60, 66),
    _rgb(150, 150, 152),
)


# ----------------------------------------------------------------------------------- fields shared by all scenes
class _Canvas:
    """What a picture size needs again and again: coordinates, the vignette, fields of smooth noise."""

    def __init__(self, size: int):
        self.size = size
        axis = ((np.arange(size) + 0.5) / size).astype(F)
        self.x, self.y = axis[None, :], axis[:, None]
        r2 = (self.x - F(0.5)) ** 2 + (self.y - F(0.5)) ** 2
        self.vignette = F(1.04) - F(0.28) * r2
        self.steps = np.arange(-2 * size, 3 * size, dtype=F) + F(0.5)
        self._noise = [*(_noise_field(size, cells, n) for n, cells in enumerate(_NOISES)), _dots_field(size)]

    def noise(self, which: int, look: tuple[float, ...], flip: bool = False) -> Array:
        """A view [size, size] into a field of noise in [-1, 1]; where, is up to the look."""
        oy, ox = int(look[1] * self.size), int(look[2] * self.size)
        view = self._noise[which][oy : oy + self.size, ox : ox + self.size]
        return view[:, ::-1] if flip else view


# cells across two image sides (rows, columns): clouds, patches, grain, wood (long along x)
_NOISES = ((7, 5), (17, 17), (56, 56), (90, 6))
_GRAIN, _PATCH, _CLOUD, _WOOD, _DOTS = 2, 1, 0, 3, 4


def _noise_field(size: int, cells: tuple[int, int], key: int) -> Array:
    """Value noise over two image sides, the same function at every size."""
    lattice = Draws(77, key).array((cells[0] + 2) * (cells[1] + 2)).reshape(cells[0] + 2, cells[1] + 2) * 2 - 1
    parts = []
    for n in cells:
        t = (np.arange(2 * size) + 0.5) / (2 * size) * n
        i = np.floor(t).astype(int)
        f = t - i
        parts.append((i, f * f * (3 - 2 * f)))
    (iy, fy), (ix, fx) = parts
    fy, fx = fy[:, None], fx[None, :]
    top = lattice[np.ix_(iy, ix)] * (1 - fx) + lattice[np.ix_(iy, ix + 1)] * fx
    low = lattice[np.ix_(iy + 1, ix)] * (1 - fx) + lattice[np.ix_(iy + 1, ix + 1)] * fx
    return (top * (1 - fy) + low * fy).astype(F)


def _dots_field(size: int) -> Array:
    """Small soft dots over two image sides, for stars and snowflakes; a dot is never smaller than a pixel."""
    draw = Draws(77, 99)
    axis = (np.arange(2 * size) + 0.5) / size
    field = np.zeros((2 * size, 2 * size))
    for _ in range(190):
        x, y, radius, light = 2 * draw.u(), 2 * draw.u(), draw.between(0.006, 0.018), draw.between(0.45, 1)
        distance = np.sqrt((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2)
        field = np.maximum(field, light * np.clip((radius - distance) / max(radius * 0.6, 1 / size) + 0.5, 0, 1))
    return field.astype(F)


@lru_cache(maxsize=8)
def _canvas(size: int) -> _Canvas:
    return _Canvas(size)


def _wave(t: Array) -> Array:
    """Smooth, period 1, in [-1, 1]; a stand-in for the sine out of plain arithmetic."""
    f = np.abs(t - np.floor(t) - F(0.5)) * F(4) - F(1)
    return f * (F(1.5) - F(0.5) * f * f)


def _triangle(t: Array) -> Array:
    return np.abs(t - np.floor(t) - F(0.5)) * F(2)


# --------------------------------------------------------------------------------------------------- backgrounds
def _land(c: _Canvas, look, top, bottom, skyline: float | Array, noise: int, sky_noise: float, amount: float) -> Array:
    """Sky over ground: each a vertical gradient (two colours), met at a skyline; noise on both."""
    horizon = F(look[0] * 0.16 + 0.44)
    edge = horizon + skyline + F(0) * c.x  # [1, size], also where the skyline is flat
    y = c.y
    sky = top[0] + (top[1] - top[0]) * np.minimum(y / horizon, F(1))
    low = np.minimum(np.maximum((y - horizon) / (F(1) - horizon), F(0)), F(1))
    ground = bottom[0] + (bottom[1] - bottom[0]) * low
    share = np.minimum(np.maximum((y - edge) * F(c.size) + F(0.5), F(0)), F(1))
    n = c.noise(noise, look)
    if sky_noise:
        clouds = c.noise(_CLOUD, look) * F(sky_noise)
        clouds = clouds + share * (n * F(amount) - clouds)
    else:
        clouds = (share * F(amount)) * n
    out = share * (ground - sky)
    out += sky
    out += clouds
    return out


def _meadow(c, look):
    hills = _wave(c.x * F(0.9) + F(look[3])) * F(0.035)
    return _land(c, look, _SKY, (_rgb(150, 196, 104), _rgb(86, 150, 76)), hills, _GRAIN, 13, 14)


def _mountains(c, look):
    ridge = _triangle(c.x * F(1.7) + F(look[3])) * F(-0.26) + _triangle(c.x * F(4.1) + F(look[2])) * F(-0.07) + F(0.12)
    return _land(
        c,
        look,
        (_rgb(168, 200, 222), _rgb(236, 232, 226)),
        (_rgb(122, 138, 160), _rgb(84, 112, 108)),
        ridge,
        _PATCH,
        6,
        10,
    )


def _desert(c, look):
    dunes = _wave(c.x * F(1.3) + F(look[3])) * F(0.05)
    return _land(
        c,
        look,
        (_rgb(150, 204, 226), _rgb(250, 234, 204)),
        (_rgb(240, 206, 146), _rgb(222, 170, 104)),
        dunes,
        _WOOD,
        4,
        10,
    )


def _sea(c, look):
    return _land(c, look, _SKY, (_rgb(86, 160, 190), _rgb(34, 92, 146)), F(0), _WOOD, 12, 16)


def _sunset(c, look):
    top, bottom = (_rgb(112, 92, 150), _rgb(255, 190, 124)), (_rgb(206, 124, 116), _rgb(78, 58, 98))
    return _land(c, look, top, bottom, F(0.12), _WOOD, 10, 9)


def _snow(c, look):
    drifts = _wave(c.x * F(0.7) + F(look[3])) * F(0.05)
    out = _land(
        c,
        look,
        (_rgb(158, 178, 202), _rgb(206, 216, 228)),
        (_rgb(252, 253, 255), _rgb(214, 226, 240)),
        drifts,
        _PATCH,
        5,
        4,
    )
    out += c.noise(_DOTS, look) * F(60)
    return out


def _city(c, look):
    blocks = c.x * F(7.3) + F(look[3])
    i = np.floor(blocks)
    tall = i * F(0.618) + F(look[2])
    tall = (tall - np.floor(tall)) * F(-0.34) + F(0.05)
    out = _land(
        c,
        look,
        (_rgb(178, 200, 222), _rgb(246, 226, 212)),
        (_rgb(112, 118, 142), _rgb(86, 90, 112)),
        tall,
        _GRAIN,
        6,
        5,
    )
    lit = (
        (_triangle(c.x * F(29.2) + F(look[3] * 4)) > F(0.55))
        & (_triangle(c.y * F(19)) > F(0.55))
        & (c.y > F(0.44 + look[0] * 0.16) + tall)
    )
    out += lit * _rgb(56, 48, 14)
    return out


def _forest(c, look):
    trunks = _wave(c.x * F(3.1) + F(look[3])) * F(0.6) + _wave(c.x * F(7.7) + F(look[2])) * F(0.4)
    out = _rgb(70, 108, 74) + _rgb(60, 70, 44) * (F(1) - c.y)
    out = out + np.maximum(trunks * F(6) - F(2.4), F(0)).clip(0, 1) * _rgb(-42, -52, -44) * (F(1.1) - F(0.5) * c.y)
    out += c.noise(_PATCH, look) * F(16)
    return out


def _bricks(c, look):
    rows = c.y * F(9) + F(look[3])
    i = np.floor(rows)
    fx = c.x * F(4.5) + F(look[2]) + i * F(0.5)
    fx = fx - np.floor(fx)
    fy = rows - i
    joint = np.minimum(np.minimum(fx, F(1) - fx) * F(2), np.minimum(fy, F(1) - fy))
    share = np.minimum(np.maximum((joint - F(0.05)) * F(c.size / 9) + F(0.3), F(0)), F(1))
    out = share * (_rgb(186, 106, 86) - _rgb(216, 204, 190))
    out += _rgb(216, 204, 190)
    out += c.noise(_GRAIN, look) * F(12)
    return out


def _planks(c, look):
    rows = c.y * F(4.6) + F(look[3])
    i = np.floor(rows)
    gap = np.minimum(np.abs(rows - i - F(0.5)) * F(-14) + F(7), F(1)) * F(0.35) + F(0.65)
    tone = i * F(0.618)
    tone = (tone - np.floor(tone)) * F(26) - F(13)
    out = (_rgb(196, 148, 100) + tone) * gap + c.noise(_WOOD, look) * F(16)
    return out


def _graph(c, look):
    def lines(t):
        t = t * F(8) + F(look[3])
        distance = np.abs(t - np.floor(t) - F(0.5)) * F(c.size / 8)  # pixels
        return np.minimum(np.maximum(F(0.5 + 0.0035 * c.size) - distance, F(0)), F(0.9))

    return _rgb(246, 248, 250) - np.maximum(lines(c.x), lines(c.y)) * _rgb(70, 42, 16)


def _tiles(c, look):
    n = F(3 + int(look[3] * 3))
    px = np.clip((_triangle(c.x * n + F(look[2])) - F(0.5)) * F(c.size) / n, -1, 1)
    py = np.clip((_triangle(c.y * n + F(look[1])) - F(0.5)) * F(c.size) / n, -1, 1)
    out = (px * py * F(0.5) + F(0.5)) * _rgb(62, 34, 36)
    out += _rgb(178, 208, 206)
    out += c.noise(_PATCH, look) * F(4)
    return out


def _curtain(c, look):
    folds = _wave(c.x * F(4 + 3 * look[3]) + F(look[2])) * F(0.75) + _wave(c.x * F(9.3)) * F(0.25)
    out = (_rgb(150, 58, 82) + folds * _rgb(38, 20, 26)) * (F(1.08) - F(0.22) * c.y)
    return out + c.noise(_GRAIN, look) * F(4)


def _wall(c, look):
    tint = _WALLS[int(look[3] * len(_WALLS))]
    out = tint * (F(1.04) - F(0.16) * c.y - F(0.1 * look[2]) * c.x)
    out += c.noise(_CLOUD, look) * F(5)
    return out


def _night(c, look):
    out = _rgb(26, 30, 72) + c.y * _rgb(38, 30, 52) + c.noise(_CLOUD, look) * _rgb(10, 6, 16)
    out += c.noise(_DOTS, look) * F(230)
    return out


def _water(c, look):
    rays = np.maximum(_wave(c.x * F(1.9) + c.y * F(0.7) + F(look[3])), F(0)) * (F(1) - c.y)
    out = _rgb(96, 182, 204) - c.y * _rgb(70, 98, 74)
    out = out + rays * F(34)
    out += c.noise(_PATCH, look) * F(7)
    return out


_SKY = (_rgb(130, 188, 232), _rgb(222, 238, 246))
_WALLS = [
    _rgb(*t)
    for t in ((242, 232, 214), (214, 228, 238), (238, 218, 220), (218, 232, 214), (228, 222, 240), (232, 232, 230))
]
_BACKGROUNDS = {
    "meadow": _meadow, "mountains": _mountains, "desert": _desert, "sea": _sea, "sunset": _sunset,
    "night sky": _night, "snow": _snow, "city": _city, "forest": _forest, "brick wall": _bricks,
    "wooden table": _planks, "graph paper": _graph, "tiled floor": _tiles, "curtain": _curtain,
    "plain wall": _wall, "water": _water,
}  # fmt: skip


def _background(scene: Scene, c: _Canvas) -> Array:
    flat = {"sketch": _PAPER, "chalk": _BOARD, "neon": _NIGHT}.get(scene.style)
    if flat is not None:
        return flat + c.noise(_PATCH, scene.look) * F(4)
    out = _BACKGROUNDS[scene.background](c, scene.look)
    out *= c.vignette
    return out


# -------------------------------------------------------------------------------------------------------- things
_TURN = {"": 0, "right": 0, "left": 0, "down": 90, "up": -90, "upside down": 180}


class _Frame:
    """The box of pixels around a thing, and where each of them lies on the grid of the distance tables."""

    def __init__(
        self, c: _Canvas, x: float, y: float, half: float, angle: float, mirrored: bool, sx: float, sy: float, pad: int
    ):
        size = c.size
        turn = math.radians(angle)
        # rounded, so that a last-digit difference between mathematics libraries cannot reach a pixel
        cos, sin = round(math.cos(turn), 9), round(math.sin(turn), 9)
        reach = half * (abs(cos) + abs(sin)) * 0.98
        rx, ry = reach * sx * size + pad, reach * sy * size + pad
        cx, cy = x * size, y * size
        self.x0, self.x1 = max(int(cx - rx), 0), min(int(cx + rx) + 2, size)
        self.y0, self.y1 = max(int(cy - ry), 0), min(int(cy + ry) + 2, size)
        self.empty = self.x0 >= self.x1 or self.y0 >= self.y1
        if self.empty:
            return
        self.radius = half * size * min(sx, sy)  # pixels in a unit, where it is tightest
        px = (c.steps[2 * size + self.x0 : 2 * size + self.x1] - F(cx)) * F(1 / (half * size * sx))
        py = (c.steps[2 * size + self.y0 : 2 * size + self.y1] - F(cy)) * F(1 / (half * size * sy))
        flip = -1 if mirrored else 1
        self.u = (px * F(cos * flip))[None, :] + (py * F(sin * flip))[:, None]
        self.v = (px * F(sin))[None, :] - (py * F(cos))[:, None]
        self._index()

    def _index(self) -> None:
        top = F(shapes.GRID - 1.01)
        gx = np.minimum(np.maximum((self.u + F(shapes.REACH)) * F(shapes.CELLS), F(0)), top)
        gy = np.minimum(np.maximum((self.v + F(shapes.REACH)) * F(shapes.CELLS), F(0)), top)
        ix, iy = gx.astype(np.int32), gy.astype(np.int32)
        self.fx, self.fy = gx - ix, gy - iy
        self.at = iy * np.int32(shapes.GRID) + ix

    def distance(self, table: Array) -> Array:
        """Signed distance in pixels, interpolated between the four neighbours in the table."""
        at, fx = self.at, self.fx
        low, high = table.take(at), table.take(at + shapes.GRID)
        low += fx * (table.take(at + 1) - low)
        high += fx * (table.take(at + (shapes.GRID + 1)) - high)
        high -= low
        high *= self.fy
        low += high
        low *= F(self.radius)
        return low

    def part(self, cx: float, cy: float, half: float) -> "_Frame":
        """The frame of something fixed to the thing, in the thing's own coordinates."""
        out = object.__new__(_Frame)
        out.x0, out.x1, out.y0, out.y1 = self.x0, self.x1, self.y0, self.y1
        out.radius = self.radius * half
        out.u, out.v = (self.u - F(cx)) * F(1 / half), (self.v - F(cy)) * F(1 / half)
        out._index()
        return out


def _cover(distance: Array) -> Array:
    """The share of a pixel that is inside, from the distance of its centre in pixels."""
    return np.minimum(np.maximum(F(0.5) - distance, F(0)), F(1))


def _pattern(fill: str, frame: _Frame, period: float) -> Array:
    """Where the second colour of a fill goes, in [0, 1]."""
    p, r = F(period), frame.radius * period
    if fill == "striped":
        return _cover((_triangle(frame.v / p) - F(0.5)) * F(r / 2))
    if fill == "zigzag":
        bent = (frame.v + _triangle(frame.u * F(1 / (period * 1.2))) * F(0.62 * period)) * F(1 / period)
        return _cover((_triangle(bent) - F(0.5)) * F(r / 2.6))
    if fill == "checked":
        a = _cover((_triangle(frame.u * F(0.62 / period)) - F(0.5)) * F(r / 1.24))
        b = _cover((_triangle(frame.v * F(0.62 / period)) - F(0.5)) * F(r / 1.24))
        return a + b - F(2) * a * b
    a, b = frame.u / p, frame.v / p  # dotted
    a = a - np.floor(a) - F(0.5)
    b = b - np.floor(b) - F(0.5)
    return _cover((np.sqrt(a * a + b * b) - F(0.3)) * F(r))


def _lay(box: Array, colour: Array, alpha: Array) -> None:
    """Paint colour over box where alpha says."""
    box += alpha * (colour - box)


def _paint_thing(image: Array, scene: Scene, thing: Thing, c: _Canvas) -> tuple[_Frame, Array] | None:
    """Paint one thing; returns its frame and how much of each pixel it covers."""
    photo = scene.style in ("photo", "mosaic", "painting")
    sx, sy = {"side": (0.5, 1.0), "above": (1.0, 0.5)}.get(scene.view, (1.0, 1.0))
    shift = max(1, int(c.size * 0.022 + 0.5))  # of the shadow
    depth = max(1, int(c.size * thing.size * 0.3 + 0.5)) if (sx, sy) != (1.0, 1.0) else 0
    half = thing.size * (1.35 if thing.extra == "hat" else 1.0)
    # the box of a thing with a hat is larger: the coordinates are rescaled below
    angle = thing.tilt + _TURN[thing.facing]
    frame = _Frame(c, thing.x, thing.y, half, angle, thing.facing == "left", sx, sy, 2 + 2 * shift + depth)
    if frame.empty:
        return None
    if half != thing.size:
        frame = frame.part(0, 0, thing.size / half)
    drawing = shapes.find(thing.shape, thing.form or thing.state)
    hollow = thing.fill == "hollow"
    form, hole = thing.form or thing.state, thing.extra == "hole"
    outline = frame.distance(shapes.table(thing.shape, form, thing.broken, hole, deep=hollow))
    box = image[:, frame.y0 : frame.y1, frame.x0 : frame.x1]

    stroke = F(max(0.17 * frame.radius, 1.3))
    body = np.abs(outline + stroke * F(0.5)) - stroke * F(0.5) if hollow else outline
    alpha = _cover(body)
    ink, accent = _INK[thing.colour], _INK[thing.accent]
    if photo:
        if depth:  # seen at an angle: a darker side, towards the right or below
            dy, dx = (0, 1) if scene.view == "side" else (1, 0)
            for k in range(depth, 0, -1):
                _shifted(image, frame, alpha, k * dy, k * dx, ink * F(0.55))
        shade = _cover(body * F(0.5) - F(0.4)) * F(0.3)
        _shifted(
            image,
            frame,
            shade,
            shift + depth * (scene.view == "above"),
            shift + depth * (scene.view == "side"),
            _SHADOW,
        )
        light = F(1.06 + 0.05 * thing.shade) - (c.y[frame.y0 : frame.y1] - F(thing.y)) * F(
            0.1 / thing.size
        )  # from above
    else:
        ink, accent, light = _stylised(scene.style, ink, accent)

    colour = ink
    if thing.fill not in ("solid", "hollow"):
        period = max(0.46, 0.095 / thing.size)
        colour = ink + _pattern(thing.fill, frame, period) * (accent - ink)
    if light is not None:
        # darker towards the outline: reads as volume, and keeps a thing apart from a background of its own colour
        rim = np.minimum(np.maximum((outline + F(1.6)) * F(0.3), F(0)), F(0.45))
        colour = colour * (light - rim * F(0.75))
    if drawing.detail is not None and (thing.state or not hollow):
        inner = _cover(frame.distance(shapes.table(thing.shape, form, thing.broken, hole, detail=True)))
        tint = _rgb(*drawing.detail_colour) if photo else accent
        colour = colour + inner * (tint - colour)
        if hollow:  # whether a cup is full shows even then
            alpha = np.maximum(alpha, inner)
    if not photo or thing.extra == "border":
        width = F(max(0.1 * frame.radius, 1.0) if thing.extra == "border" else max(0.05 * frame.radius, 0.8))
        line = {"sketch": _PENCIL, "chalk": _PAPER, "neon": accent}.get(scene.style, _BORDER)
        colour = colour + _cover(-outline - width) * (line - colour)
    _lay(box, colour, alpha)
    if thing.extra in ("hat", "eyes") or thing.glyph:
        alpha = np.maximum(alpha, _extras(box, frame, scene, thing, drawing, alpha))
    return frame, alpha


_SHADOW, _BORDER = _rgb(24, 22, 40), _rgb(36, 32, 44)


def _stylised(style: str, ink: Array, accent: Array) -> tuple[Array, Array, None]:
    """Sketches and chalk have no colour, neon glows on black."""
    if style == "sketch":
        return _PAPER, _LEAD, None
    if style == "chalk":
        return _BOARD, _rgb(196, 206, 198), None
    return ink * F(0.22), np.minimum(np.maximum(ink, F(84)) * F(1.15), F(255)), None


def _shifted(image: Array, frame: _Frame, alpha: Array, dy: int, dx: int, colour: Array) -> None:
    """Lay a flat colour in the form of alpha, moved by whole pixels, clipped to the picture."""
    size = image.shape[1]
    y1, x1 = min(frame.y1 + dy, size), min(frame.x1 + dx, size)
    if y1 > frame.y0 + dy and x1 > frame.x0 + dx:
        box = image[:, frame.y0 + dy : y1, frame.x0 + dx : x1]
        _lay(box, colour, alpha[: box.shape[1], : box.shape[2]])


def _extras(box: Array, frame: _Frame, scene: Scene, thing: Thing, drawing: shapes.Shape, alpha: Array) -> Array:
    """A hat, eyes or a letter; returns the cover of what was added."""
    photo = scene.style in ("photo", "mosaic", "painting")
    added = F(0)
    dark, light = (_BORDER, _PAPER) if photo else ((_PENCIL, _PAPER) if scene.style == "sketch" else (_PAPER, _BOARD))
    mx, my, room = drawing.middle
    if thing.extra == "hat":
        hat = frame.part(drawing.top[0], drawing.top[1] + 0.18, 0.46)
        added = _cover(hat.distance(shapes.table("hat")))
        band = _cover((np.abs(hat.v + F(0.2)) - F(0.14)) * F(hat.radius))
        hue = _BORDER if thing.colour != "black" else _INK["brown"]
        _lay(box, hue + band * (_INK["red" if thing.colour != "red" else "yellow"] - hue) if photo else dark, added)
    elif thing.extra == "eyes":
        eyes = frame.part(mx, my + 0.1, 0.42)
        added = _cover(eyes.distance(shapes.table("eyes")))
        _lay(box, light, added)
        _lay(box, dark, _cover(eyes.distance(shapes.table("pupils"))))
    if thing.glyph:
        mark = frame.part(mx, my, max(room, 0.3) * 0.95)
        cover = _cover(mark.distance(shapes.table(thing.glyph)))
        bright = thing.colour in ("yellow", "white", "orange", "pink", "grey")
        _lay(box, dark if bright or not photo else light, cover)
        added = np.maximum(added, cover)
    return added


# ------------------------------------------------------------------------------------------------------ the whole
def _finish(image: Array, scene: Scene, c: _Canvas) -> Array:
    out = np.minimum(np.maximum(image, F(0), out=image), F(255), out=image)
    if scene.style == "painting":  # few tones, turned hues, the grain of a canvas
        out = np.floor(out * F(1 / 51) + F(0.5)) * F(51) * F(0.86) + F(18)
        out = out[[1, 2, 0]] + c.noise(_GRAIN, scene.look) * F(10) + c.noise(_WOOD, scene.look) * F(8)
        out = np.minimum(np.maximum(out, F(0)), F(255))
    pixels = np.ascontiguousarray((out + F(0.5)).astype(np.uint8).transpose(1, 2, 0))
    if scene.style == "mosaic":
        k = max(2, c.size // 24)
        n = -(-c.size // k)
        pixels = pixels[np.minimum(np.arange(n) * k + k // 2, c.size - 1)][
            :, np.minimum(np.arange(n) * k + k // 2, c.size - 1)
        ]
        pixels = pixels.repeat(k, 0).repeat(k, 1)[: c.size, : c.size]
    return np.ascontiguousarray(pixels)


def paint(scene: Scene, size: int, masks: bool = False) -> tuple[Array, Array | None]:
    """The picture, uint8 [size, size, 3], and on request each thing's visible pixels, bool [n_things, size, size]."""
    if not 8 <= size <= 2048:
        raise ValueError(f"A picture of {size} px was asked for; the world paints squares from 8 to 2048 px a side.")
    c = _canvas(size)
    image = _background(scene, c)
    visible = np.zeros((len(scene.things), size, size), bool) if masks else None
    for i, thing in enumerate(scene.things):
        painted = _paint_thing(image, scene, thing, c)
        if masks and painted is not None:
            frame, alpha = painted
            inside = alpha >= F(0.5)
            visible[:i, frame.y0 : frame.y1, frame.x0 : frame.x1] &= ~inside
            visible[i, frame.y0 : frame.y1, frame.x0 : frame.x1] = inside
    return _finish(image, scene, c), visible
