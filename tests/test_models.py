"""NCSN++ as a whole: its plan, options, dtypes and dropout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_support import jit, random, run
from seeds import generator

from psld_jax import models
from psld_jax._runtime.abstract import shapes_of
from psld_jax.models import NCSNpp, NCSNppClassifier, NCSNppConfig, abstract

TINY = {"image_size": 8, "nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
SMALL = {"image_size": 8, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}


def small(**options):
    return NCSNppConfig(**(SMALL | options))


def tiny(**options):
    return NCSNppConfig(**(TINY | options))


def batch(dtype=jnp.float32):
    rng = generator("batch")
    return jnp.asarray(rng.standard_normal((3, 8, 8, 6)), dtype), jnp.asarray(rng.uniform(0.01, 1, 3), dtype)


def shapes(network):
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(network))}


def test_the_cifar10_model_has_its_97_627_910_parameters():
    leaves = jax.tree.leaves(nnx.state(abstract(NCSNppConfig())))
    assert sum(np.prod(leaf.shape) for leaf in leaves) == 97_627_910
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


@pytest.mark.parametrize("n_classes", [None, 10])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resblock_type": "ddpm", "progressive_input": "input_skip", "progressive_combine": "cat"},
        {"resblock_type": "ddpm", "fir": False, "noise_cond": False},
        {"embedding_type": "positional", "noise_cond": False},
    ],
)
def test_each_parameter_has_one_source(options, n_classes):
    parameters = models.source_parameters(small(**options), n_classes)
    assert len({p.source for p in parameters}) == len(parameters)
    assert {p.path: p.shape for p in parameters} == shapes(abstract(small(**options), n_classes))
    indices = [int(p.source.split(".")[1]) for p in parameters]
    assert indices == sorted(indices)
    for p in parameters:
        assert p.convert(np.zeros(p.source_shape)).shape == p.shape


def test_the_plan_follows_the_original():
    entries = models.plan(small())
    assert [entry.index for entry in entries] == list(range(len(entries)))
    assert " ".join(entry.name for entry in entries) == (
        "fourier temb_0 temb_1 stem down_0_block_0 down_0_resample down_0_pyramid down_1_block_0 down_1_attn_0 "
        "mid_block_0 mid_attn mid_block_1 up_1_block_0 up_1_block_1 up_1_attn up_1_resample up_0_block_0 up_0_block_1 "
        "out_norm out_conv"
    )
    assert [entry.name for entry in models.plan(small(), 10)] == [*(e.name for e in entries[:12]), "classifier"]


@pytest.mark.slow
@pytest.mark.parametrize("resblock_type", ["ddpm", "biggan"])
@pytest.mark.parametrize("fir", [True, False])
def test_every_combination_of_pyramids_gives_an_image(resblock_type, fir):
    """Among them the combinations that raise in the original, through two calls whose meaning is evident."""
    z, t = batch()
    pyramids = itertools.product(("none", "output_skip", "residual"), ("none", "input_skip", "residual"))
    for with_conv, (progressive, progressive_input) in zip(itertools.cycle((True, False)), pyramids, strict=False):
        config = small(
            resblock_type=resblock_type,
            fir=fir,
            resamp_with_conv=with_conv,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine="cat",
            out_ch=3,
        )
        out = jax.eval_shape(lambda network: network(z, t), abstract(config))
        assert out.shape == (3, 8, 8, 6 if progressive == "output_skip" else 3) and out.dtype == jnp.float32


def test_shapes_are_those_of_flax():
    class Layers(nnx.Module):
        def __init__(self, rngs):
            self.network, self.own = NCSNpp(tiny(), rngs=rngs), rngs  # with a count of its own
            self.linear, self.dropout = nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    (graph, state), (want_graph, want_state) = map(
        nnx.split, (shapes_of(Layers), nnx.eval_shape(lambda: Layers(nnx.Rngs(0))))
    )
    assert graph == want_graph and jax.tree.structure(state) == jax.tree.structure(want_state)
    assert jax.tree.leaves(state) == jax.tree.leaves(want_state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nonlinearity": "swsh"}, "unknown nonlinearity 'swsh'. Did you mean 'swish'"),
        ({"resblock_type": "resnet"}, "Allowed: biggan, ddpm"),
        ({"progressive": "input_skip"}, "Allowed: none, output_skip, residual"),
        ({"progressive_input": "output_skip"}, "Allowed: input_skip, none, residual"),
        ({"progressive_combine": "mean"}, "Allowed: cat, sum"),
        ({"embedding_type": "learned"}, "Allowed: fourier, positional"),
        ({"dtype": "float16"}, "Allowed: bfloat16, float32"),
        ({"in_ch": 0}, "in_ch=0"),
        ({"num_res_blocks": 0}, "num_res_blocks=0"),
        ({"nf": 2}, "nf=2"),
        ({"nf": 14}, "nf=14.* down_0_block_0 14 channels.* 3 groups"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"ch_mult": (1, 0)}, "ch_mult"),
        ({"image_size": 9}, "image_size=9 must be divisible by 2"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"fir_kernel": (1, -1)}, "fir_kernel"),
        ({"init_scale": -1.0}, "init_scale=-1.0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_lists_are_fine_and_configurations_hash():
    assert hash(NCSNppConfig(ch_mult=[2, 2, 2])) == hash(NCSNppConfig())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("progressive, n_classes", [("none", 0), ("residual", 10)])
def test_classifiers_that_cannot_be_meant_are_refused(progressive, n_classes):
    with pytest.raises(ValueError, match="n_classes=0|progressive='residual'"):
        NCSNppClassifier(small(progressive=progressive), n_classes, rngs=nnx.Rngs(0))


def test_wrong_inputs_are_refused():
    network, (z, t) = abstract(small()), batch()
    with pytest.raises(ValueError, match=r"expected \[n, 8, 8, 6\]"):
        network(z[:, :4], t)
    with pytest.raises(ValueError, match=r"expected a scalar or \[3\]"):
        network(z, t[:2])
    with pytest.raises(ValueError, match="rngs=nnx.Rngs"):
        network(z, t, deterministic=False)


@pytest.mark.parametrize("embedding_type", ["fourier", "positional"])
def test_scalar_time_is_the_same_time_for_all(embedding_type):
    network, (z, _) = random(abstract(tiny(embedding_type=embedding_type))), batch()
    np.testing.assert_allclose(run(network, z, 0.3), run(network, z, jnp.full(3, 0.3)), atol=1e-5)


def test_dropout_acts_only_in_training(key):
    network, (z, t) = random(abstract(tiny(dropout=0.5))), batch()
    train = jit(lambda network, seed: network(z, t, deterministic=False, rngs=nnx.Rngs(dropout=seed)))
    first, second, again = (train(network, jax.random.fold_in(key, n)) for n in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - second).max() > 0.1 and jnp.abs(first - run(network, z, t)).max() > 0.1


def test_without_noise_conditioning_time_is_ignored():
    network, (z, t) = random(abstract(tiny(noise_cond=False))), batch()
    np.testing.assert_array_equal(run(network, z, t), run(network, z, t / 2))


@pytest.mark.slow
@pytest.mark.parametrize("config", [small, tiny])
def test_bfloat16_is_close_and_returns_float32(config):
    z, t = batch()
    exact, rough = (
        run(random(abstract(config(dtype=dtype, progressive="output_skip"))), z, t) for dtype in ("float32", "bfloat16")
    )
    assert exact.dtype == rough.dtype == jnp.float32
    assert 0 < jnp.abs(exact - rough).max() < 0.05 * jnp.abs(exact).max()
    assert not jnp.array_equal(rough, rough.astype(jnp.bfloat16).astype(jnp.float32))  # the head is not rounded


def test_float64_parameters_compute_in_float64():
    network = abstract(small(embedding_type="positional"))
    single, double = (run(random(network, dtype), *batch(dtype)) for dtype in (jnp.float32, jnp.float64))
    assert single.dtype == jnp.float32 and double.dtype == jnp.float64
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_fourier_frequencies_are_not_trained():
    network, (z, t) = random(abstract(tiny())), batch()
    frozen = [path for path, _ in nnx.to_flat_state(nnx.state(network, models.Frozen))]
    assert frozen == [("layers", "fourier", "frequencies")]
    grads = jit(nnx.grad(lambda network: (network(z, t) ** 2).sum()))(network)
    assert {path for path, _ in nnx.to_flat_state(grads)} == set(shapes(network)) - set(frozen)
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(grads))


def test_a_new_network_predicts_almost_nothing():
    """Each branch and the output start at the scale 1e-10: eps is about 0 and the blocks are their shortcuts."""
    network, (z, t) = jit(lambda: NCSNpp(tiny(), rngs=nnx.Rngs(0)))(), batch()
    assert 0 < jnp.abs(run(network, z, t)).max() < 1e-3
