"""The numbers behind notebooks 00 to 02: closed forms against measurement, anatomy against the counts of the paper."""

import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffclip import anatomy, drawings, syllabus, theory, theory_figures
from diffclip.attention import DifferentialAttention, record
from diffclip.model import SIZES, VARIANTS, create_model
from diffclip.scales import SCALES

unit = st.floats(0.0, 0.99)


@given(unit, unit)
def test_best_lambda_is_where_the_gain_is_largest(overlap, leak):
    best = theory.best_lambda(overlap, leak)
    assert theory.gain(best, overlap, leak) == pytest.approx(theory.best_gain(overlap, leak), rel=1e-6)
    assert theory.best_gain(overlap, leak) >= 1 - 1e-12
    for other in np.linspace(-2, 2, 41):
        assert theory.gain(other, overlap, leak) <= theory.best_gain(overlap, leak) * (1 + 1e-9)
    # A little subtraction helps exactly if more noise is shared than signal.
    if abs(overlap - leak) > 1e-3:
        assert (theory.gain(1e-5, overlap, leak) > 1) == (overlap > leak) == (best > 0)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("leak", [0.0, 3.0])
def test_closed_form_is_what_many_tokens_measure(correlation, leak):
    """The draws' own gains approach the closed form as tokens grow; a wrong sign or scale would be far outside 4 %."""
    model = theory.NoiseModel(tokens=20_000, signal=8.0, leak=leak and 7.0, correlation=correlation, sigma=0.8)
    lambdas = torch.tensor([0.0, 0.4, 0.8, 1.2])
    measured = theory.measured_gains(model, lambdas, 20, torch.Generator().manual_seed(0)).mean(dim=0)
    assert measured.tolist() == pytest.approx([model.gain(x) for x in lambdas.tolist()], rel=0.04)
    a1, a2 = model.draw(20, torch.Generator().manual_seed(1))
    assert theory.overlap(a1, a2).mean().item() == pytest.approx(model.overlap, rel=0.03)
    assert (theory.snr(a2) / theory.snr(a1)).mean().item() == pytest.approx(model.leak_ratio, rel=0.05)
    assert torch.allclose(a1.sum(-1), torch.ones(20)) and torch.allclose(a2.sum(-1), torch.ones(20))


def test_snr_is_that_of_the_heads_output():
    """With values in unrelated directions, the weights' ratio is the ratio of what arrives in the output."""
    generator = torch.Generator().manual_seed(0)
    a1, a2 = theory.NoiseModel(correlation=0.8).draw(1, generator)
    weights = a1 - 0.8 * a2
    width = 4096
    values = torch.nn.functional.normalize(torch.randn(197, width, generator=generator), dim=-1)
    noise = weights[:, 1:] @ values[1:]
    assert (weights[:, 0] / noise.norm(dim=-1)).item() == pytest.approx(theory.snr(weights).item(), rel=0.03)


@pytest.mark.parametrize("wrong", [{"tokens": 1}, {"correlation": 1.1}, {"sigma": -1.0}])
def test_noise_model_refuses(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        theory.NoiseModel(**wrong)


@pytest.mark.parametrize("head_dim", [24, 64])
def test_lambda_of_fresh_layers_scatters_as_predicted(head_dim):
    fresh = theory.VectorLambda(0.8, head_dim, copies=5000)()
    assert fresh.std().item() == pytest.approx(theory.lambda_spread(head_dim), rel=0.06)
    torch.manual_seed(0)
    layers = torch.stack([DifferentialAttention(2 * head_dim, 2).effective_lambda() for _ in range(300)])
    assert layers.std().item() == pytest.approx(theory.lambda_spread(head_dim), rel=0.2)


def test_learning_reaches_the_target_and_zeros_never_move():
    for target in (0.2, 1.6):
        path = theory.learn_lambda(theory.VectorLambda(0.8, copies=3), target, steps=200)
        assert path.shape == (201, 3)
        assert path[-1].tolist() == pytest.approx([target] * 3, abs=0.02)
        plain = theory.learn_lambda(theory.PlainLambda(0.8), target, steps=20)
        assert abs(plain[-1] - 0.8).item() == pytest.approx(20 * 5e-4, rel=0.05)  # Adam: one rate a step
    still = theory.learn_lambda(theory.VectorLambda(0.8, std=0.0), 0.2, steps=20)
    assert (still == still[0]).all()


@pytest.mark.parametrize("lambda_init", [0.2, 0.8])
def test_output_scales_are_set_by_lambda_init_alone(lambda_init):
    torch.manual_seed(0)
    x = torch.randn(2, 17, 64)
    scales = theory.output_scales(DifferentialAttention(64, 4, lambda_init=lambda_init), x)
    assert list(scales) == ["input", "V", "(A1 - λ A2) V", "RMSNorm", "times (1 - λ_init)", "output"]
    assert scales["RMSNorm"] == pytest.approx(1, rel=0.02)
    assert scales["times (1 - λ_init)"] == pytest.approx((1 - lambda_init) * scales["RMSNorm"], rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_add_up_and_extras_are_the_difference(variant):
    model, baseline = anatomy.skeleton(variant), anatomy.skeleton("clip")
    count, before = (sum(p.numel() for p in m.parameters()) for m in (model, baseline))
    assert sum(anatomy.parts(model).values()) == count
    assert anatomy.extras(model)["numbers"].sum() == count - before
    assert count - before == {"clip": 0, "diffclip": 9216, "diffclip_dynamic": 9216, "diffclip_vision": 4608}[variant]


def test_shapes_follow_the_forward_pass():
    table = anatomy.shapes("diffclip", "vit_b_16", "vision", batch=3).set_index("station")
    assert table.index[0] == "patch_embed" and table.index[-1] == "projection"
    assert table.loc["patch_embed", "output"] == [3, 196, 768]
    assert table.loc["blocks.0.attn.diff_norm", "output"] == [3, 6, 197, 128]
    assert table.loc["projection", "output"] == [3, 512]
    whole = [s for s in table.index if "blocks.0." not in s]
    total = table.loc[whole, "parameters"].sum() + 10 * table.loc["each later block, to 11", "parameters"]
    assert total == sum(p.numel() for p in anatomy.skeleton("diffclip").vision.parameters())
    assert anatomy.shapes("clip", "smoke", "text").iloc[-1]["output"] == [2, 16]


def test_counted_flops_are_those_of_the_matrix_products():
    config = SIZES["smoke"].vision
    tokens, width = config.tokens, config.width
    patches = 2 * config.grid**2 * 3 * config.patch_size**2 * width
    block = 2 * tokens * width * (4 * width + 8 * width) + 4 * tokens**2 * width
    expected = patches + config.depth * block + 2 * width * SIZES["smoke"].embed_dim
    for variant in ("clip", "diffclip"):
        assert anatomy.counted_flops(variant, "smoke")["vision"] == expected
    # Two products with V instead of one, where the maps are not written out.
    extra = config.depth * 2 * tokens**2 * width
    assert anatomy.counted_flops("diffclip", "smoke", "fused")["vision"] == expected + extra


def test_overview_prefers_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCLIP_DATA", str(tmp_path))
    monkeypatch.setattr(syllabus, "ROOT", tmp_path)
    table = syllabus.overview("mini").set_index("notebook")
    assert len(table) == 12 and set(table["timed"]) == {"estimate"}
    assert set(syllabus.overview("paper")["timed"]) == {"not run yet"}
    (tmp_path / "notebooks").mkdir()
    notes = {"cells": [], "metadata": {"diffclip": {"scale": "mini", "seconds": 90}}}
    (tmp_path / "notebooks" / "01_attention_theory.ipynb").write_text(json.dumps(notes))
    state = SCALES["mini"].runs_root / "notebooks" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"02_models": {"seconds": 30.0}}))
    table = syllabus.overview("mini").set_index("notebook")
    assert table.loc["01_attention_theory", ["minutes to run", "timed"]].tolist() == [1.5, "as committed"]
    assert table.loc["02_models", ["minutes to run", "timed"]].tolist() == [0.5, "here"]
    state.write_text("{")
    assert syllabus.overview("mini").set_index("notebook").loc["02_models", "timed"] == "estimate"


def test_slider_only_where_somebody_can_move_it(monkeypatch):
    monkeypatch.delenv("DIFFCLIP_WIDGETS", raising=False)
    assert not theory_figures.somebody_is_there()  # no kernel at all
    monkeypatch.setenv("DIFFCLIP_WIDGETS", "1")
    assert theory_figures.somebody_is_there()


@pytest.mark.filterwarnings("error")
def test_every_drawing_draws():
    noise = theory.NoiseModel(tokens=20)
    empty = anatomy.skeleton("diffclip", "smoke")
    paths = {"a": theory.learn_lambda(theory.PlainLambda(0.8), 0.2, steps=3)}
    real = create_model("diffclip", "smoke", seed=0)
    with record(real) as maps, torch.no_grad():
        real.encode_image(torch.zeros(1, 3, 32, 32))
    figures = [
        drawings.mechanism(),
        drawings.line(),
        drawings.verdicts(),
        drawings.budget(anatomy.parts(empty), anatomy.extras(empty).groupby("tower")["numbers"].sum().to_dict()),
        drawings.layer_maps(np.zeros((32, 32, 3), np.uint8), maps),
        theory_figures.one_draw({"a": noise, "b": noise}, 0.8),
        theory_figures.gain_over_lambda({"a": [noise], "b": [noise]}, draws=5),
        theory_figures.best_lambda({"a": 0.0}, draws=5),
        theory_figures.lambda_panels([0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
        theory_figures.lambda_view(0.8),
        theory_figures.lambda_at_init({24: theory.VectorLambda(0.8, 24, copies=50)().detach()}),
        theory_figures.learning({0.2: paths, 1.6: paths}),
        theory_figures.schedules(4),
        theory_figures.reach(np.array([[1.4, 0.1], [0.2, 1.3], [1.3, 1.2]]), 0.8),
    ]
    for figure in figures:
        picture = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("L"))
        assert picture.min() < 80 and (picture > 200).mean() > 0.2  # ink on a light ground


def test_tables_in_one_notebook_do_not_style_each_other():
    one = pd.DataFrame({"size": ["a", "b"], "share": [0.5, 0.25], "count": [1_234_567, 2]})
    two = pd.DataFrame({"count": [3.14159, np.nan], "size": ["a", "b"]})
    first, second = drawings.table(one).to_html(), drawings.table(two).to_html()
    assert first == drawings.table(one.copy()).to_html()
    names = [set(re.findall(r"T_\w+?(?=_|\b)", html)) for html in (first, second)]
    assert names[0] and not names[0] & names[1]
    assert ">0.50<" in first and ">1\u2009234\u2009567<" in first
    assert ">3.142<" in second and ">–<" in second


def test_scene_maps_are_attention_maps():
    a1, a2, mask = theory.scene_maps(0)
    assert a1.sum().item() == pytest.approx(1, rel=1e-5) and a2.sum().item() == pytest.approx(1, rel=1e-5)
    assert theory.share_on(mask, a1) > 3 * theory.share_on(mask, a2)
    assert math.isclose(theory.share_on(mask, mask.float()), 1)
