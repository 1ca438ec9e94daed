"""CLD-SGM's samplers on its networks: Euler-Maruyama, SSCS and the ODE, the samples of the original in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from neighbours import DIRECTORY, check, filled, load, nhwc
from psld_jax.convert import cld_sgm
from psld_jax.convert.origins import Asked
from scipy.integrate import solve_ivp
from test_cld_golden import diffusion, overrides

import psld_jax as pj
from psld_jax import models
from psld_jax.integrators import tableau

EM, SSCS = ("euler_maruyama", {}), ("sscs", {"jitter": 0.0})
MIDPOINT = ("edm_heun", {"clock": "t", "alpha": 0.5})
RUNS = {"em8": EM, "em8_quadratic": EM, "sscs8": SSCS, "ode_euler": ("euler", {}), "ode_midpoint": MIDPOINT}
CASES = [(p.stem, run) for p in sorted(DIRECTORY.glob("*.pth")) for run in load(p.stem)[0]["runs"]]


@pytest.fixture(scope="module")
def opened():
    made = {}

    def case(name):
        if name not in made:
            description, data = load(name)
            found = cld_sgm.read(DIRECTORY / f"{name}.pth", Asked("", overrides(description["config"]), "ema"))
            config = models.NCSNppConfig(**found.network["config"])
            network = filled(models.abstract(config), found.weights["ema"], jnp.float64)
            made[name] = description, data, diffusion(found), network
        return made[name]

    return case


def predicted(graph, state, z, t):
    """The network predicts the last block; nothing needs the others."""
    images = jnp.concatenate(z, axis=-1)
    out = nnx.merge(graph, state)(images, jnp.broadcast_to(t, len(images)))
    return (*(jnp.zeros_like(block) for block in z[:-1]), out)


def grid(run, options):
    end = options["sampling_eps"]
    if run.startswith("ode"):
        return np.append(np.arange(10, 0, -1) / 10, end)
    return pj.grids.get(options.get("striding", "uniform"))(options["n_discrete_steps"] - 1, t_end=end)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_samples_are_those_of_the_original(case, opened):
    """1e-10 of the largest value, which is of the velocity. Their denoising step follows the SDE after the ODE too."""
    name, run = case
    description, data, sde, network = opened(name)
    options = description["runs"][run]
    eps_fn = jax.tree_util.Partial(predicted, *nnx.split(network))

    def states(array):
        return sde.state(*map(jnp.asarray, np.split(nhwc(array.astype(np.float64)), sde.num_blocks, axis=-1)))

    z, nfe = states(data["start"]), options["nfe_reported"]
    last = tableau.denoising(sde, options["sampling_eps"], stochastic=True)
    if run == "ode":
        control = {"rtol": 1e-7, "atol": 1e-7, "step_control": "batch", "denoise": False}
        z, _ = pj.sample_ode(eps_fn, sde, z, t_end=options["sampling_eps"], **control)
    else:
        sampler, hyper = RUNS[run]
        table = pj.tabulate(pj.integrators.get(sampler, **hyper), sde, grid(run, options), denoise=False)
        assert table.nfe + last.nfe == nfe
        z = pj.sample(eps_fn, table, z, noise=states(data["draws"][: table.num_draws]) if table.num_draws else None)
    z = pj.sample(eps_fn, last, z)
    # Theirs is an adaptive solve of tolerance 1e-5, 1e-3 from the exact one, which ours is near.
    check(np.concatenate(z, axis=-1), nhwc(data[f"{run}__final_f64"]), 2e-3 if run == "ode" else 1e-10, case)


@pytest.mark.slow
def test_scipy_on_our_field(opened):
    """Their adaptive solver on ``dz/dt`` of ours: the same evaluations, and the same samples to 1e-8."""
    description, data, sde, network = opened("cld_cifar_like")
    eps_fn = jax.jit(jax.tree_util.Partial(predicted, *nnx.split(network)))
    start = nhwc(data["start"].astype(np.float64))

    def field(reverse, flat):
        z = tuple(np.split(flat.reshape(start.shape), 2, axis=-1))
        matrices = np.concatenate(sde.probability_flow(np.float64(1 - reverse)), axis=-1)
        parts = (*z, *map(np.asarray, eps_fn(z, jnp.float64(1 - reverse))))
        rate = [sum(a * part for a, part in zip(row, parts, strict=True)) for row in matrices]
        return -np.concatenate(rate, axis=-1).ravel()

    solved = solve_ivp(field, (0, 0.999), start.ravel(), rtol=1e-5, atol=1e-5, method="RK45")
    last = tableau.denoising(sde, 1e-3, stochastic=True)
    z = pj.sample(eps_fn, last, sde.state(*map(jnp.asarray, np.split(solved.y[:, -1].reshape(start.shape), 2, -1))))
    check(np.concatenate(z, axis=-1), nhwc(data["ode__final_f64"]), 1e-8)
