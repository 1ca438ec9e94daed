"""Training of networks with options of their own: EDM's loss and levels, what the network is told, a smoke run."""

import json
import types
from pathlib import Path

import edm_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from psld_jax.convert import convert
from rich.console import Console
from seeds import generator

import psld_jax as pj
from psld_jax import build
from psld_jax.training import losses, train
from psld_jax.training.step import create_state, make_train_step


def edm_config(**values):
    return build.override(build.load_config("edm_cifar10_uncond_vp"), values)


def test_the_loss_is_that_of_edm(rng):
    """``lambda(sigma) |D(x_0 + sigma n, sigma) - x_0|^2``, Karras et al. (2022), equation 3 and table 1."""
    loss = build.build_loss(edm_config())
    x0, noise = rng.standard_normal((2, 5, 4, 4, 3))
    t = loss.times(np.linspace(0.01, 1.0, 5))
    sigma = 80.0 * t

    def network(x, told):
        np.testing.assert_allclose(told, sigma, rtol=1e-12)
        return 0.5 * x + told[:, None, None, None] ** 0.5

    values, _ = loss(network, loss.coefficients(t), x0, None, (noise,))
    s = sigma[:, None, None, None]
    weight = (s**2 + 0.25) / (s * 0.5) ** 2
    np.testing.assert_allclose(
        values, (weight * (0.5 * (x0 + s * noise) + s**0.5 - x0) ** 2).mean((1, 2, 3)), rtol=1e-9
    )


class Told(nnx.Module):
    """A network that returns the labels that it is told."""

    def __init__(self):
        self.config, self.scale = types.SimpleNamespace(n_classes=3), nnx.Param(jnp.ones((), jnp.float32))

    def __call__(self, x, t, labels, *, deterministic=True, rngs=None):
        return self.scale * labels.astype(jnp.float32)


def test_labels_that_are_left_out_do_not_depend_on_what_jax_does_with_float64(key):
    """The draws had float64 where that is enabled, and so other bits."""

    def loss(network, coefficients, images, labels, noise):
        return network(images, coefficients), {}

    loss.reduce_mean, loss.num_noise = True, 1  # what a step asks of a loss
    net, transformation, labels = Told(), optax.sgd(0.1), np.zeros(32, np.int32)
    told = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            step = make_train_step(net, loss, transformation, lambda step: 0.1, label_dropout=0.5)
            images = jnp.zeros((32, 2, 2, 1), jnp.float32)
            told.append(step(create_state(net, transformation, False), key, images, labels, jnp.float32(1))[1]["loss"])
    np.testing.assert_array_equal(*told)
    assert set(np.asarray(told[0])) == {0.0, 3.0}


@pytest.mark.parametrize("mean, std", [(-1.2, 1.2), (-0.4, 1.0)])
def test_noise_levels_are_log_normal(mean, std):
    loss = build.build_loss(edm_config(**{"train.noise_mean": mean, "train.noise_std": std}))
    u = (np.arange(4000) + 0.5) / 4000
    log_sigma = np.log(80.0 * loss.times(u))
    assert np.mean(log_sigma) == pytest.approx(mean, abs=0.01)  # quantiles at 4000 points
    assert np.std(log_sigma) == pytest.approx(std, abs=0.01)
    assert np.all(np.isfinite(np.log(loss.times(np.array([1e-12, 1.0])))))


@pytest.mark.parametrize("precondition, name", [("vp", "vpsde"), ("ve", "vesde")])
def test_other_networks_of_edm_have_the_loss_of_their_own_path(precondition, name, rng):
    """VP and VE: ``|D - x_0|^2 / sigma^2`` at uniform times; the network is given ``x / alpha``."""
    config = edm_config(**{"model.edm.precondition": precondition, "sde.name": name, "train.noise": "time"})
    loss, sde = build.build_loss(config), build.build_sde(config)
    t = np.array([0.1, 0.5, 0.9])
    assert loss.times(t) is t
    x0, noise = rng.standard_normal((2, 3, 4, 4, 3))
    values, _ = loss(lambda x, told: x, loss.coefficients(t), x0, None, (noise,))
    np.testing.assert_allclose(values, (noise**2).mean((1, 2, 3)), rtol=1e-9)  # x / alpha - x_0 is sigma n
    assert loss.coefficients(t).t == pytest.approx(sde.sigma(t))


def test_a_discrete_process_is_trained_at_its_levels():
    config = build.override(
        build.load_config("default"),
        {"model.name": "unet2d", "sde.name": "discrete", "model.in_ch": 3, "model.out_ch": 3},
    )
    loss = build.build_loss(config)
    t = loss.times(np.array([1e-5, 1.2e-3, 0.5, 1.0]))
    np.testing.assert_allclose(t, [0.001, 0.002, 0.5, 1.0])
    np.testing.assert_allclose(loss.coefficients(t).t, [0, 1, 499, 999], atol=1e-9)
    with pytest.raises(ValueError, match="unknown distribution of noise levels 'normal'"):
        build.build_loss(build.override(config, {"train.noise": "normal"}))


def test_a_score_is_trained_by_the_objective_that_it_is_scaled_for(rng):
    """CLD-SGM's denoising objective: a known velocity at the start, in the loss and in the score."""
    values = {"model.name": "ncsnpp", "sde.name": "cld", "model.out_ch": 3, "sde.mixed": True, "sde.objective": "dsm"}
    config = build.override(build.load_config("default"), values)
    with pytest.raises(ValueError, match="config.train.objective='hsm' must be 'dsm', as config.sde.objective is"):
        build.build_loss(config)
    loss, sde = build.build_loss(build.override(config, {"train.objective": "dsm"})), build.build_sde(config)
    t, numbers = np.array([0.2, 0.7]), rng.standard_normal((5, 1))  # x_0, v_0 (two blocks), eps
    coefficients = loss.coefficients(t)
    score = sde.score_skip(t) @ (coefficients.kernel @ numbers) + sde.score_matrix(t)[..., -1:] * (
        coefficients.target @ numbers
    )
    factor = np.linalg.cholesky(sde.cov(t, np.zeros((2, 2))))
    expected = -np.linalg.solve(np.swapaxes(factor, -1, -2), np.broadcast_to(numbers[-2:], (2, 2, 1)))
    np.testing.assert_allclose(score[:, -1], expected[:, -1], rtol=1e-9)


def test_a_mixed_score_is_trained_for_what_it_leaves(rng):
    """The target makes the score exact: ``Cskip z + C out`` is the score of the kernel."""
    for sde in (pj.sde.CLD(mixed=True), pj.sde.VPSDE(mixed=True)):
        k = sde.num_blocks
        loss = losses.ScoreLoss(sde, 3 * k, 3)
        t = np.array([0.2, 0.7])
        coefficients = loss.coefficients(t)
        numbers = rng.standard_normal((1 + k, 1))  # x_0 and eps
        z = coefficients.kernel @ numbers
        score = -np.linalg.solve(sde.cov(t), z - sde.mean(t) * numbers[0])
        out = coefficients.target @ numbers
        found = sde.score_skip(t) @ z + sde.score_matrix(t)[..., -1:] * out
        np.testing.assert_allclose(found[:, -1], score[:, -1], rtol=1e-9)


@pytest.mark.slow
def test_training_goes_on_from_a_converted_network(tmp_path):
    """A few steps of EDM's loss on a file of EDM: it learns, and what was learned samples."""
    rng = generator(
        "test_training_goes_on_from_a_converted_network"
    )  # of the file's weights, which other seeds could make hard to learn from
    network = edm_files.network(edm_files.TINY, edm_files.arrays(edm_files.TINY, rng))
    convert(edm_files.write(tmp_path / "a.pkl", network), output=tmp_path / "converted")
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (64, 2, 2, 1), np.uint8))
    values = {
        "model.checkpoint": "",
        "train.init": str(tmp_path / "converted"),
        "data.name": "arrays",
        "data.path": str(tmp_path / "images.npy"),
        "train.steps": 30,
        "train.batch_size": 32,
        "train.noise": "log_normal",
        "train.time_sampling": "stratified",
        "train.lr": 3e-3,
        "train.warmup": 1,
        "train.grad_clip": 0.0,
        "train.ema_decay": 0.5,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "train.log_every": 5,
        "train.divergence": 1e6,
    }
    config = build.override(pj.load(tmp_path / "converted").config, values)
    summary = train.train(config, tmp_path / "run", Console(quiet=True))
    rows = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    first = float(rows[0].partition('"loss": ')[2].partition(",")[0])
    assert summary["steps"] == 30 and summary["loss"] < 0.7 * first
    model = pj.load(tmp_path / "run")
    image = model.eps_fn((jnp.zeros((1, 2, 2, 1), jnp.float32),), jnp.float32(0.01))[0]
    before = pj.load(tmp_path / "converted").eps_fn((jnp.zeros((1, 2, 2, 1), jnp.float32),), jnp.float32(0.01))[0]
    assert bool(jnp.all(jnp.isfinite(image))) and not np.allclose(image, before)
    assert isinstance(jax.tree.leaves(model.eps_fn)[0], jax.Array)
    is_tuned(model, rng.uniform(-1, 1, (64, 2, 2, 1)).astype(np.float32))


def is_tuned(model, target):
    """The tuner finds a setting, which ``auto`` takes; what is fitted to two blocks says that there is one."""
    options = {"num_samples": 16, "candidates": 2, "gradient_steps": 1, "target": target}
    tuning = pj.tune(model, nfe=(5,), samplers=("ddim", "dpm_solver_pp_2m"), **options)
    assert len(tuning.rows) == 2 and all(np.isfinite(row.score.distance) for row in tuning.rows)
    with pytest.raises(ValueError, match="there is nothing to fit: the model has one block"):
        pj.fit_projection(model, target[:4])


@pytest.mark.slow
def test_a_network_of_diffusers_is_tuned(tmp_path, rng):
    convert(
        Path(__file__).parent / "golden_neighbours" / "diffusers_euler_scaled_linear", output=tmp_path / "converted"
    )
    is_tuned(pj.load(tmp_path / "converted"), rng.uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32))


@pytest.mark.slow
def test_training_goes_on_from_a_network_of_diffusers(tmp_path):
    """A few steps on the digits, which it is told the classes of: it learns, and what was learned samples."""
    convert(Path(__file__).parent / "golden_neighbours" / "diffusers_class_sample", output=tmp_path / "converted")
    values = {
        "model.checkpoint": "",
        "train.init": str(tmp_path / "converted"),
        "data.name": "digits",
        "train.steps": 40,
        "train.batch_size": 32,
        "train.lr": 2e-3,
        "train.warmup": 1,
        "train.ema_decay": 0.5,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "train.log_every": 5,
    }
    config = build.override(pj.load(tmp_path / "converted").config, values)
    summary = train.train(config, tmp_path / "run", Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(row["loss"] for row in rows if "loss" in row)
    assert summary["steps"] == 40 and summary["loss"] < 0.7 * first
    images = pj.generate(pj.load(tmp_path / "run"), sampler="ddim", nfe=5, n=2, label=[3, 4])
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()
