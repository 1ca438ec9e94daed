"""Samplers by name against the schedulers of diffusers: the same samples of a mixture, with the same noises."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

SHAPE, BANDWIDTH = (3, 4), 0.1
FINAL = {"lower_order_final": True}
TRAILING = {"timestep_spacing": "trailing"}
MULTISTEP, SDE = "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
LOG = {"variable": "log_snr"}

#: Scheduler, what differs from its defaults, the sampler here, its hyper-parameters, and whether it ends at zero.
CASES = [
    ("EulerDiscreteScheduler", TRAILING, "euler_edm", {}, True),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "euler_edm", {}, True),
    ("EulerAncestralDiscreteScheduler", TRAILING, "euler_ancestral", {}, True),
    ("HeunDiscreteScheduler", TRAILING, "edm_heun", {}, True),
    ("KDPM2DiscreteScheduler", TRAILING, "dpm2", {}, True),
    (MULTISTEP, {}, "dpm_solver_pp_2m", {}, True),
    (MULTISTEP, {"use_karras_sigmas": True}, "dpm_solver_pp_2m", {}, True),
    (MULTISTEP, {"solver_order": 3}, "dpm_solver_pp_3m", {"rule": "original", **FINAL}, True),
    (MULTISTEP, SDE, "dpm_solver_pp_2m_sde", {}, True),
    (MULTISTEP, {**SDE, "solver_order": 1}, "ancestral", {"order": 1}, True),
    ("DEISMultistepScheduler", {}, "deis", {"order": 2, **LOG, **FINAL}, False),
    ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, "deis", LOG, False),
    ("UniPCMultistepScheduler", {}, "unipc", {"order": 2, **FINAL}, True),
    ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", FINAL, True),
    (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh1", "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        "unipc",
        {"variant": "bh1"},
        False,
    ),
    ("SASolverScheduler", {}, "sa_solver", {"order": 2, "corrector": 2, "rule": "original", **FINAL}, False),
    (
        "SASolverScheduler",
        {"predictor_order": 3, "corrector_order": 4},
        "sa_solver",
        {"order": 3, "corrector": 4, "rule": "original", **FINAL},
        False,
    ),
]


def noise_of(x, sigma, data, xp):
    """The noise that a mixture predicts for ``x = (x_0 + sigma noise) / sqrt(1 + sigma^2)``."""
    variance = BANDWIDTH**2 + sigma**2
    difference = x[:, None] * xp.sqrt(1 + sigma**2) - data
    weights = -0.5 * xp.sum(difference**2, -1) / variance
    weights = xp.exp(weights - xp.max(weights, 1, keepdims=True))
    weights = weights / xp.sum(weights, 1, keepdims=True)
    return xp.sum(weights[..., None] * difference, 1) * sigma / variance


def by_the_scheduler(name, options, steps, data, x, noises, monkeypatch):
    """Its samples, and the scheduler."""
    left = iter(noises)
    drawn = importlib.import_module(getattr(diffusers, name).__module__)
    if hasattr(drawn, "randn_tensor"):
        monkeypatch.setattr(drawn, "randn_tensor", lambda shape, **_: torch.tensor(next(left)))
    given = {"tau_func": lambda t: 1.0} if name == "SASolverScheduler" else {}
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_schedule="linear", **options, **given)
    scheduler.set_timesteps(steps)
    x = torch.tensor(x) * float(scheduler.init_noise_sigma)
    levels = 0.5 * np.log((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double())
    for i, t in enumerate(scheduler.timesteps):
        # Of Karras's levels, DPMSolverMultistepScheduler rounds the number that it gives the network.
        at = np.log(scheduler.sigmas[i]) if options.get("use_karras_sigmas") else np.interp(t, range(1000), levels)
        sigma = np.exp(float(at))
        predicted = noise_of(scheduler.scale_model_input(x, t).double().numpy(), sigma, data, np)
        x = scheduler.step(torch.tensor(predicted), t, x).prev_sample
    return x.double().numpy(), scheduler


@pytest.mark.parametrize("steps", [6, 9])
@pytest.mark.parametrize("case", CASES, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(CASES)])
def test_samples_are_those_of_the_scheduler(case, steps, rng, monkeypatch):
    """They hold sigma in float32, and the last steps extrapolate it: 1e-7 to 8e-6 are what differs."""
    name, options, sampler, hyper, to_zero = case
    data, x, noises = rng.uniform(-1, 1, (5, SHAPE[1])), rng.normal(size=SHAPE), rng.normal(size=(steps, *SHAPE))
    wanted, scheduler = by_the_scheduler(name, options, steps, data, x, noises, monkeypatch)
    sde = pj.sde.Discrete(alphas_cumprod=scheduler.alphas_cumprod.double().numpy())
    sigmas = scheduler.sigmas.double().numpy()
    grid = pj.grids.from_sigmas(sde, np.unique(sigmas[sigmas > 0])[::-1])
    table = pj.tabulate(pj.integrators.get(sampler, **hyper), sde, grid, denoise="exponential" if to_zero else False)
    at = np.unique(table.tau)
    known = np.array([float(sde.sigma(t)) for t in at])

    def eps_fn(z, t):
        return (noise_of(z[0], jnp.interp(t, at, known), jnp.asarray(data), jnp),)

    if scheduler.init_noise_sigma != 1:  # x_0 + sigma noise there, and that times alpha here
        x = x * float(scheduler.init_noise_sigma) * float(sde.alpha(grid[0]))
    recorded = (jnp.asarray(noises[: table.num_draws]),) if table.num_draws else None
    got = pj.sample(eps_fn, table, (jnp.asarray(x),), noise=recorded)
    assert jax.tree.leaves(got)[0].dtype == jnp.float64
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=2e-5)
