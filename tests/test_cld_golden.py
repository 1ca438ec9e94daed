"""CLD-SGM: its diffusion, its mixed score, and the outputs of its networks, from the files of its trainer."""

import math

import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from neighbours import DIRECTORY, check, filled, load, nhwc
from psld_jax.convert import cld_sgm
from psld_jax.convert.origins import Asked

import psld_jax as pj
from psld_jax import models

CASES = sorted(path.stem for path in DIRECTORY.glob("*.pth"))
#: What runs by default, the others are slow; each with the weights of one set.
QUICK = {("cld_cifar_like", "float64"), ("cld_plain_dsm", "float64"), ("vpsde_mixed", "float32")}


def overrides(c):
    """What the file does not say, of the original's configuration in our terms."""
    cld = c["sde"] == "cld"
    rate = 2.0 if cld else 1.0
    told = {
        "model.image_size": c["image_size"],
        "model.nonlinearity": c["nonlinearity"],
        "model.skip_rescale": c["skip_rescale"],
        "model.fir": c["use_fir"],
        "model.fir_kernel": tuple(map(int, c["fir_kernel"].split(","))),
        "sde.beta_min": rate * c["beta0"],
        "sde.beta_max": rate * (c["beta0"] + c["beta1"]),
        "sde.mixed": c["mixed_score"],
    }
    if cld:
        told |= {"sde.mass_inv": c["m_inv"], "sde.kappa": c["gamma"]}
        told |= {"sde.objective": c["cld_objective"], "sde.jitter": c["numerical_eps"]}
    return tuple(f"{name}={value}" for name, value in told.items())


def diffusion(found):
    return pj.sde.get(found.sde["name"], **{key: value for key, value in found.sde.items() if key != "name"})


@pytest.fixture(scope="module")
def converted():
    """What the converter reads from each file, both sets of weights."""
    return {
        name: cld_sgm.read(DIRECTORY / f"{name}.pth", Asked("", overrides(load(name)[0]["config"]), "both"))
        for name in CASES
    }


@pytest.mark.parametrize("name", CASES)
def test_what_is_read(name, converted):
    description, _ = load(name)
    c, found = description["config"], converted[name]
    options = found.network["config"]
    assert options["nf"] == c["n_channels"] and options["num_res_blocks"] == c["n_resblocks"]
    assert options["ch_mult"] == tuple(map(int, c["ch_mult"].split(",")))
    assert options["attn_resolutions"] == tuple(map(int, c["attn_resolutions"].split(",")))
    assert all(options[key] == c[key] for key in ("progressive", "progressive_input", "embedding_type"))
    assert found.sde["name"] == c["sde"]
    assert found.image_shape == (c["image_size"], c["image_size"], c["image_channels"])
    assert found.fields == ({"train.objective": c["cld_objective"]} if c["sde"] == "cld" else {})
    assert list(found.weights) == ["ema", "online"]
    assert f"{description['parameters']:,} parameters" in found.notes[0]
    assert found.metadata["step"] == description["step"]


@pytest.mark.parametrize("name", CASES)
def test_the_diffusion_is_theirs(name, converted):
    """Their covariances come from differences of numbers near 1, so near t = 0 they are the less exact ones."""
    _, data = load(name)
    sde, t = diffusion(converted[name]), data["t"]
    scale = sde.score_matrix(t)[:, -1, -1]
    np.testing.assert_allclose(scale, data["noise_multiplier"][:, 0], rtol=1e-8)
    np.testing.assert_allclose(scale[2:], data["noise_multiplier"][2:, 0], rtol=1e-13)
    if "var_xv" not in data:
        np.testing.assert_allclose(sde.score_skip(t)[:, 0, 0], -np.ones(len(t)) * sde.prediction.count("mixed"))
        return
    cov = sde.cov(t, np.zeros((2, 2)) if sde.objective == "dsm" else None)
    for (i, j), key in (((0, 0), "var_xx"), ((0, 1), "var_xv"), ((1, 1), "var_vv")):
        np.testing.assert_allclose(cov[:, i, j], data[key][:, 0], rtol=1e-7)
        np.testing.assert_allclose(cov[2:, i, j], data[key][2:, 0], rtol=1e-11)  # xv vanishes at t = 1, too
    np.testing.assert_allclose(sde.cov(t)[:, 1, 1], data["var_vv_mixed"][:, 0], rtol=1e-13)
    np.testing.assert_allclose(sde.score_skip(t)[:, 1, 1], -sde.mixed / data["var_vv_mixed"][:, 0], rtol=1e-13)


@pytest.mark.parametrize("weights", ["online", "ema"])
@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in QUICK else pytest.mark.slow)
        for name in CASES
        for dtype in ("float32", "float64")
    ],
)
def test_network_and_score(name, dtype, weights, converted):
    description, data = load(name)
    found, sde = converted[name], diffusion(converted[name])
    network = filled(models.abstract(models.NCSNppConfig(**found.network["config"])), found.weights[weights], dtype)
    states = nhwc(data["u"])
    levels, n = states.shape[:2]
    times = np.repeat(data["t"], n)
    flat = jnp.asarray(states.reshape(-1, *states.shape[2:]), dtype)
    out = np.asarray(models_support.run(network, flat, jnp.asarray(times, dtype)), np.float64)
    out = out.reshape(levels, n, *out.shape[1:])
    scale, skip = sde.score_matrix(data["t"])[:, -1, -1], sde.score_skip(data["t"])[:, -1, -1]
    score = np.einsum("s,s...->s...", skip, states[..., -out.shape[-1] :]) + np.einsum("s,s...->s...", scale, out)
    prefix, suffix = {"online": "raw", "ema": "ema"}[weights], "_f64" if dtype == "float64" else ""
    own = description["float32_against_float64"]["by_level"]
    for kind, actual in (("net", out), ("score", score)):
        expected = nhwc(data[f"{prefix}_{kind}{suffix}"])
        for i in range(levels):
            tolerance = max(1e-5, 10 * own[f"{prefix}_{kind}"][i])
            if suffix:  # the factor of their score is 2e-9 off at t = 1e-5, see above
                tolerance = 1e-10 if kind == "net" or i > 0 else 1e-8
            check(actual[i], expected[i], tolerance, f"{kind}[{i}]")


def test_the_score_of_the_position_is_not_needed(rng):
    """For one data point, ``E[x_0 | z]`` from the exact score of the velocity is that point."""
    sde, x0 = pj.sde.CLD(mixed=True, kappa=0.04), 0.7
    for t in (1e-3, 0.1, 0.9):
        mu, cov = sde.mean(t), sde.cov(t)
        z = mu * x0 + np.linalg.cholesky(cov) @ rng.standard_normal((2, 1))
        score = -np.linalg.solve(cov, z - mu * x0)[1]
        out = (score - sde.score_skip(t)[1, 1] * z[1]) / sde.score_matrix(t)[1, 1]
        u, v = sde.denoiser(t)
        np.testing.assert_allclose(u @ z + v @ np.array([[0.0], [out[0]]]), x0, rtol=1e-8)


def test_a_configuration_by_name_and_what_is_missing():
    path = DIRECTORY / "cld_cifar_like.pth"
    with pytest.raises(ValueError, match=r"it cannot tell .*sde.mixed.*--config cld_cifar10"):
        cld_sgm.read(path, Asked())
    with pytest.raises(ValueError, match="model.nf is 128, the file implies 8"):
        cld_sgm.read(path, Asked("cld_cifar10"))
    with pytest.raises(ValueError, match="mass_inv=-1.0 must be a finite number > 0"):
        pj.sde.CLD(mass_inv=-1.0)
    with pytest.raises(ValueError, match="unknown objective 'hms'. Did you mean 'hsm'"):
        pj.sde.CLD(objective="hms")
    with pytest.raises(ValueError, match="mixed must be False"):
        pj.sde.CLD(mixed=True).preconditioned(0.5)


def test_the_published_network():
    """Dockhorn et al. (2022) say 108M."""
    config = pj.build.load_config("cld_cifar10")
    options = pj.build.network_options(config)
    assert options.returned_ch == 3
    size = sum(math.prod(p.shape) for p in models.source_parameters(options))
    assert size == pytest.approx(108e6, rel=0.005)
    sde = pj.build.build_sde(config)
    assert sde.nu == 4.0 and sde.mixed
