"""Time grids and their errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import psld_jax as pj

SDE = pj.sde.PSLD()


@given(
    name=st.sampled_from(pj.grids.available()),
    n_steps=st.integers(1, 60),
    t_end=st.floats(1e-5, 0.5),
    t_start=st.floats(0.6, 1.0),
)
def test_every_grid_descends_from_start_to_end(name, n_steps, t_end, t_start):
    options = {"sde": SDE} if name in ("log_snr", "vp") else {}
    grid = pj.grids.get(name)(n_steps, t_end=t_end, t_start=t_start, **options)
    assert grid.shape == (n_steps + 1,) and grid.dtype == np.float64
    np.testing.assert_allclose([grid[0], grid[-1]], [t_start, t_end], rtol=1e-14)
    np.testing.assert_array_equal(pj.grids.validate(grid), grid)


@pytest.mark.parametrize("name", pj.grids.available())
def test_times_of_numpy_in_float32_do_not_round_the_grid(name):
    """The quadratic one started at 1.00000001 and was refused."""
    options = {"sde": SDE} if name in ("log_snr", "vp") else {}
    rounded = pj.grids.get(name)(np.int32(5), t_end=np.float32(0.01), t_start=np.float32(1.0), **options)
    np.testing.assert_array_equal(rounded, pj.grids.get(name)(5, t_end=float(np.float32(0.01)), **options))
    assert len(pj.grids.for_budget(name, pj.integrators.get("ddim"), 6.0, **options)) == 6


@pytest.mark.parametrize("rho", ["x", 0.0, -1.0, np.nan, None])
def test_a_wrong_rho_is_named(rho):
    for grid in (pj.grids.power, pj.grids.edm):
        with pytest.raises(ValueError, match="rho=.* must be a finite number > 0"):
            grid(5, rho=rho)


def test_grids_are_what_they_are_called():
    np.testing.assert_allclose(np.diff(pj.grids.uniform(10)), -0.0999, rtol=1e-12)
    np.testing.assert_allclose(pj.grids.power(10, rho=1.0), pj.grids.uniform(10), rtol=1e-12)
    roots = pj.grids.power(10, rho=7.0) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-10)
    steps = np.diff(pj.grids.quadratic(10))
    np.testing.assert_allclose(np.diff(steps), np.diff(steps)[0], rtol=1e-10)  # step lengths fall linearly
    assert steps[0] < steps[-1] < 0  # the largest first
    for sde in (SDE, pj.sde.VPSDE()):
        grid = pj.grids.log_snr(10, sde=sde)
        mu = sde.mean(grid)
        snr = (np.swapaxes(mu, 1, 2) @ np.linalg.inv(sde.cov(grid)) @ mu)[:, 0, 0]
        np.testing.assert_allclose(np.diff(np.log(snr)), np.log(snr[-1] / snr[0]) / 10, rtol=1e-6)
    # The rate of this VP diffusion grows in proportion to time, so it has the time that the grid is quadratic in.
    vp, other = pj.sde.VPSDE(beta_min=0.0, beta_max=10.0), pj.sde.EDM()
    levels = vp.sigma(pj.grids.power(10, t_end=0.01, rho=2.0))
    first, last = (float(other.time(level)) for level in (levels[0], levels[-1]))
    np.testing.assert_allclose(other.sigma(pj.grids.vp(10, last, first, sde=other)), levels, rtol=1e-8)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0.1, 0.5, 1.0], r"strictly descending.*grid\[::-1\]"),
        ([1.0, 0.5, 0.5], r"grid\[1\] = 0.5 is followed by 0.5"),
        ([1.0, 0.5, 0.0], "1.0 to 0.0"),
        ([1.5, 0.5], r"\(0, 1\]"),
        ([1.0, np.nan, 0.1], "finite"),
        ([1.0], "at least 2"),
        ([[1.0, 0.5]], "one-dimensional"),
        ([1.0, "x"], "grid=.*must be at least 2 falling times"),
    ],
)
def test_bad_grids_are_named(grid, message):
    with pytest.raises(ValueError, match=message):
        pj.tabulate(pj.integrators.get("euler"), SDE, np.array(grid))


@pytest.mark.parametrize("t_end", [0.0, -1e-3, 1.0, 2.0])
@pytest.mark.parametrize("name", ["uniform", "quadratic", "power"])
def test_bad_ends_are_named(name, t_end):
    with pytest.raises(ValueError, match=f"0 < t_end < t_start <= 1, got t_end={t_end}"):
        pj.grids.get(name)(10, t_end=t_end)


@pytest.mark.parametrize("nfe", [10.5, "10", None, True, np.float32(10.5)])
def test_a_budget_that_is_no_count_is_not_called_too_small(nfe):
    with pytest.raises(ValueError) as caught:
        pj.Setting("ddim").table(SDE, nfe)
    assert str(caught.value) == f"nfe={nfe!r} must be an integer >= 2"


@pytest.mark.parametrize("make", [jnp.int32, np.array], ids=["jax", "numpy"])
def test_counts_that_are_arrays_are_led_to_numbers(make, few_digits):
    takers = {
        "nfe": lambda count: pj.Setting("ddim").table(SDE, count),
        "n_steps": pj.grids.uniform,
        "n": lambda count: pj.generate(few_digits, n=count, nfe=4),
    }
    for name, take in takers.items():
        with pytest.raises(
            ValueError, match=rf"^{name}=.* must be an integer >= .*, and no array: give int\({name}\)$"
        ):
            take(make(4))


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown grid 'quadratc'. Did you mean 'quadratic'?"):
        pj.grids.for_budget("quadratc", pj.integrators.get("euler"), 10)
    with pytest.raises(ValueError, match="n_steps=0"):
        pj.grids.uniform(0)
    with pytest.raises(ValueError, match="rho=-1.0"):
        pj.grids.power(5, rho=-1.0)
    for name in ("log_snr", "vp"):
        with pytest.raises(ValueError, match=f"the {name} grid depends on the SDE: pass sde="):
            pj.grids.get(name)(5)
    with pytest.raises(ValueError, match="n_steps='10'"):
        pj.grids.uniform("10")
    with pytest.raises(ValueError, match="nfe=10.5"):
        pj.grids.for_budget("uniform", pj.integrators.get("euler"), 10.5)
