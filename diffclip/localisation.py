"""Do relevance maps fall on the object asked for? Scores against masks, over generated scenes with several objects.

In each scene two objects are asked for, by texts such as "a photo of a red star". A map for the right text is held
against three controls: the same model's map for the other object's text and for an object that is not there (does the
text matter, or does the model only find things?), and maps that know nothing (a bump in the centre, noise). Scores are
per object, so that intervals and paired tests can be made; two objects of one scene are not independent, and `by_scene`
averages them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from diffclip import explain, images, world
from diffclip.counter import Draws
from diffclip.model import CLIP
from diffclip.tokenizer import tokenize
from diffclip.wording import with_article

SCENES_SEED = 31  # a stream of the world that no corpus and no benchmark draws from
METRICS = ("share", "pointing", "auc")
SMALLEST = 0.01  # an object asked for fills at least this share of the picture, so that it can be seen

# ------------------------------------------------------------------------------------------- scores of maps against masks


def share_on_object(maps: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> np.ndarray:
    """Share of each map's relevance that lies on the object: [N, grid, grid], bool [N, H, W] -> float64 [N].

    Maps are interpolated to the masks' size. A map without aim has the object's share of the area, and so has a map of
    zeros. Raises ValueError for negative or non-finite maps and for masks without object.
    """
    relevance, inside = _pixels(maps, masks)
    return (relevance * inside).sum(1) / relevance.sum(1)


def pointing_game(maps: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> np.ndarray:
    """Whether each map's maximum lies on the object (Zhang et al. 2018, without tolerance): as `share_on_object`.

    If several pixels tie for the maximum, the share of them that lie on the object: the chance that one drawn at random
    does. So a constant map has the object's share of the area.
    """
    relevance, inside = _pixels(maps, masks)
    highest = relevance == relevance.max(1, keepdims=True)
    return (highest & inside).sum(1) / highest.sum(1)


def auc(maps: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> np.ndarray:
    """Chance that a pixel of the object is more relevant than one beside it, ties counted half: as `share_on_object`.

    0.5 for a constant map. Raises ValueError also for a mask that covers everything.
    """
    relevance, inside = _pixels(maps, masks)
    positives, negatives = inside.sum(1), (~inside).sum(1)
    if not negatives.all():
        raise ValueError(
            f"Mask {int(np.argmin(negatives))} covers the whole picture: there is nothing to tell it from."
        )
    ranks = stats.rankdata(relevance, axis=1)
    return ((ranks * inside).sum(1) - positives * (positives + 1) / 2) / (positives * negatives)


def _pixels(maps: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps at the masks' size, each scaled to a maximum of one, and the masks: float64 and bool [N, pixels].

    Rounded, so that what is a tie in exact arithmetic is one here. A map of zeros prefers no pixel: it becomes ones.
    """
    maps, masks = torch.as_tensor(maps).double(), torch.as_tensor(masks)
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or masks.dtype != torch.bool:
        raise ValueError(
            f"Maps [N, grid, grid] and as many masks [N, H, W] of type bool were expected; got {list(maps.shape)} and "
            f"{list(masks.shape)} of type {masks.dtype}."
        )
    bad = ~torch.isfinite(maps).all((1, 2)) | (maps < 0).any((1, 2))
    if bad.any():
        raise ValueError(
            f"Relevance is a finite number of at least 0, but map {int(bad.int().argmax())} holds another."
        )
    inside = masks.flatten(1).numpy()
    if not inside.any(1).all():
        raise ValueError(f"Mask {int(inside.any(1).argmin())} is empty: no map can be right or wrong about it.")
    peak = maps.amax((1, 2), keepdim=True)
    maps = torch.where(peak > 0, maps / peak.where(peak > 0, 1), 1)
    return explain.upsample(maps, tuple(masks.shape[1:])).flatten(1).numpy().round(9), inside


# ---------------------------------------------------------------------------------------------------- the scenes asked about


@dataclass(frozen=True)
class Queries:
    """N scenes, two objects of each asked for. images: uint8 [N, S, S, 3]; masks: bool [N, 2, S, S], the two objects;
    occupied: bool [N, S, S], any object; texts: N times (first object, second object, one that is not there);
    scenes: what was rendered, to render it larger for a figure."""

    images: np.ndarray
    masks: np.ndarray
    occupied: np.ndarray
    texts: list[tuple[str, str, str]]
    scenes: list[world.Scene]

    @property
    def indices(self) -> list[int]:
        """Where the scenes are in their stream."""
        return [scene.index for scene in self.scenes]

    def __len__(self) -> int:
        return len(self.scenes)


def make_queries(n: int = 400, size: int = 48, *, seed: int = SCENES_SEED) -> Queries:
    """The first n scenes of a stream in which two different things are to be seen well enough, rendered at `size` pixels.

    The same at every size, up to scenes in which a thing is barely visible. Takes about 3 ms a scene at 48 pixels.
    """
    if n < 1:
        raise ValueError(f"At least one scene is needed; got n={n}.")
    chosen = []
    for scene, image, masks in _candidates(size, seed):
        if masks[:2].mean((1, 2)).min() >= SMALLEST:
            chosen.append((image, masks[:2], masks.any(0), _texts(scene), scene))
        if len(chosen) == n:
            break
    picture, pair, occupied, texts, scenes = zip(*chosen, strict=True)
    return Queries(np.stack(picture), np.stack(pair), np.stack(occupied), list(texts), list(scenes))


def _candidates(size: int, seed: int) -> Iterator[tuple[world.Scene, np.ndarray, np.ndarray]]:
    index = 0
    while True:
        scene = world.sample_scene(index, seed=seed, kind=("pair", "several")[index % 2])  # no shape occurs twice
        yield scene, *world.render_with_masks(scene, size)
        index += 1


def _texts(scene: world.Scene) -> tuple[str, str, str]:
    draw = Draws(scene.seed, scene.index, 31)
    shapes, colours = {t.shape for t in scene.things}, {t.colour for t in scene.things}
    absent = (
        draw.pick([c for c in world.COLOURS if c not in colours]),
        draw.pick([s for s in world.SHAPES if s not in shapes]),
    )
    asked = [*((t.colour, t.shape) for t in scene.things[:2]), absent]
    first, second, third = (f"a photo of {with_article(' '.join(words))}" for words in asked)
    return first, second, third


# -------------------------------------------------------------------------------------------------------------- the scores


def score_maps(model: CLIP, queries: Queries, *, negative: str = "clamp", batch_size: int = 64) -> pd.DataFrame:
    """Scores of a model's relevance maps: six rows a scene, two objects by three texts.

    Columns: model (the variant), negative, scene, object (0 or 1), query (the text of the object scored), source ("asked":
    the map for that text; "other": for the other object's; "absent": for an object that is not there), area (the object's
    share of the picture: what chance has for `share` and `pointing`), share, pointing, auc.
    """
    maps = relevance_maps(model, queries, negative=negative, batch_size=batch_size)  # [N, 3, grid, grid]
    frames = []
    for source, of in (("asked", (0, 1)), ("other", (1, 0)), ("absent", (2, 2))):
        frames += [_frame(queries, k, source, maps[:, of[k]]) for k in (0, 1)]
    frame = pd.concat(frames, ignore_index=True).sort_values(["scene", "object"], kind="stable", ignore_index=True)
    frame.insert(0, "model", model.variant)
    frame.insert(1, "negative", negative)
    return frame


def relevance_maps(model: CLIP, queries: Queries, *, negative: str = "clamp", batch_size: int = 64) -> np.ndarray:
    """The maps behind `score_maps`: float32 [N, 3, grid, grid], for the first object, the second, and the absent one."""
    found = []
    for pixels, chosen in _batches(model, queries, batch_size):
        texts = [text for three in queries.texts[chosen] for text in three]
        tokens = tokenize(texts, context_length=model.config.text.context_length).to(pixels.device)
        maps = explain.relevance(model, pixels.repeat_interleave(3, dim=0), tokens, negative=negative)
        found.append(maps.unflatten(0, (-1, 3)).cpu().numpy())
    return np.concatenate(found)


def score_baselines(queries: Queries, grid: int) -> pd.DataFrame:
    """Scores of maps that no model made, in the columns of `score_maps`: source "centre" (a Gaussian bump, a quarter of the
    side wide), "random" (independent uniform numbers), and "ceiling" (the object's own mask at the maps' resolution)."""
    place = (np.arange(grid) + 0.5) / grid - 0.5
    centre = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 0.25**2))
    frames = []
    for k in (0, 1):
        random = np.stack(
            [Draws(SCENES_SEED, s, 32, k).array(grid * grid).reshape(grid, grid) for s in queries.indices]
        )
        ceiling = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(queries.masks[:, k]).double(), grid)
        frames.append(_frame(queries, k, "centre", np.broadcast_to(centre, random.shape).copy()))
        frames += [_frame(queries, k, "random", random), _frame(queries, k, "ceiling", ceiling)]
    frame = pd.concat(frames, ignore_index=True).sort_values(["scene", "object"], kind="stable", ignore_index=True)
    frame.insert(0, "model", "none")
    frame.insert(1, "negative", "")
    return frame


def score_noise(
    model: CLIP, queries: Queries, *, parts: Sequence[str] | None = None, batch_size: int = 64
) -> pd.DataFrame:
    """Share of class-token attention on background, a row a scene, layer and part of the map (see explain.PARTS).

    parts: default all that the model has. Columns: model, scene, layer, part, noise, area (the background's share of the
    picture: what attention without aim has).
    """
    if parts is None:
        differential = model.attention_layers("vision")[0].differential
        parts = tuple(explain.PARTS) if differential else ("positive",)
    area = 1 - queries.occupied.mean((1, 2))
    frames = []
    for part in parts:
        noise = np.concatenate(
            [
                explain.attention_noise(
                    model, pixels, torch.from_numpy(queries.occupied[chosen]).to(pixels.device), part=part
                )
                .cpu()
                .numpy()
                for pixels, chosen in _batches(model, queries, batch_size)
            ]
        )  # [N, layers]
        scene, layer = (x.ravel() for x in np.meshgrid(queries.indices, range(noise.shape[1]), indexing="ij"))
        columns = {"scene": scene, "layer": layer, "part": part, "noise": noise.ravel()}
        frames.append(pd.DataFrame(columns | {"area": np.repeat(area, noise.shape[1])}))
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "model", model.variant)
    return frame


def agreement(maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """How alike maps of the same queries are: mean Spearman correlation over maps, for every pair of names.

    maps: name -> [..., grid, grid], of the treatments of negative entries, say, or of models. 1 means that two rank the
    patches alike everywhere. Maps without any differences have no ranks and are left out.
    """
    ranks = {}
    for name, found in maps.items():
        found = np.asarray(found, dtype=np.float64)
        r = stats.rankdata(found.reshape(-1, found.shape[-1] * found.shape[-2]), axis=1)
        r -= r.mean(1, keepdims=True)
        length = np.linalg.norm(r, axis=1, keepdims=True)
        ranks[name] = np.divide(r, length, out=np.full_like(r, np.nan), where=length > 0)
    table = [[np.nanmean((a * b).sum(1)) for b in ranks.values()] for a in ranks.values()]
    return pd.DataFrame(table, index=list(ranks), columns=list(ranks))


def by_scene(frame: pd.DataFrame, source: str, metric: str) -> pd.Series:
    """The metric of one source, averaged over the objects of a scene: a number a scene, in their order.

    Two models are compared with `statistics.compare(outcomes(one), outcomes(other))` of such numbers.
    """
    chosen = frame[frame["source"] == source]
    if chosen.empty or metric not in frame:
        raise ValueError(
            f"There is no {metric!r} of {source!r} in these scores. They have the sources "
            f"{', '.join(frame['source'].unique())} and the metrics {', '.join(METRICS)}."
        )
    return chosen.groupby("scene")[metric].mean()


def summarise(frame: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Mean and 95 % interval of each metric for each model and source: columns model, negative, source, metric, mean, low,
    high, n. n counts scenes: the objects of one are averaged first, being no independent trials. (Student's t.)"""
    rows = []
    for keys, part in frame.groupby(["model", "negative", "source"], sort=False):
        for metric in metrics:
            values = by_scene(part, keys[2], metric)
            half = stats.t.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 1 else np.nan
            mean = values.mean()
            rows.append((*keys, metric, mean, mean - half, mean + half, len(values)))
    return pd.DataFrame(rows, columns=["model", "negative", "source", "metric", "mean", "low", "high", "n"])


def _frame(queries: Queries, k: int, source: str, maps: np.ndarray | Tensor) -> pd.DataFrame:
    masks = queries.masks[:, k]
    return pd.DataFrame(
        {
            "scene": queries.indices,
            "object": k,
            "query": [texts[k] for texts in queries.texts],
            "source": source,
            "area": masks.mean((1, 2)),
            "share": share_on_object(maps, masks),
            "pointing": pointing_game(maps, masks),
            "auc": auc(maps, masks),
        }
    )


def _batches(model: CLIP, queries: Queries, batch_size: int) -> Iterator[tuple[Tensor, slice]]:
    """Normalised pixels on the model's device, and which scenes they are."""
    for start in range(0, len(queries), batch_size):
        chosen = slice(start, start + batch_size)
        pixels = torch.from_numpy(queries.images[chosen]).permute(0, 3, 1, 2).to(model.logit_scale.device)
        yield images.normalise(pixels), chosen
