"""FIR resampling and the single layers, against the original and against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import load
from models_support import jit
from scipy.signal import convolve2d

from psld_jax.models import NCSNppConfig, fir, layers
from psld_jax.models.structure import Entry

_, DATA = load("updown_and_layers")
TAPS = {"k1331": (1, 3, 3, 1), "none": (1, 1), "kasym": (1, 2, 4, 1)}


def nhwc(key):
    return jnp.asarray(np.moveaxis(DATA[key], 1, -1))


def close(actual, expected, tolerance=3e-6):
    assert actual.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kernel", TAPS)
@pytest.mark.parametrize("size", ["odd", "even"])
def test_resampling_as_in_the_original(kernel, size):
    taps = TAPS[kernel]

    @jit
    def resampled(x, weight):
        return {
            "upsample_2d": fir.upsample_2d(x, taps),
            "downsample_2d": fir.downsample_2d(x, taps),
            "conv_downsample_2d": fir.conv_downsample_2d(x, weight, taps),
            "fixed_upsample_conv_2d": fir.upsample_conv_2d(x, weight, taps),
        }

    outputs = resampled(nhwc(f"{kernel}__x_{size}"), np.transpose(DATA[f"{kernel}__w"], (2, 3, 1, 0)))
    for name, output in outputs.items():
        close(output, nhwc(f"{kernel}__{name}_{size}"))


@pytest.mark.parametrize("kernel", TAPS)
def test_upfirdn2d_as_in_the_original(kernel):
    unit = tuple(tap / sum(TAPS[kernel]) for tap in TAPS[kernel])
    out = jit(lambda x: fir.upfirdn2d(x, unit, up=3, down=2, pad=(2, -1)))(nhwc(f"{kernel}__x_odd"))
    close(out, nhwc(f"{kernel}__upfirdn2d_up3_down2_pad_2_m1"))


def by_definition(x, taps, up, down, pad):
    """Zeros between the samples, padding (or cropping), a full 2-D convolution, and every ``down``-th result."""
    kernel = np.outer(taps, taps)
    u = np.zeros((x.shape[0] * up, x.shape[1] * up))
    u[::up, ::up] = x
    u = np.pad(u, (max(pad[0], 0), max(pad[1], 0)))
    u = u[max(-pad[0], 0) : len(u) - max(-pad[1], 0), max(-pad[0], 0) : u.shape[1] - max(-pad[1], 0)]
    return convolve2d(u, kernel, "valid")[::down, ::down]


@pytest.mark.parametrize(
    "up, down, pad", [(1, 1, (0, 0)), (2, 1, (2, 1)), (1, 2, (1, 1)), (3, 2, (2, -1)), (5, 3, (4, 4))]
)
def test_upfirdn2d_is_its_definition(rng, up, down, pad):
    x, taps = rng.standard_normal((2, 6, 7, 3)), (0.5, -1.0, 2.0)
    y = jit(lambda x: fir.upfirdn2d(x, taps, up, down, pad))(x)
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(y[n, :, :, c], by_definition(x[n, :, :, c], taps, up, down, pad), atol=1e-14)


def test_box_filter_is_nearest_neighbours_and_means():
    close(fir.upsample_2d(nhwc("naive_up__x"), (1, 1)), nhwc("naive_up__out"), 0)
    close(fir.downsample_2d(nhwc("naive_down__x"), (1, 1)), nhwc("naive_down__out"))
    close(fir.downsample_2d(nhwc("down_avg__x"), (1, 1)), nhwc("down_avg__out"))


@pytest.mark.parametrize("resample", [fir.upsample_2d, fir.downsample_2d])
def test_resampling_keeps_bfloat16(resample):
    assert resample(jnp.ones((1, 4, 4, 2), jnp.bfloat16), (1, 3, 3, 1)).dtype == jnp.bfloat16


def test_fourier_features():
    layer = layers.Fourier(16, 16.0, nnx.Rngs(0))
    t = jnp.asarray(DATA["fourier__t"])
    layer.frequencies[...] = jnp.asarray(DATA["fourier__W"], jnp.float32)
    close(layer(jnp.log(t)), DATA["fourier__out"], 3e-4)
    layer.frequencies = layers.Frozen(jnp.asarray(DATA["fourier__W"]))
    out = layer(jnp.log(t.astype(jnp.float64)))
    np.testing.assert_allclose(out, DATA["fourier__out_f64"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("features", [15, 16, 128])
def test_positional_features(features):
    close(layers.positional(jnp.asarray(DATA["fourier__t"]), features), DATA[f"positional__dim{features}"], 1e-6)


@pytest.mark.parametrize("case, rescale", [("attn_rescale", True), ("attn_plain", False)])
def test_attention(case, rescale):
    entry = Entry(0, "attention", "attention", 16, 16)
    layer = layers.Attention(entry, NCSNppConfig(skip_rescale=rescale), nnx.Rngs(0))
    layer.norm.scale[...] = DATA[f"{case}__param__GroupNorm_0.weight"]
    layer.norm.bias[...] = DATA[f"{case}__param__GroupNorm_0.bias"]
    for i, dense in enumerate((layer.query, layer.key, layer.value, layer.out)):
        dense.kernel[...] = DATA[f"{case}__param__NIN_{i}.W"]
        dense.bias[...] = DATA[f"{case}__param__NIN_{i}.b"]
    close(jit(layer)(nhwc(f"{case}__x")), nhwc(f"{case}__out"), 1e-5)


def test_strided_convolution_without_fir_pads_right_and_bottom():
    entry = Entry(0, "down", "resample_conv", 3, 5, "down")
    layer = layers.ResampleConv(entry, NCSNppConfig(fir=False), nnx.Rngs(0))
    layer.kernel[...] = np.transpose(DATA["down_conv_nofir__weight"], (2, 3, 1, 0))
    layer.bias[...] = DATA["down_conv_nofir__bias"]
    close(jit(layer)(nhwc("down_conv_nofir__x")), nhwc("down_conv_nofir__out"))


def test_group_norm_survives_a_large_mean_and_bfloat16(rng):
    layer = layers.GroupNorm(8)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 8)), jnp.float32)
    y = layer(x)
    groups = np.asarray(y).reshape(2, 16, 2, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(groups.std((1, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(layer(x + 1000), y, atol=1e-3)  # E[x^2] - E[x]^2 would be off by 0.1
    low = layer(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), y, atol=0.05)


def test_sums_in_float32_need_no_dtype_to_be_promoted(rng):
    """A network in bfloat16 ended in an error where JAX refuses implicit promotion."""
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 8)), jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        normed, attended = layers.GroupNorm(8)(x), layers.attend(x, x, x)
    assert normed.dtype == attended.dtype == jnp.bfloat16


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'cake'"):
        layers.build(Entry(0, "x", "cake", 1, 1), NCSNppConfig(), nnx.Rngs(0))


def test_initial_weights():
    """Uniform with variance ``scale / mean(fan_in, fan_out)``; the scale 0 is 1e-10; biases 0."""
    layer = layers.Conv3x3(64, 32, rngs=nnx.Rngs(0))
    bound = np.sqrt(3 / (9 * (64 + 32) / 2))
    assert 0.99 * bound < jnp.abs(layer.kernel[...]).max() <= bound
    assert jnp.abs(layer.kernel[...]).mean() == pytest.approx(bound / 2, rel=0.02)
    assert not layer.bias[...].any()
    block = layers.ResBlock(Entry(0, "b", "resblock_ddpm", 64, 32, "", 0.0), NCSNppConfig(), nnx.Rngs(0))
    assert 0 < jnp.abs(block.conv_1.kernel[...]).max() < 1e-5
    nin = np.sqrt(0.1 * 3 / ((64 + 32) / 2))
    assert 0.97 * nin < jnp.abs(block.shortcut.kernel[...]).max() <= nin
