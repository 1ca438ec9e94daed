"""Networks that know nothing of this library: the same samples from noise, data, score or velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeds import generator

import psld_jax as pj

VP = pj.sde.VPSDE(0.1, 20.0)
DATA = generator("data").uniform(-1, 1, (20, 4, 4, 2))


def exact(sde):
    """The exact noise of a data set."""
    return pj.scores.mixture(DATA, 0.1, sde)


def network(sde, predicts, unit=1.0):
    """What a network of that kind would return, computed from the exact noise; it counts time in other units."""
    eps_fn, k = exact(sde), sde.num_blocks

    def predict(x, t):
        z, t = sde.state(*jnp.split(x, k, axis=-1)), t[0] * unit
        eps = eps_fn(z, t)
        if predicts == "eps":
            return jnp.concatenate(eps, axis=-1)
        time = 0.3  # matrices are taken where the test asks
        factor, mu = jnp.asarray(sde.factor(time)), jnp.asarray(sde.mean(time))[:, 0]
        if predicts == "score":
            return jnp.concatenate(pj.blocks.apply(-jnp.linalg.inv(factor).T, eps), axis=-1)
        data = (z[0] - pj.blocks.apply(factor, eps)[0]) / mu[0]
        return data if predicts == "data" else mu[0] * eps[0] - factor[0, 0] * data

    return predict


CASES = [(VP, "eps"), (VP, "data"), (VP, "score"), (VP, "velocity")]
CASES += [(pj.sde.PSLD(), name) for name in ("eps", "data", "score")]


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "predicts"), CASES, ids=lambda case: str(case).split("(")[0])
def test_every_prediction_gives_the_same_noise(key, sde, predicts):
    eps_fn = pj.scores.function(network(sde, predicts, 1 / 1000), sde, predicts=predicts, times=lambda t: 1000 * t)
    z = sde.prior_sample(key, (3, 4, 4, 2), jnp.float64)
    found, wanted = eps_fn(z, 0.3), exact(sde)(z, 0.3)
    for a, b in zip(found, wanted, strict=True):
        # float64; the spline of the matrices is exact to 1e-9.
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_channels_first_and_the_whole_library():
    """A network in the other layout, in a model that samples, and with parameters that do not compile again."""
    traced = []

    def first(scale, x, t):
        traced.append(x.shape)
        return jnp.moveaxis(network(VP, "eps")(jnp.moveaxis(x, 1, -1), t) * scale, -1, 1)

    def model(scale):
        predict = jax.tree_util.Partial(first, jnp.asarray(scale))
        return pj.from_function(predict, VP, (4, 4, 2), channels_first=True)

    images = pj.generate(model(1.0), nfe=8, n=4, seed=1)
    np.testing.assert_allclose(
        images, pj.generate(pj.from_function(network(VP, "eps"), VP, (4, 4, 2)), nfe=8, n=4, seed=1)
    )
    assert set(traced) == {(4, 2, 4, 4)}
    count = len(traced)
    other = pj.generate(model(0.9), nfe=8, n=4, seed=1)
    assert len(traced) == count and np.abs(other - images).max() > 1e-3


def test_discrete_times_have_the_same_noise_level():
    """At the times of a linear schedule's own levels, its indices; outside of them the first and the last."""
    t = np.linspace(0.01, 0.99, 50)
    levels = VP.mean(t)[:, 0, 0] ** 2
    found = pj.scores.discrete_times(levels, VP)(jnp.asarray(t))
    np.testing.assert_allclose(found, np.arange(50), atol=1e-6)  # the spline's 1e-9, over slopes of up to 500
    ends = pj.scores.discrete_times(levels, VP)(jnp.asarray([1e-3, 1.0]))
    np.testing.assert_array_equal(ends, [0, 49])


@pytest.mark.parametrize("make", [np.array, jnp.array, list, lambda shape: tuple(map(float, shape))])
def test_shapes_of_every_kind_are_taken(make):
    """``prior_sample`` takes them, so a model does."""
    shape = make([8, 4, 1])
    for model in (pj.from_function(lambda x, t: x, VP, shape), pj.from_denoiser(lambda x, sigma: x, VP, shape)):
        assert model.image_shape == (8, 4, 1) and all(type(size) is int for size in model.image_shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.scores.function(None, VP, predicts="noise"), "prediction"),
        (lambda: pj.scores.function(None, pj.sde.PSLD(), predicts="velocity"), "one block, not of 2"),
        (lambda: pj.scores.function(None, pj.sde.PSLD().preconditioned(0.5)), "is preconditioned"),
        (lambda: pj.from_function(None, VP, (4, 4)), "must be .H, W, C."),
        (lambda: pj.scores.discrete_times([0.5, 0.7], VP), "numbers that fall"),
        (lambda: pj.scores.discrete_times([0.7, 0.5], pj.sde.PSLD()), "one block, not of 2"),
        (
            lambda: pj.generate(pj.from_function(lambda x, t: x[..., :1], VP, (4, 4, 2)), nfe=4, n=2),
            "not 1 blocks of .2, 4, 4, 2.",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x, t: np.sin(np.asarray(x)), "must compute with jax.numpy, not numpy"),
        (lambda x, t: x if t[0] > 0.5 else 2 * x, "and have no if on arrays"),
        (lambda x, t: x * float(t[0]), "which are not known while the loop around it is compiled"),
        (lambda x, t: x * [1.0, 2.0][t[0].astype(int)], "jax.pure_callback takes a network of another library"),
        (lambda x, t: 1j * x, "the network returns complex64: wrap it"),
    ],
)
def test_a_network_that_cannot_be_traced_is_told_in_one_line(network, message):
    model = pj.from_function(network, VP, (2, 2, 1))
    with pytest.raises(ValueError, match=message) as error:
        pj.generate(model, "ddim", nfe=3, n=2)
    assert "\n" not in str(error.value)


def test_a_network_of_another_library_goes_through_a_callback():
    def halved(x, t):
        return jax.pure_callback(lambda x: 0.5 * np.asarray(x), x, x)

    options = {"sampler": "ddim", "nfe": 3, "n": 2}
    here = pj.generate(pj.from_function(lambda x, t: 0.5 * x, VP, (2, 2, 1)), **options)
    there = pj.generate(pj.from_function(halved, VP, (2, 2, 1)), **options)
    np.testing.assert_allclose(there, here, rtol=1e-6)
