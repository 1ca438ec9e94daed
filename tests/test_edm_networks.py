"""EDM's networks: sizes as published, options, layers, bad input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from flax import nnx

from psld_jax import build
from psld_jax._runtime.abstract import shapes_of
from psld_jax.models import edm, unet
from psld_jax.models.edm_plan import EDMConfig, plan

TINY = {"image_size": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}


def abstract(**options):
    return shapes_of(lambda rngs: edm.EDM(EDMConfig(**options), rngs=rngs))


def count(network):
    return sum(math.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(
    "name, millions",
    [
        ("edm_cifar10_uncond_vp", 55.7),
        ("edm_cifar10_cond_vp", 55.7),
        ("edm_cifar10_uncond_ve", 56.4),
        ("edm_ffhq64", 61.8),
        ("edm_imagenet64", 295.9),
    ],
)
def test_published_networks_have_their_size(name, millions):
    """55.7, 61.8 and 295.9 million as Karras et al. (2022) say; 56.4 is what the options of their NCSN++ come to."""
    config = build.load_config(name)
    network = build.abstract_network(config)
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.06)


def test_heads_may_be_given_block_by_block():
    options = TINY | {"architecture": "dhariwal", "channels_per_head": 8, "attn_resolutions": (8, 4)}
    rule = [p.heads for way in plan(EDMConfig(**options)) for p in way if p.kind == "block"]
    assert set(rule) == {0, 1, 2}
    own = tuple(2 * (heads > 0) for heads in rule)
    assert [p.heads for way in plan(EDMConfig(**options, num_heads=own)) for p in way if p.kind == "block"] == list(own)
    with pytest.raises(ValueError, match="a number for each of the network's blocks"):
        EDMConfig(**options, num_heads=(1, 2))
    with pytest.raises(ValueError, match="cannot divide 8 channels into 3 heads"):
        EDMConfig(**options, num_heads=(3, *own[1:]))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (1, 5, 10, 10, 5, 1)])
def test_resampling_is_a_strided_convolution_and_its_transpose(taps, rng):
    f = np.asarray(taps, np.float64) / sum(taps)
    pad = (len(taps) - 1) // 2
    matrix = np.zeros((4, 8))  # one axis, stride 2: y[o] = sum_j f[j] x[2 o + j - pad]
    for o in range(4):
        for j in range(len(taps)):
            if 0 <= 2 * o + j - pad < 8:
                matrix[o, 2 * o + j - pad] += f[j]
    x = rng.standard_normal((2, 8, 8, 3))
    down = np.einsum("oh,pw,nhwc->nopc", matrix, matrix, x)
    np.testing.assert_allclose(unet.downsample(jnp.asarray(x), taps), down, rtol=1e-13, atol=1e-14)
    up = 4 * np.einsum("oh,pw,nopc->nhwc", matrix, matrix, down)
    np.testing.assert_allclose(unet.upsample(jnp.asarray(down), taps), up, rtol=1e-13, atol=1e-14)


def test_the_filtered_convolution_reaches_over_the_border(rng):
    """A convolution, then the filter: of all the results that the filter needs, also those outside the image."""
    layer = unet.FilteredConv(2, 3, (1, 3, 3, 1), unet.Init("fan_avg"), rngs=nnx.Rngs(0))
    x = rng.standard_normal((1, 8, 8, 2)).astype(np.float32)
    wide = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    kernel = np.asarray(layer.kernel[...])
    full = sum(wide[:, a : a + 10, b : b + 10] @ kernel[a, b] for a in range(3) for b in range(3))
    f = np.array([1, 3, 3, 1]) / 8
    rows = sum(f[j] * full[:, j : j + 8 : 2] for j in range(4))
    expected = sum(f[j] * rows[:, :, j : j + 8 : 2] for j in range(4))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=1e-6)  # float32 sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["song", "dhariwal"])
def test_training_draws_and_counts_labels(architecture, rng):
    """Dropout and the dropped label change the output; integers, one-hot rows and 'none' are the same labels."""
    options = TINY | {"label_dim": 3, "label_dropout": 0.5, "dropout": 0.2, "architecture": architecture}
    network = models_support.random(abstract(**options))
    x, sigma = jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32), jnp.asarray([0.1, 1, 10, 80], jnp.float32)

    @models_support.jit
    def run(labels, seed):
        quiet = network(x, sigma, labels)
        return quiet, network(x, sigma, labels, deterministic=False, rngs=nnx.Rngs(dropout=seed))

    labels = jnp.asarray([0, 2, 3, 1])
    rows = jnp.asarray(np.eye(4)[labels][:, :3], jnp.float32)
    quiet, loud = run(rows, jax.random.key(0))
    assert not np.allclose(quiet, loud) and not np.allclose(loud, run(rows, jax.random.key(1))[1])
    np.testing.assert_array_equal(network._labels(labels, 4), rows)
    np.testing.assert_array_equal(network._labels(None, 4), np.zeros((1, 3)))


def test_labels_that_are_left_out_do_not_depend_on_what_jax_does_with_float64(monkeypatch):
    """The draws had float64 where that is enabled, and so other bits."""
    network = models_support.random(abstract(**TINY | {"label_dim": 3, "label_dropout": 0.5}))
    monkeypatch.setattr(type(network.model), "__call__", lambda self, x, noise, told, augment, **options: told)
    told = []
    for x64 in (False, True):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
            x, labels = jnp.zeros((32, 8, 8, 3), jnp.float32), jnp.zeros(32, jnp.int32)
            rngs = nnx.Rngs(dropout=jax.random.key(0))
            told.append(network.raw(x, jnp.float32(1), labels, deterministic=False, rngs=rngs))
    np.testing.assert_array_equal(*told)
    assert 0 < told[0].sum() < 32


@pytest.mark.slow
def test_half_precision_stays_near(rng):
    network = models_support.random(abstract(**TINY))
    half = models_support.random(abstract(**TINY, dtype="bfloat16"))
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    a, b = (models_support.jit(lambda n: n(x, jnp.float32(1.0)))(n) for n in (network, half))
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()  # bfloat16 keeps 8 bits, over a dozen layers


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precondition": "edmm"}, "Did you mean 'edm'"),
        ({"encoder_type": "residuals"}, "residual, skip, standard"),
        ({"image_size": 6, "channel_mult": (1, 1, 1)}, "image_size=6 must be divisible by 4"),
        ({"model_channels": 0}, "model_channels=0 must be an integer from 1"),
        ({"channel_mult": ()}, "channel_mult="),
        ({"resample_filter": (1, 2, 1)}, "an even number"),
        ({"resample_filter": (1, -1)}, "whose sum is not 0"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "below sigma_max=1.0"),
        ({"num_blocks": 10**6}, "num_blocks=1000000 must be"),
        ({"label_dim": -1}, "label_dim=-1"),
        ({"model_channels": 130, "channel_mult": (1,)}, "group norm cannot divide"),
        ({"sigma_data": 0.0}, "sigma_data=0.0 must be a finite number > 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EDMConfig(**options)


@pytest.mark.parametrize(
    "x, sigma, arguments, message",
    [
        ((2, 8, 8, 1), (), {}, r"x has shape \(2, 8, 8, 1\), expected \[n, 8, 8, 3\]"),
        ((2, 8, 8, 3), (3,), {}, r"sigma has shape \(3,\), expected a scalar or \[2\]"),
        ((2, 8, 8, 3), (), {"labels": np.zeros((2, 4))}, r"must be integers \[2\] or numbers \[2, 3\]"),
        ((2, 8, 8, 3), (), {"augment_labels": np.zeros((2, 9))}, r"this network takes \[2, 0\]"),
        ((2, 8, 8, 3), (), {"deterministic": False}, "pass rngs"),
    ],
)
def test_bad_input(x, sigma, arguments, message):
    network = models_support.random(abstract(**TINY, label_dim=3))
    with pytest.raises(ValueError, match=message):
        network(jnp.zeros(x), jnp.ones(sigma), **arguments)
    assert network.u is None
    with pytest.raises(ValueError, match="'iddpm' has a table"):
        network.round_sigma(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm_cifar10_uncond_vp", "edm_cifar10_cond_ve", "edm_ffhq64", "edm_imagenet64"])
def test_full_size_networks_run(name):
    """With random weights: they fit into memory, and activations stay finite."""
    config = build.load_config(name)
    options = build.network_options(config)
    network = models_support.random(build.abstract_network(config))
    x = jnp.zeros((1, *options.image_shape))
    out = jax.jit(lambda n, x: n(x, jnp.float32(1.0)))(network, x)
    assert out.shape == x.shape and bool(jnp.all(jnp.isfinite(out)))
    assert dataclasses.replace(options) == options
