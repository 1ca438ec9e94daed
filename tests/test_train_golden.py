"""The training step: against runs of the original, and what a step promises besides."""

import dataclasses
import functools

import chex
import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds
from flax import nnx
from models_support import fill, jit

import psld_jax as pj
from psld_jax import models
from psld_jax.training import optim
from psld_jax.training.losses import ClassifierLoss, ScoreLoss
from psld_jax.training.step import create_state, keep_sums, make_eval_step, make_train_step

DESCRIPTION, GOLDEN = golden_data.load("train_steps")
CASES = {case["prefix"]: case for case in DESCRIPTION["cases"]}
# The scope keeps the tests of a case together: one compilation, also where tests are spread over processes.
cases = pytest.mark.parametrize("prefix", CASES, scope="module")


# Runs of the original.


def network_config(prefix):
    tree = CASES[prefix]["config"]["diffusion"]
    options = {name: value for name, value in tree["model"]["score_fn"].items() if name != "name"}
    return models.NCSNppConfig(**options, image_size=tree["data"]["image_size"])


@functools.cache
def parameters(prefix):
    return models.source_parameters(network_config(prefix))


@functools.cache
def trained(prefix):
    """States before the first step and after each, and the metrics of each, with the original's weights and draws.

    In float32 throughout, as there and as in training.
    """
    case, config = CASES[prefix], network_config(prefix)
    tree = case["config"]["diffusion"]
    c, o = tree["training"], tree["training"]["optimizer"]
    arrays = {p.path: jnp.asarray(p.convert(GOLDEN[f"{prefix}init__{p.source}"])) for p in parameters(prefix)}
    net = fill(models.abstract(config), arrays)
    loss = ScoreLoss(
        golden_data.build_sde(tree["model"]["sde"]),
        config.in_ch,
        config.out_ch,
        objective=c["mode"],
        weighting=c["loss"]["weighting"],
        norm=c["loss"]["l_type"],
        reduce_mean=c["loss"]["reduce_mean"],
    )
    rate = optim.learning_rate(o["lr"], o["warmup"], "constant", case["steps"])
    hyper = {name: o[name] for name in ("beta_1", "beta_2", "eps", "weight_decay", "grad_clip")}
    transformation = optim.optimizer(o["name"].lower(), rate, **hyper)
    step = jit(make_train_step(net, loss, transformation, rate, ema_decay=c["ema_decay"]))

    def images(name):
        return jnp.asarray(np.moveaxis(GOLDEN[prefix + name], 1, -1))

    x0 = images("x_0")
    states, metrics = [create_state(net, transformation, c["use_ema"])], []
    for k in range(case["steps"]):
        noise = tuple(jnp.split(images(f"draw_eps_{k}"), 2, axis=-1))
        if loss.num_noise == 4:
            noise = (jnp.zeros_like(x0), images(f"draw_m0_{k}"), *noise)
        coefficients = loss.coefficients(GOLDEN[f"{prefix}t{k}"]).cast(np.float32)
        labels = jnp.zeros(len(x0), jnp.int32)
        state, values = step(states[-1], seeds.key("unused"), x0, labels, coefficients, noise)
        states.append(state)
        metrics.append(values)
    return states, metrics


def by_path(tree):
    """Arrays by path, of weights or of the moments of the optimiser."""
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tree)}


def all_arrays(weights):
    return by_path(nnx.merge_state(*weights))


def is_key_bias(parameter):
    """It adds the same number to all of a query's logits, which the softmax does not see: its gradient is zero."""
    return parameter.path[-2:] == ("key", "bias")


def recorded(prefix, name):
    """Pairs of a parameter and the original's array for it, all those under ``name``."""
    found = [(p, f"{prefix}{name}__{p.source}") for p in parameters(prefix)]
    assert any(key in GOLDEN for _, key in found)
    return [(p, p.convert(GOLDEN[key])) for p, key in found if key in GOLDEN]


@cases
def test_losses_gradient_norms_and_rates(prefix):
    """As the original logs them: the norm before clipping, the rate that the step used."""
    _, metrics = trained(prefix)
    assert all((m["loss"].dtype, m["loss"].shape) == (np.float32, (4,)) for m in metrics)
    # 1e-6: float32 sums in another order, of 1536 squares and of some 80,000.
    np.testing.assert_allclose([m["loss"].mean() for m in metrics], GOLDEN[prefix + "loss"], rtol=1e-6)
    np.testing.assert_allclose([m["grad_norm"] for m in metrics], GOLDEN[prefix + "grad_norm"], rtol=1e-6)
    # 3e-7: our rate is float32, and warms up by what is missing of the final rate.
    np.testing.assert_allclose([m["lr"] for m in metrics], GOLDEN[prefix + "lr"], rtol=3e-7)
    assert metrics[0]["lr"] == 0


@pytest.mark.slow
@cases
def test_parameters_after_each_step(prefix):
    states, metrics = trained(prefix)
    steps = range(1, len(states)) if prefix == "a__" else [len(states) - 1]
    for step in steps:
        ours, pairs = all_arrays(states[step].online), recorded(prefix, f"params{step}")
        assert len(pairs) == len(ours)
        for parameter, expected in pairs:
            # 5e-7: a few roundings of numbers of order one, against steps of 1e-4 and more. But Adam makes steps of
            # full length even of a gradient that is nothing but rounding, unless its epsilon is larger (case b).
            walk = sum(float(m["lr"]) for m in metrics[:step]) if is_key_bias(parameter) else 0
            atol = walk if prefix == "a__" else walk / 1000
            np.testing.assert_allclose(ours[parameter.path], expected, rtol=0, atol=5e-7 + atol, err_msg=str(parameter))
    # The rate was 0 in the first step.
    chex.assert_trees_all_equal(states[1].online, states[0].online)


@cases
def test_moments_of_adam_follow_from_the_clipped_gradients(prefix):
    """In case a all gradients are longer than 1 and clipped, in case b none are."""
    states, _ = trained(prefix)
    case = CASES[prefix]["config"]["diffusion"]["training"]["optimizer"]
    mean = square = 0
    for step in range(len(states) - 1) if prefix == "a__" else [0]:
        pairs = recorded(prefix, f"grad{step}")
        scale = min(1, case["grad_clip"] / (GOLDEN[prefix + "grad_norm"][step] + 1e-6))
        assert (scale < 1) == (prefix == "a__")
        gradient = {p.path: scale * array.astype(np.float64) for p, array in pairs}
        mean = {k: case["beta_1"] * (mean and mean[k]) + (1 - case["beta_1"]) * g for k, g in gradient.items()}
        square = {k: case["beta_2"] * (square and square[k]) + (1 - case["beta_2"]) * g**2 for k, g in gradient.items()}
        check_moments(prefix, states[step + 1], mean, square)
    if prefix == "a__":
        check_moments(prefix, states[-1], *({p.path: a for p, a in recorded(prefix, f"adam_{m}")} for m in "mv"))


def check_moments(prefix, state, mean, square):
    for name, expected in (("mu", mean), ("nu", square)):
        ours = by_path(optax.tree.get(state.optimizer, name))
        assert ours.keys() == expected.keys()
        for parameter in parameters(prefix):
            if parameter.path not in ours:
                continue
            if is_key_bias(parameter):  # rounding, on both sides
                assert np.abs(ours[parameter.path]).max() < 1e-8 and np.abs(expected[parameter.path]).max() < 1e-8
                continue
            # 5e-5 of the array's largest: float32 gradients, which lose a few of their digits on the way back.
            atol = 5e-5 * np.abs(expected[parameter.path]).max()
            np.testing.assert_allclose(ours[parameter.path], expected[parameter.path], rtol=0, atol=atol)


@cases
def test_the_average_after_the_last_step(prefix):
    states, _ = trained(prefix)
    ours = all_arrays(states[-1].ema)
    pairs = recorded(prefix, f"ema{len(states) - 1}")
    assert len(pairs) == len(ours)
    for parameter, expected in pairs:
        # 5e-7: the original multiplies twice and adds in float32, which moves even frozen frequencies by a rounding a
        # step; a decay of 0.9 (case b) has moved the average by 1e-4 and more.
        atol = 5e-7 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(ours[parameter.path], expected, rtol=0, atol=atol)


@pytest.mark.slow
def test_fourier_frequencies_are_not_trained():
    states, _ = trained("a__")
    path = ("layers", "fourier", "frequencies")
    assert CASES["a__"]["not_trained"] == [p.source for p in parameters("a__") if p.path == path]
    start = by_path(states[0].online.frozen)
    assert [*start] == [path]
    for weights in (states[-1].online, states[-1].ema):
        np.testing.assert_array_equal(by_path(weights.frozen)[path], start[path])
        assert path not in by_path(weights.params)
    assert path not in by_path(optax.tree.get(states[-1].optimizer, "mu"))


# What a step promises, with a network that compiles in no time.

N, SIZE = 8, 3
SDE = pj.sde.PSLD()
RATE = optax.constant_schedule(1.0)
DESCENT = optax.sgd(1.0)  # new parameters are the old ones minus the gradient


class Tiny(nnx.Module):
    """Two layers with the signature of the networks, frozen frequencies and dropout; with classes, a classifier."""

    def __init__(self, n_out=2, dropout=0.0, classes=False):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(2, 6, rngs=rngs, param_dtype=jnp.float64)
        self.frequencies = models.Frozen(jnp.arange(6.0))
        self.dropout = nnx.Dropout(dropout)
        self.second = nnx.Linear(6, n_out, rngs=rngs, param_dtype=jnp.float64)
        self.classes = classes

    def __call__(self, z, t, *, deterministic=True, rngs=None):
        h = jnp.tanh(self.first(z) + jnp.sin(t[:, None, None, None] * self.frequencies[...]))
        h = self.second(self.dropout(h, deterministic=deterministic, rngs=rngs))
        return h.mean(axis=(1, 2)) if self.classes else h


def batch(loss):
    """Images, labels, coefficients."""
    rng = seeds.generator("batch")
    x0 = rng.standard_normal((N, SIZE, SIZE, 1))
    return jnp.asarray(x0), jnp.asarray(rng.integers(0, 3, N)), loss.coefficients(rng.uniform(0.1, 1, N))


def noises(loss):
    rng = seeds.generator("noise")
    return tuple(jnp.asarray(rng.standard_normal((N, SIZE, SIZE, 1))) for _ in range(loss.num_noise))


def one_step(net, loss, data, noise=None, *, key=0, ema=True, start=None, **options):
    """The state after one step of gradient descent, and its metrics."""
    state = create_state(net, DESCENT, ema) if start is None else start
    return jit(make_train_step(net, loss, DESCENT, RATE, **options))(state, seeds.key(f"step {key}"), *data, noise)


@pytest.mark.parametrize("reduce_mean", [True, False])
@pytest.mark.parametrize("classes", [False, True])
def test_the_gradient_is_that_of_the_batch_however_it_is_cut_up(reduce_mean, classes):
    net = Tiny(n_out=3 if classes else 2, classes=classes)
    loss = ClassifierLoss(SDE, reduce_mean=reduce_mean) if classes else ScoreLoss(SDE, 2, 2, reduce_mean=reduce_mean)
    data, noise = batch(loss), noises(loss)
    graph, params, frozen = nnx.split(net, nnx.Param, ...)

    def objective(params):
        values, extra = loss(nnx.merge(graph, params, frozen), data[2], *data[:2], noise)
        return values.mean() if reduce_mean else values.sum(), {"loss": values, **extra}

    gradient, reported = jit(jax.grad(objective, has_aux=True))(params)
    expected = jax.tree.map(jnp.subtract, params, gradient)
    for accumulate in (1, 4):
        state, metrics = one_step(net, loss, data, noise, accumulate=accumulate)
        # 1e-12: float64 sums in another order.
        chex.assert_trees_all_close(state.online.params, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-12)
        assert metrics.keys() == reported.keys() | {"grad_norm", "lr"}
        for name, values in reported.items():  # of every sample, in the order of the batch
            np.testing.assert_allclose(metrics[name], values, rtol=1e-12)
        assert state.step == 1
        chex.assert_trees_all_equal(state.online.frozen, frozen)


@pytest.mark.slow
def test_what_is_computed_again_is_the_same_and_is_not_kept():
    options = {"in_ch": 2, "out_ch": 2, "image_size": SIZE, "nf": 4, "ch_mult": (1,), "num_res_blocks": 2}
    net = models.NCSNpp(models.NCSNppConfig(**options, attn_resolutions=(), dropout=0.5), rngs=nnx.Rngs(0))
    loss = ScoreLoss(SDE, 2, 2)
    data, noise = jax.tree.map(lambda a: a.astype(np.float32), (batch(loss), noises(loss)))
    (kept, plain), (again, remat) = (one_step(net, loss, data, noise, remat=remat) for remat in (False, True))
    # Float32, sums in another order; the dropout is the same.
    np.testing.assert_allclose(remat["loss"], plain["loss"], rtol=1e-5)
    chex.assert_trees_all_close(again.online.params, kept.online.params, rtol=1e-4, atol=1e-5)

    def activations(transform):
        """Numbers that a gradient to the parameters holds on to."""
        graph, params = nnx.split(net)

        def out(params):
            network = transform(lambda z, t: nnx.merge(graph, params)(z, t))
            return network(jnp.zeros((N, SIZE, SIZE, 2), jnp.float32), jnp.full(N, 0.5, jnp.float32))

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(out, p)[1], params)))

    assert activations(keep_sums) < 0.3 * activations(lambda network: network)


def test_noise_depends_on_the_key_and_the_step_and_not_on_the_parts():
    loss = ScoreLoss(SDE, 2, 2)
    net, data = Tiny(), batch(loss)
    state, metrics = one_step(net, loss, data)
    cut = one_step(net, loss, data, accumulate=2)[1]
    # 1e-12: the same noise, other sums, in float64.
    np.testing.assert_allclose(cut["loss"], metrics["loss"], rtol=1e-12)
    start = dataclasses.replace(create_state(net, DESCENT, True), step=state.step)
    for _, other in (one_step(net, loss, data, key=1), one_step(net, loss, data, start=start)):
        assert not np.any(np.isclose(other["loss"], metrics["loss"], rtol=1e-6))


def test_noise_is_standard_normal_and_independent():
    class Echo:
        """Reports its noise."""

        reduce_mean, num_noise = True, 4

        def __call__(self, network, coefficients, x0, labels, noise):
            return network(jnp.concatenate([x0, x0], axis=-1), coefficients.t).mean((1, 2, 3)), {"noise": noise}

    loss = ScoreLoss(SDE, 2, 2)
    _, labels, coefficients = batch(loss)
    images = jnp.zeros((N, 30, 30, 1), jnp.float32)
    noise = one_step(Tiny(), Echo(), (images, labels, coefficients))[1]["noise"]
    assert all(a.dtype == np.float32 for a in noise)
    rows = np.concatenate([np.reshape(a, (N, -1)) for a in noise])  # 32 images of 900 pixels
    # 5.5 standard deviations for hundreds of pairs, of means and correlations over 900 pixels.
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=5.5 / 30)
    np.testing.assert_allclose(rows @ rows.T / 900, np.eye(32), atol=5.5 * np.sqrt(2) / 30)


def test_dropout_differs_between_samples_parts_and_steps():
    loss = ScoreLoss(SDE, 2, 2)
    # The same image, time and noise N times: only dropout tells the samples apart.
    data, noise = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a)[:1], N, axis=0), (batch(loss), noises(loss)))
    for accumulate in (1, 2):
        plain = one_step(Tiny(), loss, data, noise, accumulate=accumulate)[1]["loss"]
        assert len(np.unique(plain)) == 1
        net = Tiny(dropout=0.5)
        state, metrics = one_step(net, loss, data, noise, accumulate=accumulate)
        assert np.all(np.isfinite(metrics["loss"])) and len(np.unique([*metrics["loss"], plain[0]])) == N + 1
        again = one_step(net, loss, data, noise, accumulate=accumulate)
        chex.assert_trees_all_equal(again, (state, metrics))
        start = dataclasses.replace(create_state(net, DESCENT, True), step=state.step)
        later = one_step(net, loss, data, noise, accumulate=accumulate, start=start)[1]
        assert not np.any(later["loss"] == metrics["loss"])


def test_the_average_is_optional_and_starts_as_a_copy(key):
    loss, net = ScoreLoss(SDE, 2, 2), Tiny()
    data, noise = batch(loss), noises(loss)
    off, metrics = one_step(net, loss, data, noise, ema=False)
    on, same = one_step(net, loss, data, noise, ema_decay=0.75)
    assert off.ema is None
    chex.assert_trees_all_equal((off.online, metrics), (on.online, same))
    start = create_state(net, DESCENT, True)
    chex.assert_trees_all_equal(start.ema, start.online)
    # After the update of the weights, as in the original. 1e-12: float64.
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, start.online, on.online)
    chex.assert_trees_all_close(on.ema, expected, rtol=1e-12)
    warm = one_step(net, loss, data, noise, ema_decay=0.75, ema_warmup=True)[0]
    expected = jax.tree.map(lambda a, p: 0.1 * a + 0.9 * p, start.online, on.online)
    chex.assert_trees_all_close(warm.ema, expected, atol=1e-7)  # its decay is float32

    # The step may take its state's memory: no two of its arrays are the same.
    step = jax.jit(make_train_step(net, loss, DESCENT, RATE, ema_decay=0.75), donate_argnums=0)
    chex.assert_trees_all_close(step(start, key, *data, noise)[0], on, rtol=1e-12)


def test_weights_are_a_dict_and_back():
    net = Tiny()
    weights = create_state(net, DESCENT, False).online
    tree = weights.as_dict()
    assert tree.keys() == {"first", "second", "frequencies"}
    zero = weights.updated(jax.tree.map(jnp.zeros_like, tree))
    chex.assert_trees_all_equal(weights.as_dict(), tree)  # not replaced in place
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(zero))
    chex.assert_trees_all_equal(zero.updated(tree), weights)
    assert jax.tree.structure(zero) == jax.tree.structure(weights)


def test_the_evaluation_of_a_sample_is_its_own(key):
    """Its noise follows from its key, its loss from nothing else in the batch; dropout is off."""
    loss = ScoreLoss(SDE, 2, 2, objective="dsm")
    weights = create_state(Tiny(), DESCENT, False).online
    data, keys = batch(loss), jax.random.split(jax.random.fold_in(key, 0), N)
    whole = jit(make_eval_step(Tiny(), loss))(weights, keys, *data)["loss"]
    order = np.array([5, 2, 7])
    part = jax.tree.map(lambda a: a[order], (keys, *data))
    # 1e-12: float64.
    dropout = jit(make_eval_step(Tiny(dropout=0.9), loss))(weights, *part)["loss"]
    np.testing.assert_allclose(dropout, whole[order], rtol=1e-12)
    other = jit(make_eval_step(Tiny(), loss))(weights, jax.random.split(jax.random.fold_in(key, 1), N), *data)["loss"]
    assert not np.any(np.isclose(other, whole, rtol=1e-6))
