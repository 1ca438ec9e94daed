"""Likelihood and latent states, against closed forms."""

import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console
from scipy.special import logsumexp
from seeds import generator

import psld_jax as pj
from psld_jax import blocks, build
from psld_jax.build import Model, load_config
from psld_jax.latent.likelihood import Likelihood
from psld_jax.modes import latent

# Twice the usual rates: at t = 1 the data have left next to nothing, and the prior is the law that the ODE ends with.
SDES = (
    pytest.param(pj.sde.PSLD(0.01, 4.01, 16.0, 16.0), id="psld", marks=pytest.mark.slow),
    pytest.param(pj.sde.PSLD(0.25, 4.25, 16.0, 16.0, decomposition="upper"), id="psld-upper", marks=pytest.mark.slow),
    pytest.param(pj.sde.VPSDE(0.1, 40.0), id="vp"),
    pytest.param(pj.sde.PSLD(0.01, 4.01, 16.0, 16.0).preconditioned(0.7), id="preconditioned"),
)
CENTRES, BANDWIDTH = generator("centres").uniform(-1, 1, (3, 2, 2, 1)), 0.3


def mixture(sde):
    """Three Gaussians in four dimensions, exact score, float64."""
    return Model(sde, pj.scores.mixture(CENTRES, BANDWIDTH, sde), load_config("digits"), (2, 2, 1))


def closed_form(x):
    squared = ((x[:, None] - CENTRES) ** 2).sum(axis=(2, 3, 4))
    return logsumexp(-0.5 * squared / BANDWIDTH**2, axis=1) - np.log(3) - 2 * np.log(2 * np.pi * BANDWIDTH**2)


def draws(rng, n):
    return CENTRES[rng.integers(3, size=n)] + BANDWIDTH * rng.standard_normal((n, 2, 2, 1))


@pytest.mark.parametrize("sde", SDES)
def test_likelihood_of_a_mixture(rng, sde):
    """Within 1e-3 nats per dimension of the closed form; at t_end = 1e-5 the law is smoothed by 1e-5 of its width."""
    x = draws(rng, 16)
    found = pj.log_likelihood(mixture(sde), x, divergence="exact", draws=2, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.nats, closed_form(x), atol=1e-3 * 4)
    if sde.num_blocks > 1:
        assert np.all(found.standard_error < 1e-3)  # the bound is tight, whatever the momentum


@pytest.mark.slow
def test_hutchinson_states_its_error(rng):
    """The mean over many draws is the exact value within four of its standard errors, for nearly all images."""
    model, x = mixture(pj.sde.PSLD(0.01, 4.01, 16.0, 16.0)), draws(rng, 32)
    found = pj.log_likelihood(model, x, draws=64)
    off = np.abs(found.nats - closed_form(x)) / found.standard_error
    assert np.mean(off < 4) > 0.9 and np.median(found.standard_error) > 1e-3
    again = pj.log_likelihood(model, x[:5], draws=64)
    np.testing.assert_allclose(again.nats, found.nats[:5], atol=1e-6)  # a function of (seed, i)
    later = pj.log_likelihood(model, x[1:2], draws=2, first=1).nats
    np.testing.assert_allclose(pj.log_likelihood(model, x[:2], draws=2).nats[1:], later, rtol=1e-5)
    assert np.isnan(pj.log_likelihood(model, x[:2], draws=1).standard_error).all()


def test_bits_of_uniform_noise(rng):
    """Under the uniform law on [-1, 1], density 1/2, a level has exactly 8 bits."""
    found = Likelihood(np.array([4 * np.log(0.5)]), np.zeros(1), np.zeros(1), 4)
    np.testing.assert_allclose(found.bits_per_dim(), 8.0)
    levels = rng.integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
    x = pj.dequantize(levels)
    np.testing.assert_array_equal(np.floor((x.astype(float) + 1) * 128), levels)
    with pytest.raises(ValueError, match="uint8"):
        pj.dequantize(levels.astype(int))


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES)
def test_encode_then_decode(rng, sde):
    """Back where it was, and the code looks like the prior."""
    model, x = mixture(sde), draws(rng, 64)
    z = pj.encode(model, x, rtol=1e-7, atol=1e-7)
    back = pj.decode(model, z, rtol=1e-7, atol=1e-7)
    # The tolerance is that of a step. There are hundreds, and between modes the flow magnifies what they are off by.
    assert np.abs(back - x).max() < 1e-4
    assert np.abs(back - x).mean() < 1e-5
    spread = [np.std(leaf) for leaf in z]
    np.testing.assert_allclose(spread, np.sqrt(np.diag(sde.prior_cov())), rtol=0.2)  # 256 numbers
    if sde.num_blocks > 1:
        other = pj.encode(model, x[:2], seed=1)
        assert np.abs(other[0] - z[0][:2]).max() > 0.1  # another momentum, another code


def test_interpolation_on_the_sphere(key):
    sde = pj.sde.PSLD(0.01, 4.01)
    a, b = (sde.prior_sample(jax.random.fold_in(key, i), (1, 16, 16, 1)) for i in range(2))
    path = pj.interpolate(sde, a, b, [0.0, 0.25, 0.5, 1.0])
    for leaf, first, last in zip(path, a, b, strict=True):
        np.testing.assert_allclose(leaf[0], first[0], atol=1e-5)
        np.testing.assert_allclose(leaf[-1], last[0], atol=1e-5)
    white = np.linalg.inv(np.linalg.cholesky(sde.prior_cov()))
    lengths = np.linalg.norm(np.stack(blocks.apply(white, path)).reshape(2, 4, -1), axis=(0, 2))
    # The ends differ in length by chance; on the way it lies between, not at 1/sqrt(2) of it as on a straight line.
    assert lengths.min() > 0.95 * min(lengths[0], lengths[-1])
    with pytest.raises(ValueError, match="one sample each"):
        pj.interpolate(sde, path, b, [0.5])


def test_bad_input(rng):
    model, x = mixture(pj.sde.PSLD(0.01, 4.01)), draws(rng, 2)
    for options, message in (
        ({"divergence": "exakt"}, "Did you mean 'exact'"),
        ({"draws": 0}, "draws=0"),
        ({"t_end": 0.0}, "t_end"),
        ({"solver": "rk44"}, "ODE solver"),
        ({"rtol": 0.0}, "rtol"),
    ):
        with pytest.raises(ValueError, match=message):
            pj.log_likelihood(model, x, **options)
    with pytest.raises(ValueError, match="images have shape"):
        pj.encode(model, x[:, :1])
    with pytest.raises(ValueError, match="t_end"):
        pj.encode(model, x, t_end=1.0)


@pytest.mark.parametrize("draws", [1, 2])
def test_the_mode_weighs_images_equally_in_batches_of_one_size(rng, tmp_path, monkeypatch, draws):
    levels = rng.integers(0, 256, (7, 2, 3, 1), np.uint8)
    data = type("Data", (), {"gather": lambda self, numbers: (levels[numbers], None), "__len__": lambda self: 7})()
    seen = []

    def one_batch(model, images, *, first, seed, draws, **_):
        seen.append((len(images), first, seed))
        nats = np.asarray(images, np.float64).sum((1, 2, 3))
        return Likelihood(nats, np.full(len(nats), np.nan if draws == 1 else 0.5), 0 * nats + 10, 6)

    monkeypatch.setattr(latent, "sampled_model", lambda config: SimpleNamespace(data=None, config=config))
    monkeypatch.setattr(latent.build, "build_data", lambda config, split: data)
    monkeypatch.setattr(latent, "log_likelihood", one_batch)
    values = {"likelihood.batch_size": 3, "likelihood.draws": draws, "seed": 2**32 - 1}
    config = build.override(build.load_config("default"), values)
    printed = io.StringIO()
    report = latent.run_likelihood(config, tmp_path, Console(file=printed))
    assert seen == [(3, 0, 2**32 - 1), (3, 3, 2**32 - 1), (3, 6, 2**32 - 1)]
    nats = pj.dequantize(levels, 2**32 - 1).astype(np.float64).sum((1, 2, 3)).mean() / 6
    assert report["num_images"] == 7 and report["nats_per_dim"] == pytest.approx(nats)
    assert report["bits_per_dim"] == pytest.approx(7 - nats / np.log(2))
    assert ("standard_error_of_draws" in report) == (draws > 1) and "nan" not in printed.getvalue()
