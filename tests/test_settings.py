"""Settings and ``sampler="auto"``."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import psld_jax as pj
from psld_jax import build
from psld_jax.sampling.generate import resolve
from psld_jax.sampling.settings import Setting, Tuned, choose, read_tuned

SDE = pj.sde.PSLD()
TIMES = (1.0, 0.6, 0.25, 0.05, 1e-3)


@given(
    steps=st.integers(1, 40),
    knots=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20),
)
def test_a_grid_can_be_stretched_to_any_number_of_steps(steps, knots):
    # Not below the smallest time that a grid may have, 1e-9.
    times = np.exp(-np.concatenate([[0.0], np.cumsum(knots)]) * min(1, 20 / np.sum(knots)))
    grid = pj.grids.resample(times, steps)
    np.testing.assert_array_equal(pj.grids.validate(grid), grid)
    assert len(grid) == steps + 1 and grid[0] == times[0] and grid[-1] == times[-1]
    np.testing.assert_array_equal(pj.grids.resample(times, len(times) - 1), times)


def test_times_that_were_given_are_not_said_to_be_tuned():
    assert Setting("ddim", TIMES).describe() == "ddim, times of its own"
    assert Setting("ddim").describe() == "ddim, quadratic grid"


def test_a_stretched_grid_keeps_its_shape():
    times = np.geomspace(1.0, 1e-3, 7)
    np.testing.assert_allclose(pj.grids.resample(times, 19), np.geomspace(1.0, 1e-3, 20), rtol=1e-12)
    # Twice the steps of a grid whose logarithm is smooth in i / N: every other time is where it was.
    np.testing.assert_allclose(pj.grids.resample(TIMES, 8)[::2], TIMES, rtol=1e-12)


def test_a_setting_becomes_the_table_that_its_parts_make():
    setting = Setting("lambda_ddim_ii", "power", 3.0, {"lam": 0.3})
    expected = pj.tabulate(pj.integrators.get("lambda_ddim_ii", lam=0.3), SDE, pj.grids.power(10, rho=3.0))
    jax.tree.map(np.testing.assert_array_equal, setting.table(SDE, 11), expected)
    assert Setting("RVV", TIMES).table(SDE, 9).num_steps == 5  # four steps of two evaluations, and denoising
    np.testing.assert_array_equal(Setting("ddim", TIMES).table(SDE, 4, denoise=False).times, TIMES)
    with pytest.raises(ValueError, match=r"t_end=0.01, but the given times end at 0.001"):
        Setting("ddim", TIMES).table(SDE, 4, t_end=0.01)
    with pytest.raises(ValueError, match="is adaptive and has no table"):
        Setting("rk45").table(SDE, 10)
    with pytest.raises(ValueError, match="'auto' takes what was tuned for a model, and has no table; name a sampler"):
        Setting("auto").table(SDE, 10)
    with pytest.raises(ValueError, match="Did you mean 'ancestral'"):
        Setting("ancestrl").table(SDE, 10)


def test_settings_survive_json():
    fitted = ((0.001, 0.9, 0.1), (1.0, 0.5, 0.2))
    for setting in (Setting("ddim"), Setting("exponential_multistep", TIMES, 7.0, {"projection": fitted, "order": 3})):
        again = Setting.from_json(json.loads(json.dumps(setting.to_json())))
        assert again == setting
        jax.tree.map(np.testing.assert_array_equal, again.table(SDE, 8), setting.table(SDE, 8))
    with pytest.raises(ValueError, match="a sampler's setting holds"):
        Setting.from_json({"sampler": "ddim"})
    with pytest.raises(ValueError, match="a sampler's setting=None must be a dict"):
        Setting.from_json(None)


def test_auto_takes_the_nearest_budget_that_was_tuned_else_the_rule(digits_model):
    few, many = Setting("ancestral", TIMES), Setting("ddim")
    tuned = (Tuned(10, few), Tuned(40, many))
    model = dataclasses.replace(digits_model, tuned=tuned)
    assert choose(model, 5) is few and choose(model, 19) is few  # the geometric mean is 20
    assert choose(model, 21) is many and choose(model, 1000) is many
    assert not pj.integrators.get(choose(dataclasses.replace(model, tuned=()), 10).sampler).stochastic
    assert resolve(model, "auto", 10) is few
    assert resolve(model, nfe=10, grid="uniform") == Setting("ancestral", "uniform")
    assert resolve(model, "ddim", 10) == Setting("ddim", "quadratic")
    with pytest.raises(ValueError, match="chooses its hyper-parameters"):
        resolve(model, "auto", 10, lam=1.0)
    with jax.enable_x64(False):
        images = pj.generate(model, nfe=40, n=2)
        np.testing.assert_array_equal(images, pj.generate(model, "ddim", nfe=40, n=2, grid="quadratic"))


@pytest.mark.parametrize("sde", [{}, {"sde.name": "vpsde", "sde.beta_min": 0.1, "sde.beta_max": 20.0}], ids=str)
def test_auto_is_the_default_and_the_rule_works_for_every_diffusion(sde):
    model = dataclasses.replace(pj.load("digits", {"data.num_points": 60, **sde}), tuned=())
    with jax.enable_x64(False):
        images = pj.generate(model, n=16)
    # A network-free score of 60 digits: every sample is a digit, up to the bandwidth of 0.05 (five deviations).
    nearest = np.abs(images[:, None] - model.data[None]).mean(axis=(2, 3, 4)).min(axis=1)
    assert nearest.max() < 0.25


@pytest.mark.parametrize("name", ["edm", "vesde", "vpsde", "subvp", "flow", "cosine", "discrete"])
def test_the_rule_beats_ddim(name):
    """Gaussian data, whose ODE has a closed form: polynomials in log SNR had up to five times the error of DDIM."""
    sde, mean, std = pj.sde.get(name), 0.3, 0.4
    digits = pj.load("digits", {"data.num_points": 2})
    eps_fn = pj.scores.mixture(np.full((1, *digits.image_shape), mean), std, sde)
    model = dataclasses.replace(digits, sde=sde, eps_fn=eps_fn, tuned=())
    z = sde.prior_sample(jax.random.key(0), (4, *digits.image_shape))[0]
    # Deviations from the mean shrink as the standard deviation does; the prior has no more than a trace of the mean.
    (total,) = sde.total_cov(1.0, std).ravel() ** 0.5
    exact = np.clip(mean + (z - mean * float(sde.alpha(1.0))) * std / total, -1, 1)
    with jax.enable_x64(False):
        for nfe in (5, 6, 10, 20):
            ours, ddim = (
                np.sqrt(np.mean((pj.generate(model, sampler, nfe=nfe, n=4, seed=0) - exact) ** 2))
                for sampler in ("auto", "ddim")
            )
            assert ours < ddim / 2, (nfe, ours, ddim)


def test_tuned_samplers_belong_to_a_model(tmp_path):
    model = pj.load("digits")
    best = [{"nfe": 10, "setting": Setting("ddim", TIMES).to_json()}]
    path = tmp_path / "samplers.json"
    path.write_text(json.dumps({"model": build.tuned_for(model.config, model.sde), "best": best}))
    chosen = {"sampler.tuned": str(path)}
    assert pj.load("digits", chosen).tuned == (Tuned(10, Setting("ddim", TIMES)),)
    with pytest.raises(ValueError, match="was tuned for PSLD.*gamma=0.01.*this model is PSLD.*gamma=0.02"):
        pj.load("digits", {**chosen, "sde.gamma": 0.02, "sde.nu": 4.02})
    assert pj.load("digits", {"sde.gamma": 0.02, "sde.nu": 4.02}).tuned == ()
    for content in ("", "{}", '{"model": "", "best": [{"nfe": 1, "setting": {}}]}', '{"model": "", "best": [3]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="is no file of tuned samplers"):
            read_tuned(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nfe", 0),
        ("nfe", 1.5),
        ("nfe", "10"),
        ("sampler", ["ddim"]),
        ("hyper", []),
        ("hyper", 1),
        ("rho", None),
        ("rho", -1),
    ],
)
def test_a_file_of_tuned_samplers_that_was_edited_is_one_line(field, value, tmp_path):
    row = {"nfe": 10, "setting": Setting("ddim").to_json()}
    (row if field == "nfe" else row["setting"])[field] = value
    path = tmp_path / "samplers.json"
    for best in ([row], []):
        path.write_text(json.dumps({"model": "", "best": best}))
        with pytest.raises(ValueError, match="is no file of tuned samplers") as raised:
            read_tuned(path)
        assert (field if best else "is empty") in str(raised.value) and "\n" not in str(raised.value)
