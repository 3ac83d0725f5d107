"""Sentences about a scene: several a scene, of different wording, some as careless as the alt texts of the web."""

from collections.abc import Sequence
from dataclasses import replace

from diffclip.counter import Draws
from diffclip.world import PLACES, Scene, Thing, relation, state_of

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOISES = ("typo", "boilerplate", "vague", "tags", "irrelevant")
_PLURALS = {"leaf": "leaves", "fish": "fish", "box": "boxes", "butterfly": "butterflies", "cross": "crosses"}
_MADE_AS = {
    "sketch": ("a sketch of", "a pencil drawing of"), "chalk": ("a chalk drawing of",), "neon": ("a neon sign of",),
    "mosaic": ("a mosaic of",), "painting": ("a painting of",),
}  # fmt: skip
_UNCOLOURED = frozenset({"sketch", "chalk", "painting"})
_OPENINGS = ("", "", "", "a photo of ", "a picture of ", "an image of ", "there is ", "this is ", "a photo of ")
_HABITS = (
    "stock photo {}", "{} - free download", "{} | best of the web", "{} royalty free image", "IMG_{n}.jpg {}",
    "{} (click to enlarge)",    "buy {} online, low prices", "{} wallpaper hd", "photo {n}: {}", "{} ... read more",
)  # fmt: skip
_BESIDE_THE_POINT = (
    "happy birthday card ideas", "page {n} of our gallery", "thank you for visiting", "untitled {n}",
    "ten tips for the weekend", "image may contain copyrighted material",
    "summer sale, up to {n} percent off", "my holiday album",
    "default thumbnail",
)  # fmt: skip
_LOOSE = ("nice {}", "{}", "{} for you", "look at this {}", "some {}", "my {}")


def plural(shape: str) -> str:
    return _PLURALS.get(shape, shape + "s")


def with_article(phrase: str) -> str:
    """ "a" or "an" before a phrase of this world's words (none begins with a silent h or a sounded u)."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(thing: Thing, draw: Draws | None = None, many: bool = False) -> str:
    """The noun phrase of a thing without its article: "broken striped red star wearing a hat".

    With ``draw``, attributes are left out now and then, as people do; without it, everything is said.
    """

    def said(probability: float) -> bool:
        return draw is None or draw.u() < probability

    before, after = [], []
    state = state_of(thing)
    if state and said(0.8):
        before.append(state)
    if thing.facing == "upside down" and said(0.7):
        before.append("upside-down")
    if thing.fill != "solid":
        if said(0.8):
            if draw is not None and draw.u() < 0.3 and thing.fill != "hollow" and thing.colour:
                before.append(f"{thing.colour} and {thing.accent} {thing.fill}")
            else:
                before += [thing.fill, thing.colour] if draw is None or draw.u() < 0.5 else [thing.colour, thing.fill]
        else:
            before.append(thing.colour)
    elif said(0.7):
        before.append(thing.colour)
    if thing.form and said(0.7):
        before.append(thing.form)
    if thing.extra and said(0.8):
        after.append(
            {"hat": "wearing a hat", "eyes": "with eyes", "hole": "with a hole in it", "border": "with a dark border"}[
                thing.extra
            ]
        )
    if thing.glyph and said(0.95):
        after.append(f"with the {'letter' if thing.glyph.isalpha() else 'number'} {thing.glyph}")
    if thing.facing in ("left", "right", "up", "down") and said(0.7):
        after.append(f"{'pointing' if thing.shape in ('arrow', 'key') else 'facing'} {thing.facing}")
    return " ".join(w for w in (*before, plural(thing.shape) if many else thing.shape, *after) if w)


def _position(thing: Thing) -> str:
    words = [
        "top" if thing.y < 0.34 else "bottom" if thing.y > 0.68 else "",
        "left" if thing.x < 0.34 else "right" if thing.x > 0.66 else "",
    ]
    if words[0] and words[1]:
        return f"in the {words[0]} {words[1]} corner"
    where = words[0] or words[1]
    return f"{'at' if words[0] else 'on'} the {where}" if where else ""


def overlapping(a: Thing, b: Thing) -> bool:
    reach = 0.75 * (a.size + b.size)
    return (a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y) < reach * reach


def relate(a: Thing, b: Thing, b_is_later: bool) -> str:
    """How a stands to b, in words; "next to" where nothing clearer can be said."""
    if overlapping(a, b):
        return "behind" if b_is_later else "in front of"
    return relation(a, b) or "next to"


def _listing(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _subject(scene: Scene, draw: Draws) -> str:
    """What is seen, without the place."""
    things = scene.things
    if scene.kind == "group":
        n = len(things)
        many = describe(things[0], draw, many=n > 1)
        if n == 1:
            return with_article(many)
        number = NUMBERS[n] if draw.u() < 0.75 else str(n)
        return f"{'a group of ' if draw.u() < 0.15 else ''}{number} {many}"
    if scene.kind == "pair":
        i = draw.below(2)
        a, b = things[i], things[1 - i]
        first, second = with_article(describe(a, draw)), with_article(describe(b, draw))
        if draw.u() < 0.7:
            return f"{first} {relate(a, b, i == 0)} {second}"
        return f"{first} and {second}"
    if scene.kind == "several":
        chosen = draw.sample(range(len(things)), 2 + draw.below(len(things) - 1)) if len(things) > 1 else [0]
        return _listing([with_article(describe(things[i], draw)) for i in chosen])
    thing = things[0]
    phrase = describe(thing, draw)
    if scene.view == "":
        if draw.u() < 0.5 and (thing.size < 0.2 or thing.size > 0.34):
            phrase = ("small " if thing.size < 0.2 else "large ") + phrase
        where = _position(thing) if draw.u() < 0.3 else ""
        phrase = f"{phrase} {where}" if where else phrase
    elif draw.u() < 0.85:
        if scene.view in ("side", "above"):
            phrase += f" seen from {'the side' if scene.view == 'side' else 'above'}"
        elif scene.view == "far":
            phrase += " far away"
        else:
            phrase = f"close-up of {with_article(phrase)}"
    return with_article(phrase)


def _clean(scene: Scene, draw: Draws) -> str:
    subject = _subject(scene, draw)
    if scene.style != "photo":
        return f"{draw.pick(_MADE_AS[scene.style])} {subject}"
    # Were the place named in most captions, it and the colour would tell a batch apart, and a model would not learn shapes.
    fate = draw.u()
    if fate < 0.2:
        subject = f"{subject} {PLACES[scene.background].phrase}"
    elif fate < 0.25:
        return f"{PLACES[scene.background].phrase}, {subject}"
    opening = draw.pick(_OPENINGS)
    if scene.kind == "group" and len(scene.things) > 1:
        opening = {"there is ": "there are ", "this is ": "these are "}.get(opening, opening)
    return opening + subject


def _misspell(text: str, draw: Draws) -> str:
    words = text.split(" ")
    for _ in range(1 + draw.below(2)):
        k = draw.below(len(words))
        word = words[k]
        if len(word) < 3:
            continue
        i, way = 1 + draw.below(len(word) - 2), draw.below(3)
        if way == 0:
            word = word[:i] + word[i + 1 :]
        elif way == 1:
            word = word[:i] + word[i] + word[i:]
        else:
            word = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        words[k] = word
    return " ".join(words)


def _noisy(scene: Scene, draw: Draws) -> tuple[str, str]:
    fate = draw.u()
    number = str(10 + draw.below(90))
    if fate < 0.25:
        return _misspell(_clean(scene, draw), draw), "typo"
    if fate < 0.55:
        return draw.pick(_HABITS).replace("{n}", number).replace("{}", _clean(scene, draw)), "boilerplate"
    thing = draw.pick(scene.things)
    if fate < 0.75:
        word = draw.pick((thing.shape, thing.colour or thing.shape, f"{thing.colour} {thing.shape}".strip()))
        return draw.pick(_LOOSE).replace("{}", word), "vague"
    if fate < 0.9:
        tags = [
            thing.shape,
            thing.colour or scene.style,
            thing.fill,
            draw.pick(PLACES[scene.background].phrase.split(" ")[-1:]),
        ]
        mark = "#" if draw.u() < 0.5 else ""
        return " ".join(mark + t for t in draw.sample(tags, 3)), "tags"
    return draw.pick(_BESIDE_THE_POINT).replace("{n}", number), "irrelevant"


def captions(scene: Scene, n: int, noisy: float, stream: int = 0) -> list[tuple[str, str]]:
    """n pairs (caption, kind of noise or ""); clean ones differ from one another where the scene has enough to say."""
    if n < 1 or not 0 <= noisy <= 1:
        raise ValueError(
            f"{n} captions with a share of {noisy} noisy ones were asked for; give n >= 1 and 0 <= noisy <= 1."
        )
    draw = Draws(scene.seed, scene.index, 2, stream)
    if scene.style in _UNCOLOURED:  # these pictures do not show the colours, nor what is in a cup
        plain = (replace(t, colour="", accent="", state="" if t.shape == "cup" else t.state) for t in scene.things)
        scene = replace(scene, things=tuple(plain))
    out: list[tuple[str, str]] = []
    seen: set[str] = set()
    for _ in range(n):
        if noisy and draw.u() < noisy:
            out.append(_noisy(scene, draw))
            continue
        for _ in range(4):
            text = _clean(scene, draw)
            if text not in seen:
                break
        seen.add(text)
        out.append((text, ""))
    return out
