"""Denoisers and flow networks as models: clocks, inputs, what is returned; and all of the library with VE and flow."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeds import generator

import psld_jax as pj
from psld_jax.sampling.generate import prepare

GOLDEN = np.load(Path(__file__).parent / "golden" / "paths.npz")
DATA = generator("test_denoisers").uniform(-1, 1, (20, 2, 2, 1))
EDM = pj.sde.EDM()


def exact_denoiser(x, sigma):
    """``E[x_0 | x]`` of points smoothed by 0.1, at noise levels ``[n]``; by the formula, without the library."""
    points, total = DATA.reshape(20, -1), sigma[:, None] ** 2 + 0.1**2
    flat = x.reshape(len(x), -1)
    logits = -((flat[:, None] - points) ** 2).sum(-1) / (2 * total)
    mean = jax.nn.softmax(logits, axis=-1) @ points
    return (mean * sigma[:, None] ** 2 / total + flat * 0.1**2 / total).reshape(x.shape)


@pytest.mark.parametrize("sde", [EDM, pj.sde.VESDE(), pj.sde.VPSDE(), pj.sde.SubVP(), pj.sde.Discrete()], ids=repr)
def test_a_denoiser_is_a_model_of_every_path(sde, rng):
    """Called with x / alpha and sigma: the same E[x_0 | x] for all of them, and the eps of the exact score."""
    model = pj.from_denoiser(exact_denoiser, sde, (2, 2, 1))
    y = jnp.asarray(DATA[:3] + 0.5 * rng.standard_normal((3, 2, 2, 1)))
    t = float(sde.time(0.5))
    x = float(sde.alpha(t)) * y
    wanted = exact_denoiser(y, jnp.full(3, 0.5))
    # 1e-7: sigma and 1 / alpha are splines of 1e-9.
    np.testing.assert_allclose(model.denoise(x, t), wanted, atol=1e-7)
    np.testing.assert_allclose(model.denoise((x,), t), wanted, atol=1e-7)
    np.testing.assert_allclose(jax.jit(model.denoise)(x, t), wanted, atol=1e-7)
    exact = pj.Model(sde, pj.scores.mixture(DATA, 0.1, sde), model.config, (2, 2, 1))
    np.testing.assert_allclose(exact.denoise(x, t), wanted, atol=1e-7)


def test_denoise_in_phase_space_and_preconditioned():
    """For data with one point E[x_0 | z] is that point, whatever z, the diffusion and the prediction are."""
    point = DATA[:1]
    config = pj.load("digits").config
    for sde in (pj.sde.PSLD(), pj.sde.PSLD().preconditioned(0.5), EDM.preconditioned(), pj.sde.Flow()):
        model = pj.Model(sde, pj.scores.mixture(np.concatenate([point, point]), 1e-4, sde), config, (2, 2, 1))
        z = sde.prior_sample(jax.random.key(0), (2, 2, 2, 1), np.float64)
        for t in (0.3, 1.0):
            np.testing.assert_allclose(model.denoise(z, t), np.concatenate([point, point]), atol=1e-5)
    with pytest.raises(ValueError, match="z has 2 blocks"):
        model.denoise((z[0], z[0]), 0.5)
    for t, message in (
        (0.0, "nothing is left"),
        (1.5, r"t must lie in \[0, 1\]"),
        (np.array([0.1, 0.2]), "one number"),
    ):
        with pytest.raises(ValueError, match=message):
            model.denoise(z, t)
    with pytest.raises(ValueError, match="z holds int32, not floating-point numbers"):
        model.denoise(z[0].astype(np.int32), 0.5)
    np.testing.assert_array_equal(model.denoise(z, np.array([0.3])), model.denoise(z, 0.3))


@pytest.mark.parametrize("case", ["edm", "vp", "iddpm"])
def test_denoisers_of_the_original(case):
    """The network's recorded output, called at the recorded noise label, gives the denoiser's recorded output.

    iDDPMPrecond rounds the label, not the level, to its table; ours is a real number: the nearest is the same.
    """
    levels, x = GOLDEN[f"{case}_sigma"].astype(np.float64), GOLDEN[f"{case}_x"].astype(np.float64)
    raw, denoised, labels = (GOLDEN[f"{case}_{name}"] for name in ("F", "D", "c_noise"))
    if case == "iddpm":
        # Its table falls with the number, and the network counts from the other end, as DDPM does.
        u = GOLDEN["iddpm_u"].astype(np.float64)[-2::-1]
        sde, times = pj.sde.Discrete(alphas_cumprod=1 / (1 + u**2)), "index"
    else:
        sde, times = (EDM.preconditioned(), None) if case == "edm" else (pj.sde.VPSDE(0.1, 20.0), "999 t")
    for i, (level, label) in enumerate(zip(levels, labels[:, 0], strict=True)):
        if label < 0:
            continue  # a level that the original rounds to no noise at all
        seen, t = [], float(sde.time(level))

        def network(images, told, i=i, seen=seen):
            seen.append(told)
            return jnp.asarray(raw[i][None])

        if case == "edm":  # its F is what a network of the preconditioned path predicts
            out = (jnp.moveaxis(network(None, np.log(level)[None] / 4), 1, -1),)
            model = pj.Model(sde, lambda z, t, out=out: out, pj.load("digits").config, (2, 2, 3))
        else:  # learned variances, the second half of iDDPM's channels, are dropped
            model = pj.from_function(network, sde, (2, 2, 3), times=times, channels_first=True, inputs="path")
        state = jnp.asarray(float(sde.alpha(t)) * np.moveaxis(x[i], 0, -1)[None])
        # D is x - sigma F with terms of up to 80; a spline of 1e-9 between them.
        np.testing.assert_allclose(
            np.moveaxis(model.denoise(state, t)[0], -1, 0), denoised[i], rtol=1e-7, atol=1e-8 * max(1.0, level)
        )
        np.testing.assert_allclose(seen[0][0], label, rtol=1e-7, atol=1e-9 if case != "iddpm" else 0.5)


def test_clocks_and_inputs():
    """What the function is given, for every name of a clock and of an input."""
    seen = {}

    def record(name):
        def predict(x, t):
            seen[name] = (x[0, 0, 0, 0], t[0])
            return x

        return predict

    sde, t, z = pj.sde.Discrete(), 0.3, jnp.full((2, 2, 2, 1), 2.0)
    for name in pj.scores.CLOCKS:
        pj.scores.function(record(name), sde, times=name)((z,), t)
    sigma = float(sde.sigma(t))
    expected = {"t": t, "999 t": 999 * t, "index": 299, "sigma": sigma, "log sigma / 4": np.log(sigma) / 4}
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name][1], value, rtol=1e-8)
    edm, s = EDM, float(EDM.time(3.0))
    for path, time, name, factor in (
        (sde, t, "path", 1.0),
        (sde, t, "data", 1 / sde.alpha(t)),
        (edm, s, "data", 1.0),
        (edm, s, "unit", 10**-0.5),
    ):
        pj.scores.function(record(name), path, inputs=name)((z,), time)
        np.testing.assert_allclose(seen[name][0], 2 * factor, rtol=1e-8)


@pytest.mark.slow
def test_the_same_samples_from_every_prediction():
    """A flow network, told as what it is or as data or velocity, from t = 1 on: one model in other words."""
    sde = pj.sde.Flow()
    data = pj.scores.mixture(DATA, 0.1, sde.predicting("data"))

    def network(predicts):
        def predict(x, t):
            (x0,) = data((x,), t[0])
            p, r = 1.0, 0.0
            if predicts == "flow":
                p, r = -1 / t[0], 1 / t[0]
            elif predicts == "velocity":
                p, r = -((1 - t[0]) ** 2 + t[0] ** 2) / t[0], (1 - t[0]) / t[0]
            return p * x0 + r * x

        return pj.from_function(predict, sde, (2, 2, 1), predicts=predicts)

    images = [pj.generate(network(p), "exponential_multistep", nfe=6, n=2) for p in ("data", "flow", "velocity")]
    np.testing.assert_allclose(images[1], images[0], atol=1e-4)  # float32
    np.testing.assert_allclose(images[2], images[0], atol=1e-4)
    assert np.isfinite(images[0]).all() and images[0].std() > 0.1


def test_labels_reach_the_function():
    def predict(x, t, labels=None):
        return x if labels is None else labels[:, None, None, None] * jnp.ones_like(x)

    model = pj.from_denoiser(predict, EDM, (2, 2, 1), n_classes=3)
    images = pj.generate(model, "ddim", nfe=3, n=2, label=np.array([0, 1]))
    np.testing.assert_allclose(images[0], 0, atol=1e-4)  # the last step goes to E[x_0 | x], the label itself
    np.testing.assert_allclose(images[1], 1, atol=1e-4)
    with pytest.raises(ValueError, match="must lie in 0 to 2"):
        pj.generate(model, "ddim", nfe=3, n=2, label=3)


@dataclasses.dataclass
class UNetOutput:
    sample: object


X = jnp.zeros((1, 2, 2, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.scores.function(lambda x, t: {"sample": x}, EDM)((X,), 0.5), "a dictionary with 'sample': wrap it"),
        (lambda: pj.scores.function(lambda x, t: UNetOutput(x), EDM)((X,), 0.5), "a UNetOutput with a .sample"),
        (lambda: pj.scores.function(lambda x, t: (x, t), EDM)((X,), 0.5), "returns a tuple"),
        (lambda: pj.scores.function(lambda x, t: x[:, :1], EDM)((X,), 0.5), "the network returns"),
        (lambda: pj.scores.function(None, EDM, times="999t"), "Did you mean '999 t'"),
        (lambda: pj.scores.function(None, EDM, times="index"), "discrete_times"),
        (lambda: pj.scores.function(None, pj.sde.Flow(), times="sigma"), "infinite at t = 1"),
        (lambda: pj.scores.function(None, pj.sde.Flow(), inputs="data"), "vanishes at t = 1"),
        (lambda: pj.scores.function(None, EDM, inputs="raw"), "unknown input of the network 'raw'"),
        (lambda: pj.scores.function(None, pj.sde.PSLD(), inputs="unit"), "use 'path'"),
        (lambda: pj.scores.function(None, pj.sde.PSLD(), predicts="flow"), "one block, not of 2"),
        (lambda: pj.from_denoiser(exact_denoiser, pj.sde.PSLD()), "one block; .* has 2"),
        (lambda: pj.from_denoiser(exact_denoiser, pj.sde.Flow()), "infinite at t = 1"),
        (lambda: pj.from_denoiser(exact_denoiser, EDM.preconditioned()), "is preconditioned"),
        (lambda: pj.generate(pj.from_denoiser(exact_denoiser, EDM), n=1), "give from_denoiser an image_shape"),
        (lambda: pj.generate(pj.load("digits"), "ddim", sigmas=[1, 0.1], timesteps=[1, 0.5]), "give one of them"),
        (lambda: pj.generate(pj.load("digits"), sigmas=[1, 0.1]), "name an integrator"),
        (lambda: pj.load("digits", {"sde.name": "flow", "sde.shift": -1.0}), "shift=-1.0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_given_levels_and_timesteps_are_the_grid():
    model = pj.from_denoiser(exact_denoiser, EDM, (2, 2, 1))
    levels = [80.0, 10.0, 1.0, 0.1, 0.0]
    table = prepare(model, "heun", sigmas=levels).table
    np.testing.assert_allclose(EDM.sigma(table.times), levels)
    assert table.nfe == 2 * 3 + 1
    assert prepare(model, "ddim").table.times[-2] == EDM.t_end == 0.002 / 80
    np.testing.assert_allclose(prepare(model, "ddim", timesteps=[1.0, 0.5]).table.times, [1.0, 0.5, 0.0])


def test_the_digits_by_a_flow():
    """A model by name: ten evaluations draw digits, from t = 1, where there is no signal."""
    model = pj.load("digits", {"sde.name": "flow", "data.num_points": 200})
    drawn = pj.generate(model, nfe=10, n=4)
    nearest = np.abs(drawn[:, None] - model.data).mean(axis=(2, 3, 4)).min(axis=1)
    assert nearest.max() < 0.1  # up to their smoothing of 0.05


@pytest.mark.parametrize("options", [{"label": 1, "guidance": 2.0}, {"known": True, "resample": 3}], ids=str)
@pytest.mark.parametrize(("sampler", "hyper"), [("heun", {}), ("restart", {"intervals": ((0.3, 2.0, 3, 2),)})])
def test_given_levels_stay_whatever_the_conditions_cost(sampler, hyper, options):
    """Guidance takes two evaluations and resampling repeats steps; without a budget there is nothing to keep to."""
    levels, digits = [80.0, 10.0, 1.0, 0.1], pj.load("digits", {"sde.name": "edm"})
    if "known" in options:
        options = {**options, "known": digits.data[:1], "mask": np.ones((8, 8, 1))}
    model = dataclasses.replace(digits, n_classes=3)
    table = prepare(model, sampler, sigmas=levels, **hyper, **options).table
    np.testing.assert_allclose(np.unique(table.times)[:0:-1], model.sde.time(np.array(levels)), rtol=1e-12)


def test_a_field_that_is_not_set_is_the_diffusion_s_own():
    for name, levels in (("edm", (0.002, 80.0)), ("vesde", (0.01, 50.0))):
        sde = pj.load("digits", {"sde.name": name}).sde
        assert (sde.sigma_min, sde.sigma_max) == levels
        assert pj.load("digits", {"sde.name": name, "sde.sigma_max": 20.0}).sde.sigma_max == 20
    config = pj.build.load_config("default")
    assert config.sde.sigma_min is None and config.sde.num_steps == 1000
    again = pj.build.from_dict(json.loads(config.to_json()))
    assert again.sde.to_dict() == config.sde.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vesde", "flow"])
def test_everything_runs_with(name, rng):
    """Samples, likelihood, codes, inpainting, a measurement and the tuner, with exact scores."""
    digits = pj.load("digits", {"sde.name": name})
    drawn = pj.generate(digits, nfe=10, n=4)
    nearest = np.abs(drawn[:, None] - digits.data).mean(axis=(2, 3, 4)).min(axis=1)
    assert nearest.max() < 0.1  # digits, up to their smoothing of 0.05
    sde = digits.sde
    model = pj.Model(sde, pj.scores.mixture(DATA, 0.1, sde), digits.config, (2, 2, 1), DATA.astype(np.float32))
    noise = 0.1 * rng.standard_normal((2, 2, 2, 1))
    x = (DATA[:2] + noise).astype(np.float32)
    codes = pj.encode(model, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pj.decode(model, codes, rtol=1e-5, atol=1e-5), x, atol=2e-3)
    found = pj.log_likelihood(model, x, draws=1, rtol=1e-4, atol=1e-4, t_end=1e-4, divergence="exact")
    squares = ((x[:, None] - DATA) ** 2).sum(axis=(2, 3, 4))
    width = 0.1**2 + float(sde.std(1e-4)) ** 2  # VE has its smallest noise at t = 0 too
    wanted = np.log(np.exp(-squares / (2 * width)).mean(axis=1)) - 2 * np.log(2 * np.pi * width)
    np.testing.assert_allclose(found.nats, wanted, atol=0.02)  # 1e-4 a step, and a prior that is nearly the law at 1
    mask = np.array([1, 0]).reshape(1, 1, 2, 1)
    filled = pj.generate(model, "ancestral", nfe=8, n=2, known=x, mask=np.broadcast_to(mask, (1, 2, 2, 1)))
    np.testing.assert_array_equal(filled[:, :, 0], np.clip(x, -1, 1)[:, :, 0])
    operator = pj.operators.downsample(2)
    measured = np.tile(np.asarray(operator(x)), (32, 1, 1, 1))
    errors = []
    for condition in ({}, {"operator": operator, "measurement": measured}):
        drawn = pj.generate(model, "ddim", nfe=40, n=64, **condition)
        errors.append(np.sqrt(np.mean((np.asarray(operator(drawn)) - measured) ** 2)))
    # PiGDM takes p(x_0 | z) for one Gaussian, and these data are 20 points: 0.65 to 0.68 of the error of eight samples
    # without it, however many steps. That the posterior of Gaussian data is exact is tested in tests/test_steering.py.
    assert errors[1] < 0.8 * errors[0]
    tuning = pj.tune(model, nfe=(5,), samplers=("ddim",), num_samples=16, candidates=2, gradient_steps=0)
    assert np.isfinite(tuning.rows[0].score.distance)
