"""Scores of maps against masks: by hand, against scikit-learn, and over the world's scenes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import roc_auc_score

from diffclip import explain, explain_figures, localisation, style, world
from diffclip.evaluation import statistics
from diffclip.localisation import auc, pointing_game, share_on_object
from diffclip.model import create_model
from diffclip.tokenizer import tokenize

SCORES = {"share": share_on_object, "pointing": pointing_game, "auc": auc}


def quarter(size=8):
    """A mask of the top left quarter."""
    mask = np.zeros((1, size, size), bool)
    mask[:, : size // 2, : size // 2] = True
    return mask


# ---------------------------------------------------------------------------------------------------------------- scores


def test_by_hand_at_the_masks_own_resolution():
    """Maps as fine as the masks are not interpolated."""
    maps = np.array([[[4.0, 3, 2], [1, 0, 0], [0, 0, 0]], [[1, 5, 0], [5, 1, 0], [0, 0, 8]]])
    masks = np.zeros((2, 3, 3), bool)
    masks[:, 0, :2] = True
    np.testing.assert_allclose(share_on_object(maps, masks), [0.7, 6 / 20])
    np.testing.assert_allclose(pointing_game(maps, masks), [1, 0])
    # Second map: 5 beats all seven but 5 (a tie) and 8; 1 beats four zeros, ties with 1, loses to 5 and 8.
    np.testing.assert_allclose(auc(maps, masks), [1, (5.5 + 4.5) / 14])


def test_ties_of_the_maximum_are_shared():
    maps = np.array([[[3.0, 3, 0], [0, 3, 0], [0, 0, 0]]])
    mask = np.zeros((1, 3, 3), bool)
    mask[0, 0] = True
    np.testing.assert_allclose(pointing_game(maps, mask), [2 / 3])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-12, 7e9])
@pytest.mark.parametrize("grid, size", [(1, 8), (3, 8), (6, 48), (7, 10)])
def test_a_constant_map_has_no_aim(value, grid, size):
    maps = np.full((1, grid, grid), value, np.float32)
    assert share_on_object(maps, quarter(size)) == pytest.approx(0.25)
    assert pointing_game(maps, quarter(size)) == pytest.approx(0.25)
    assert auc(maps, quarter(size)) == pytest.approx(0.5)


@given(seed=st.integers(0, 999), grid=st.integers(1, 6), size=st.integers(2, 12), scale=st.floats(1e-6, 1e6))
def test_scores_of_any_map(seed, grid, size, scale):
    rng = np.random.default_rng(seed)
    maps = rng.random((3, grid, grid)) * (rng.random((3, grid, grid)) > 0.3)
    masks = rng.random((3, size, size)) < 0.4
    masks[:, 0, 0], masks[:, -1, -1] = True, False
    for name, score in SCORES.items():
        values = score(maps, masks)
        assert values.shape == (3,) and values.dtype == np.float64 and ((values >= 0) & (values <= 1)).all()
        np.testing.assert_allclose(score(maps * scale, masks), values, atol=1e-6, err_msg=name)  # a map has no unit
        np.testing.assert_allclose(score(maps[::-1].copy(), masks[::-1].copy()), values[::-1])  # items are independent
    np.testing.assert_allclose(auc(maps, masks) + auc(maps, ~masks), 1)
    pixels = explain.upsample(torch.from_numpy(maps), size).flatten(1).numpy().round(12)
    expected = [roc_auc_score(mask.ravel(), one) for mask, one in zip(masks, pixels, strict=True)]
    np.testing.assert_allclose(auc(maps, masks), expected, atol=1e-3)


def test_tensors_and_rectangles():
    maps = torch.rand(2, 4, 4)
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[:, :3, :5] = True
    for score in SCORES.values():
        np.testing.assert_allclose(score(maps, masks), score(maps.numpy(), masks.numpy()))


def test_scores_refuse_what_means_nothing():
    maps, masks = np.ones((2, 3, 3)), np.zeros((2, 6, 6), bool)
    masks[0, 0, 0] = True
    for score in SCORES.values():
        with pytest.raises(ValueError, match="Mask 1 is empty"):
            score(maps, masks)
        with pytest.raises(ValueError, match=r"got \[2, 3, 3\] and \[1, 6, 6\]"):
            score(maps, masks[:1])
        with pytest.raises(ValueError, match="of type torch.uint8"):
            score(maps, masks.astype(np.uint8))
        for bad in (-1.0, np.nan, np.inf):
            wrong = maps.copy()
            wrong[1, 2, 2] = bad
            with pytest.raises(ValueError, match="finite number of at least 0, but map 1"):
                score(wrong, ~masks)
    with pytest.raises(ValueError, match="Mask 0 covers the whole picture"):
        auc(maps, np.ones((2, 6, 6), bool))


# ---------------------------------------------------------------------------------------------------------------- scenes


@pytest.fixture(scope="module")
def queries():
    return localisation.make_queries(12, 32)


def test_queries(queries):
    assert len(queries) == 12 and queries.images.shape == (12, 32, 32, 3) and queries.images.dtype == np.uint8
    assert queries.masks.shape == (12, 2, 32, 32) and queries.masks.dtype == bool
    assert (queries.masks.mean((2, 3)) >= localisation.SMALLEST).all()
    assert not (queries.masks[:, 0] & queries.masks[:, 1]).any()
    assert (queries.occupied | ~queries.masks.any(1)).all()
    for texts in queries.texts:
        assert len(set(texts)) == 3 and all(t.startswith(("a photo of a ", "a photo of an ")) for t in texts)
        shapes = [t.split()[-1] for t in texts]
        assert len(set(shapes)) == 3


def test_absent_objects_are_absent(queries):
    for scene, texts in zip(queries.scenes, queries.texts, strict=True):
        colour, shape = texts[2].split()[-2:]
        assert shape not in scene.counts and colour not in {t.colour for t in scene.things}
        assert colour in world.COLOURS and shape in world.SHAPES
        assert scene == world.sample_scene(scene.index, seed=localisation.SCENES_SEED, kind=scene.kind)
        for text, thing in zip(texts, scene.things[:2], strict=False):
            assert text.endswith(f"{thing.colour} {thing.shape}")


def test_queries_are_the_same_every_time(queries):
    again = localisation.make_queries(12, 32)
    assert np.array_equal(again.images, queries.images) and np.array_equal(again.masks, queries.masks)
    assert (again.texts, again.scenes) == (queries.texts, queries.scenes)
    assert localisation.make_queries(5, 32).scenes == queries.scenes[:5]
    with pytest.raises(ValueError, match="At least one scene"):
        localisation.make_queries(0, 32)


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_score_maps(queries, variant):
    model = create_model(variant, "smoke", seed=0)
    frame = localisation.score_maps(model, queries, negative="signed", batch_size=5)
    assert len(frame) == 12 * 6 and set(frame["source"]) == {"asked", "other", "absent"}
    assert (frame["model"] == variant).all() and (frame["negative"] == "signed").all()
    assert not frame.isna().any().any()
    other = localisation.score_maps(model, queries, negative="signed", batch_size=64)
    for metric in SCORES:
        np.testing.assert_allclose(frame[metric], other[metric], atol=1e-3)  # batches do not matter
    row = frame[(frame["scene"] == queries.indices[3]) & (frame["object"] == 1)]
    assert (row["query"] == queries.texts[3][1]).all() and np.allclose(row["area"], queries.masks[3, 1].mean())


def test_every_map_is_scored_against_its_own_object(queries, monkeypatch):
    """A model that knows the masks: right for the text asked, wrong for the other one, blank for what is not there."""
    masks = torch.from_numpy(queries.masks)

    def oracle(model, pixels, tokens, *, negative):
        found = []
        for i, one in enumerate(tokens):  # three texts a scene; which of them, the tokens say
            n = i // 3
            k = next(k for k, text in enumerate(tokenize(list(queries.texts[n]), 24)) if torch.equal(text, one))
            found.append(masks[n, k].float() if k < 2 else torch.zeros(32, 32))
        return torch.stack(found)

    model = create_model("clip", "smoke", seed=0)
    monkeypatch.setattr(explain, "relevance", oracle)
    frame = localisation.score_maps(model, queries).groupby("source")
    assert (frame.get_group("asked")[["share", "pointing", "auc"]] == 1).all().all()
    assert (frame.get_group("other")[["share", "pointing"]] == 0).all().all()
    assert (frame.get_group("other")["auc"] < 0.5).all()
    absent = frame.get_group("absent")
    np.testing.assert_allclose(absent["share"], absent["area"])
    np.testing.assert_allclose(absent["auc"], 0.5)


def test_agreement_is_spearmans_correlation():
    rng = np.random.default_rng(0)
    one = rng.random((5, 2, 3, 3))
    other = rng.integers(0, 3, (5, 2, 3, 3)).astype(float)  # with ties
    found = localisation.agreement({"one": one, "same order": np.exp(5 * one), "reversed": -one, "other": other})
    assert found.loc["one", "same order"] == pytest.approx(1) and found.loc["one", "reversed"] == pytest.approx(-1)
    pairs = zip(one.reshape(10, 9), other.reshape(10, 9), strict=True)
    expected = np.mean([stats.spearmanr(a, b).statistic for a, b in pairs])
    assert found.loc["one", "other"] == pytest.approx(expected) and found.equals(found.T)
    flat = other.copy()
    flat[1:] = 7.0
    assert localisation.agreement({"a": one, "b": flat}).loc["a", "b"] == pytest.approx(
        localisation.agreement({"a": one[:1], "b": other[:1]}).loc["a", "b"]
    )


def test_two_models_are_compared_by_scene(queries):
    scores = [localisation.score_maps(create_model(v, "smoke", seed=0), queries) for v in ("clip", "diffclip")]
    clip, diffclip = (statistics.outcomes(localisation.by_scene(f, "asked", "share")) for f in scores)
    found = statistics.compare(clip, diffclip, resamples=200)
    assert found.difference == pytest.approx(scores[1].query("source == 'asked'")["share"].mean() - found.baseline)


def test_baselines(queries):
    frame = localisation.score_baselines(queries, 4)
    assert len(frame) == 12 * 6 and set(frame["source"]) == {"centre", "random", "ceiling"}
    means = localisation.summarise(frame).pivot(index="source", columns="metric", values="mean")
    assert (means.loc["ceiling"] > means.loc["random"]).all() and means.loc["ceiling", "auc"] > 0.9
    assert 0.4 < means.loc["random", "auc"] < 0.6
    again = localisation.score_baselines(queries, 4)
    assert again.equals(frame)


def test_noise_frame(queries):
    clip, diffclip = (create_model(v, "smoke", seed=0) for v in ("clip", "diffclip"))
    frame = localisation.score_noise(clip, queries)
    assert len(frame) == 12 * 2 and set(frame["part"]) == {"positive"} and frame["noise"].between(0, 1).all()
    frame = localisation.score_noise(diffclip, queries, batch_size=5)
    assert len(frame) == 12 * 2 * 4 and set(frame["part"]) == set(explain.PARTS)
    one = frame[(frame["scene"] == queries.indices[7]) & (frame["part"] == "second")]
    pixels = next(localisation._batches(diffclip, queries, 12))[0][7:8]
    expected = explain.attention_noise(diffclip, pixels, torch.from_numpy(queries.occupied[7:8]), part="second")
    np.testing.assert_allclose(one.sort_values("layer")["noise"], expected[0], rtol=1e-4)
    assert np.allclose(one["area"], 1 - queries.occupied[7].mean())


def test_summaries_count_scenes_not_objects(queries):
    frame = localisation.score_maps(create_model("clip", "smoke", seed=0), queries)
    scenes = localisation.by_scene(frame, "asked", "auc")
    assert len(scenes) == 12 and scenes.index.tolist() == queries.indices
    first = frame[(frame["scene"] == queries.indices[0]) & (frame["source"] == "asked")]
    assert scenes.iloc[0] == pytest.approx(first["auc"].mean())
    row = localisation.summarise(frame).query("source == 'asked' and metric == 'auc'").iloc[0]
    half = 2.200985 * scenes.std() / 12**0.5  # Student's t with 11 degrees of freedom
    assert (row["n"], row["mean"]) == (12, pytest.approx(scenes.mean()))
    assert (row["low"], row["high"]) == (pytest.approx(scenes.mean() - half), pytest.approx(scenes.mean() + half))
    with pytest.raises(ValueError, match="no 'auc' of 'centre' in these scores"):
        localisation.by_scene(frame, "centre", "auc")


# --------------------------------------------------------------------------------------------------------------- figures


def test_figures(queries, tmp_path):
    import pandas as pd

    models = {style.label(v): create_model(v, "smoke", seed=0) for v in ("clip", "diffclip")}
    maps = {label: localisation.relevance_maps(model, queries)[:3, :2] for label, model in models.items()}
    fig = explain_figures.plot_relevance(queries.images[:3], [t[:2] for t in queries.texts[:3]], maps)
    assert isinstance(fig, Figure) and sum(bool(ax.images) for ax in fig.axes) == 3 * (1 + 2 * 2)
    scores = pd.concat([localisation.score_maps(model, queries) for model in models.values()])
    noise = pd.concat([localisation.score_noise(model, queries) for model in models.values()])
    for name, drawn in {
        "maps": fig,
        "scores": explain_figures.plot_scores(scores, localisation.score_baselines(queries, 4)),
        "noise": explain_figures.plot_noise(noise),
    }.items():
        (path,) = style.save(drawn, tmp_path / name, formats=("png",))
        assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="3 images with 2 queries each need maps of shape"):
        explain_figures.plot_relevance(
            queries.images[:3], [t[:2] for t in queries.texts[:3]], {"CLIP": maps["CLIP"][:2]}
        )


def test_overlay_shows_the_map():
    image = np.full((16, 16, 3), 128, np.uint8)
    found = explain_figures.overlay(image, np.array([[1.0, 0], [0, 0]]))
    assert found.shape == (16, 16, 3) and found.min() >= 0 and found.max() <= 1
    assert found[0, 0].sum() > found[-1, -1].sum() + 0.5
    blank = explain_figures.overlay(image, np.zeros((2, 2)))
    np.testing.assert_allclose(blank, blank[0, 0] * np.ones_like(blank))
