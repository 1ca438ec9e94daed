"""EDM's samplers on EDM's networks: the samples of the original, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from neighbours import DIRECTORY, check, filled, load, nhwc
from psld_jax.convert import edm as origin
from psld_jax.convert.origins import Asked

import psld_jax as pj
from psld_jax._runtime.abstract import shapes_of
from psld_jax.models import edm
from psld_jax.models.edm_plan import EDMConfig
from psld_jax.sde.one_block import OneBlock


@pytest.fixture(scope="module")
def networks():
    made = {}

    def network(name):
        if name not in made:
            converted = origin.read(DIRECTORY / f"{name}.pkl", Asked())
            config = EDMConfig(**converted.network["config"])
            abstract = shapes_of(lambda rngs: edm.EDM(config, rngs=rngs))
            made[name] = filled(abstract, converted.weights["ema"], jnp.float64)
        return made[name]

    return network


def karras(low, high, n):
    return np.linspace(high ** (1 / 7), low ** (1 / 7), n) ** 7


class VarianceTime(OneBlock):
    """EDM's "ve": the state is the data plus noise, and time is its variance, up to 100^2."""

    def alpha(self, t):
        return np.ones_like(t)

    def std(self, t):
        return 100 * np.sqrt(t)

    def alpha_rate(self, t):
        return np.zeros_like(t)

    def std_rate(self, t):
        return 50 / np.sqrt(t)

    def gain(self, t, s):
        return 100 * (np.sqrt(t) - np.sqrt(s))


VP = pj.sde.get("vpsde", beta_min=0.1, beta_max=20.0).predicting("data")
VE = VarianceTime().predicting("data")
HEUN, EULER = ("edm_heun", {}), ("euler_edm", {})
CHURN = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
VP_CHURN = {"S_churn": 30, "S_min": 0.01, "S_max": 1, "S_noise": 1.007}
#: A path and times, or noise levels of EDM's; ``None`` for those that the original called the network at.
CASES = {
    ("edm_ddpmpp_uncond", "heun"): (HEUN, karras(0.002, 80, 18)),
    ("edm_ddpmpp_uncond", "churn"): (("edm_heun", CHURN), karras(0.002, 80, 18)),
    ("edm_ddpmpp_uncond", "edm_alpha"): (("edm_heun", {"alpha": 0.5}), karras(0.002, 80, 10)),
    ("edm_ncsnpp_cond_augment", "heun"): (HEUN, karras(0.002, 80, 18)),
    ("iddpm_adm_heads", "heun"): (HEUN, None),
    ("iddpm_adm_heads", "iddpm_euler"): (EULER, None),
    ("iddpm_adm_heads", "iddpm_heun"): (HEUN, None),
    ("ve_ncsnpp", "heun"): (HEUN, karras(0.02, 80, 18)),
    ("ve_ncsnpp", "ve_euler"): (("euler", {}), (VE, np.geomspace(1, 0.0002**2, 18))),
    ("ve_ncsnpp", "ve_heun"): (("heun", {}), (VE, np.geomspace(1, 0.0002**2, 12))),
    ("vp_ddpmpp", "vp_churn"): (("edm_heun", {"clock": "t", **VP_CHURN}), (VP, np.linspace(1, 1e-3, 12))),
    ("vp_ddpmpp", "vp_euler"): (("euler", {}), (VP, np.linspace(1, 1e-3, 18))),
    ("vp_ddpmpp", "vp_heun"): (("edm_heun", {"clock": "t"}), (VP, np.linspace(1, 1e-3, 12))),
}


def levels_of(sde, t):
    """``alpha`` and ``sigma`` on the device, where a spline would leave 1e-10."""
    if sde is VE:
        return 1.0, 100 * jnp.sqrt(t)
    if sde is VP:
        b = 0.1 * t + 0.5 * 19.9 * t**2
        return jnp.exp(-b / 2), jnp.sqrt(jnp.expm1(b))
    return 1.0, sde.sigma_max * t


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id="-".join(c), marks=[] if c[1] == "churn" else pytest.mark.slow) for c in CASES],
)
def test_samples_are_those_of_the_original(case, networks):
    """The whole run in float64, recorded noise included: 1e-12, ten times what adding in another order leaves."""
    (name, run), ((sampler, hyper), where) = case, CASES[case]
    description, data = load(name)
    network = networks(name)
    if not isinstance(where, tuple):
        calls = data[f"{run}__sigma_calls_f64"]
        levels = np.unique(calls)[::-1] if where is None else where
        where = pj.sde.get("edm", sigma_max=levels[0]).predicting("data"), levels / levels[0]
    sde, grid = where
    labels = jnp.asarray(data["labels"][:2]) if description["runs"][run]["labels"] else None

    def eps_fn(z, t):
        alpha, sigma = levels_of(sde, t)
        return (network(z[0] / alpha, jnp.broadcast_to(sigma, (2,)), labels, None),)

    table = pj.tabulate(pj.integrators.get(sampler, **hyper), sde, grid, denoise="euler")
    assert table.nfe == description["runs"][run]["nfe"]
    z_T = jnp.asarray(nhwc(data["latents"].astype(np.float64)) * float(sde.std(np.float64(1.0))))
    noise = (jnp.asarray(nhwc(data[f"{run}__draws"][: table.num_draws])),) if table.num_draws else None
    z = pj.sample(eps_fn, table, (z_T,), noise=noise)
    check(np.asarray(z[0]), nhwc(data[f"{run}__final_f64"]), 1e-12, case)
