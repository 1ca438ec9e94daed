"""Bounds are said on the host: times, tolerances, steps."""

import numpy as np
import pytest

import psld_jax as pj
from psld_jax._runtime.checks import MIN_TIME


@pytest.mark.parametrize("name", pj.integrators.available())
def test_every_sampler_works_down_to_the_smallest_time_and_no_further(name, digits_model):
    integrator = pj.integrators.get(name)
    if not integrator.applies_to(digits_model.sde):
        pytest.skip("not for this diffusion")
    images = pj.generate(digits_model, name, nfe=24, n=1, t_end=1e-8, grid="quadratic")
    assert np.isfinite(images).all()
    with pytest.raises(ValueError, match=r"t_end.*at least 1e-09"):
        pj.generate(digits_model, name, nfe=24, n=1, t_end=MIN_TIME / 10)


BEYOND = {
    "sample_ode": lambda m, x: pj.generate(m, "rk45", n=1, t_end=1e-12),
    "encode": lambda m, x: pj.encode(m, x, t_end=1e-12),
    "decode": lambda m, x: pj.decode(m, m.sde.state(x, x), t_end=1e-12),
    "log_likelihood": lambda m, x: pj.log_likelihood(m, x, t_end=1e-12),
    "grid": lambda m, x: pj.grids.quadratic(5, t_end=1e-12),
    "own grid": lambda m, x: pj.generate(m, "ddim", nfe=3, n=1, grid=(1.0, 0.5, 1e-12)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_time_below_the_smallest_is_one_line(name, digits_model):
    with pytest.raises(ValueError, match=r"1e-09"):
        BEYOND[name](digits_model, np.asarray(digits_model.data[:1]))


def test_a_tolerance_that_the_dtype_does_not_resolve(digits_model):
    with pytest.raises(ValueError, match=r"rk45 with rtol=1e-12 and atol=1e-12 asks for more than float32 resolves"):
        pj.generate(digits_model, "rk45", n=1, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_solve_that_does_not_come_to_its_end_says_how_far_it_came(digits_model):
    with pytest.raises(ValueError, match=r"rk45 cannot meet .*from t=1 to 0\.001 it came to t=0\.\d+.*max_steps=5"):
        pj.generate(digits_model, "rk45", n=1, max_steps=5)
    with pytest.raises(ValueError, match=r"tsit5 cannot meet .*max_steps=5"):
        pj.log_likelihood(digits_model, digits_model.data[:1], draws=1, solver="tsit5", max_steps=5)
