"""DDIM, DDPM, DPM-Solver++ and Euler of diffusers on its networks: the samples of the original, in float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from neighbours import DIRECTORY, check, filled, load, nhwc
from psld_jax.convert import diffusers, mapping

import psld_jax as pj
from psld_jax.checkpoints.safetensors import SafeTensors
from psld_jax.models import families
from psld_jax.models.unet2d_source import source_parameters
from psld_jax.models.unet2d_structure import UNet2DConfig
from psld_jax.scores.family import IndexClock

PREDICTS = {"epsilon": "eps", "v_prediction": "velocity", "sample": "data"}
NETWORKS = ("class_sample", "ddpm_flat", "euler_scaled_linear", "vpred_cosine_ddim")
DDIM, SECOND = ("ddim", {}), ("dpm_solver_pp_2m", {})
THIRD, EULER = ("dpm_solver_pp_3m", {"rule": "original", "lower_order_final": True}), ("euler_edm", {})
CASES = {(name, run): sampler for name in NETWORKS for run, sampler in (("ddim10", DDIM), ("dpm10", SECOND))}
CASES |= {("vpred_cosine_ddim", "ddim10_trailing"): DDIM, ("vpred_cosine_ddim", "dpm10_third"): THIRD}
CASES |= {("euler_scaled_linear", run): EULER for run in ("euler10", "euler10_leading", "euler10_karras")}


#: Runs whose images are clipped. DDIM keeps the noise from before the clip; DDPM's noise follows.
CLIPPED = {(name, "ddim10_clip"): DDIM for name in NETWORKS}
CLIPPED |= {(name, "ddim10_eta"): ("ddim", {"eta": 0.6}) for name in NETWORKS}
CLIPPED |= {(name, "ddpm12"): ("ddpm", {"variance": "posterior"}) for name in NETWORKS}
CLIPPED[("ddpm_flat", "ddpm12")] = ("ddpm", {"variance": "forward"})
CLIPPED[("ddpm_flat", "ddpm12_small")] = ("ddpm", {"variance": "posterior"})
CASES |= CLIPPED

#: What runs by default: one network, since its compilation is what takes the time.
QUICK = {("class_sample", run) for run in ("ddim10", "ddim10_eta", "ddpm12")}


@functools.cache
def opened(name):
    """The case's description and arrays, and its network in float64."""
    description, data = load(f"diffusers_{name}")
    folder = DIRECTORY / f"diffusers_{name}"
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    config = UNet2DConfig(**diffusers._options(json.loads((folder / "config.json").read_text()))[0])
    parameters = source_parameters(config)
    with SafeTensors(folder / "diffusion_pytorch_model.safetensors") as source:
        tensors, _ = diffusers._names(source, {parameter.source for parameter in parameters})
        tree = mapping.fill(mapping.match(tensors, parameters))
    network = filled(families.abstract("unet2d", config), tree, jnp.float64)
    return description, data, network


def times(sde, data, run):
    if run.endswith("karras"):
        return pj.grids.from_sigmas(sde, data[f"{run}__sigmas"].astype(np.float64))
    return pj.grids.from_timesteps(sde, data[f"{run}__timesteps"].astype(np.float64))


def told(sde, data, run):
    """What the network is told at time ``t``: the number of the level."""
    if run.endswith("karras"):
        return pj.scores.discrete_times(data["alphas_cumprod"].astype(np.float64), sde)
    return IndexClock(sde.num_steps)


def start(sde, table, description, data, run):
    """Their first state; Euler's is ``x_0 + sigma n`` and may have too much noise for data of unit variance."""
    latents = nhwc(data["latents"].astype(np.float64))
    if "euler" in run:
        latents = latents * description["runs"][run]["init_noise_sigma"] * sde.alpha(table.tau[0])
    return jnp.asarray(latents)


def predicted(graph, state, clock, labels, z, t):
    return (nnx.merge(graph, state)(z[0], jnp.broadcast_to(clock(t), (2,)), labels),)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id="-".join(c), marks=[] if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_samples_are_those_of_the_original(case):
    """The whole run in float64. The schedulers but DDIM's compute with ``sigma`` in float32, also in such a run."""
    (name, run), (sampler, hyper) = case, CASES[case]
    description, data, network = opened(name)
    predicts = PREDICTS[description["scheduler"]["options"]["prediction_type"]]
    sde = pj.sde.Discrete(alphas_cumprod=data["alphas_cumprod"].astype(np.float64)).predicting(predicts)
    labels = jnp.asarray(data["class_labels"]) if "class_labels" in data else None
    clock = told(sde, data, run)

    eps_fn = jax.tree_util.Partial(predicted, *nnx.split(network), clock, labels)
    table = pj.tabulate(pj.integrators.get(sampler, **hyper), sde, times(sde, data, run), denoise="exponential")
    assert table.nfe == description["runs"][run]["steps"]
    if case in CLIPPED:
        bound = description["runs"][run]["config"]["clip_sample_range"]
        eps_fn = pj.scores.clipped(eps_fn, sde, bound, table=table if sampler == "ddim" else None)
    noise = (jnp.asarray(nhwc(data["draws"][: table.num_draws]).astype(np.float64)),) if table.num_draws else None
    z = pj.sample(eps_fn, table, (start(sde, table, description, data, run),), noise=noise)
    # A clip is read through splines in time, exact to 1e-9.
    tolerance = 1e-6 if sampler not in ("ddim", "ddpm") else 1e-7 if case in CLIPPED else 1e-10
    check(np.asarray(z[0]), nhwc(data[f"{run}__final_f64"]), tolerance, case)
