"""Conditions from ``generate``: checked before anything runs, counted, and the same whatever the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds
from flax import nnx

import psld_jax as pj
from psld_jax import build, scores
from psld_jax.build import Classifier
from psld_jax.models import NCSNpp, NCSNppConfig
from psld_jax.sampling.generate import prepare
from psld_jax.training.train import create_state, make_eval_step, make_train_step


@pytest.fixture(scope="module")
def mnist():
    return pj.load("mnist")


@pytest.fixture(scope="module")
def known(digits_model):
    """Six digits whose upper half is known."""
    return digits_model.data[:6], pj.operators.half_mask("top", digits_model.image_shape)


@jax.jit
def call(eps_fn, z, t):
    """Operation by operation a network takes a minute."""
    return eps_fn(z, t)


@pytest.mark.slow
def test_known_pixels_are_exact_and_samples_do_not_depend_on_the_batch(digits_model, known):
    images, mask = known
    options = {"nfe": 12, "seed": 1, "known": images, "mask": mask, "n": 6}
    x = pj.generate(digits_model, **options)
    np.testing.assert_array_equal(x[:, :4], np.clip(images, -1, 1)[:, :4])
    np.testing.assert_allclose(pj.generate(digits_model, **options, batch_size=4), x, atol=1e-4)
    other = pj.generate(digits_model, **{**options, "seed": 2})
    assert np.abs(other[:, 4:] - x[:, 4:]).max() > 0.1


def test_resampling_stays_in_the_budget(digits_model, known):
    images, mask = known
    options = {"nfe": 30, "known": images, "mask": mask, "resample": 4, "jump": 3}
    sampler = prepare(digits_model, "ancestral", **options)
    assert sampler.nfe == 29 and len(np.unique(sampler.table.times)) == 9  # 4 x 7 + 1
    with pytest.raises(ValueError, match="nfe"):
        prepare(digits_model, "ancestral", **{**options, "nfe": 4})


@pytest.mark.slow
def test_super_resolution_of_digits_agrees_with_the_measurement(digits_model):
    """Exact score, means over 2 x 2: a mixture is not the Gaussian that is assumed, and a trajectory may end at a digit
    that agrees less well than another; so half of the error without guidance. DPS does not know that means have a
    quarter of the variance, and trusts them less.
    """
    operator, truth = pj.operators.downsample(2), digits_model.data[:16]
    measured = np.asarray(operator(jnp.asarray(truth)))
    options = {"nfe": 40, "n": 16, "operator": operator, "measurement": measured, "noise_std": 0.1}
    errors = {}
    for posterior in ("pigdm", "dps"):
        x = pj.generate(digits_model, **options, posterior=posterior)
        errors[posterior] = np.sqrt(np.mean((np.asarray(operator(jnp.asarray(x))) - measured) ** 2))
    free = pj.generate(digits_model, nfe=40, n=16)
    error = np.sqrt(np.mean((np.asarray(operator(jnp.asarray(free))) - measured) ** 2))
    assert errors["pigdm"] < 0.5 * error
    assert errors["pigdm"] < errors["dps"] < 0.8 * error


@pytest.mark.slow
def test_guided_mnist(mnist):
    """Eight samples of other classes, judged by another classifier; 6 by chance is once in 40,000 times."""
    labels = np.arange(8)
    with jax.enable_x64(False):
        x = pj.generate(mnist, nfe=10, n=8, label=labels, classifier="mnist_clf", guidance=4.0)
        found = np.asarray(pj.metrics.judge("mnist")(x)).argmax(-1)
    assert np.sum(found == labels) >= 6


def test_adaptive_solvers_take_guidance_but_no_known_pixels(digits_model, known):
    images, mask = known
    with pytest.raises(ValueError, match="known pixels are replaced between steps"):
        prepare(digits_model, "rk45", known=images, mask=mask)
    prepare(digits_model, "rk45", operator=lambda x: x, measurement=images)


def _towards_zero(x, t):
    return jax.tree.map(lambda leaf: 0.5 * leaf, x)


def _bright(z, t):
    return jnp.stack([z[0].sum(axis=(1, 2, 3)), -z[0].sum(axis=(1, 2, 3))], axis=1)


@pytest.mark.parametrize("what", ["label", pytest.param("measurement", marks=pytest.mark.slow)])
def test_adaptive_solvers_tell_conditions_of_samples_apart(what, rng):
    """Each sample has steps of its own: labels of all of them would be broadcast, and guide it ``n`` times."""
    sde, shape = pj.sde.VPSDE(), (2, 2, 1)
    model = pj.from_function(_towards_zero, sde, shape, predicts="data")
    classifier = {"classifier": Classifier(sde, _bright, None, shape, 2)}
    values = {"label": np.array([0, 1, 1]), "measurement": rng.uniform(-1, 1, (3, 1, 1, 1)).astype(np.float32)}[what]
    options = {"rtol": 0.1, "atol": 0.1, "n": 3}
    options |= classifier if what == "label" else {"operator": pj.operators.downsample(2)}
    drawn = pj.generate(model, "rk23", **{what: values}, **options)
    for i in range(3):
        alone = pj.generate(model, "rk23", **{what: values[i : i + 1]}, **options)
        np.testing.assert_array_equal(alone[i], drawn[i])


def test_labels_are_as_many_as_samples():
    sde = pj.sde.VPSDE()
    guided = scores.classifier_guided(_towards_zero, _bright, sde, np.arange(3) % 2)
    with pytest.raises(ValueError, match="3 labels for a state of 2 samples"):
        guided((jnp.zeros((2, 2, 2, 1)),), 0.5)


def test_bad_conditions(digits_model, mnist, known):
    def mixed(x):
        return jnp.tanh(x - 0.5 * x.mean(axis=0))

    images, mask = known
    clf = pj.load("mnist_clf")
    other = dataclasses.replace(clf, sde=pj.sde.PSLD(0.25, 4.25))
    wide = dataclasses.replace(clf, image_shape=(64, 64, 1))
    for model, options, message in (
        (mnist, {"label": 10, "classifier": clf}, "must lie in 0 to 9"),
        (mnist, {"label": -1, "classifier": clf}, "must lie in 0 to 9"),
        (mnist, {"label": [1] * 90 + [11], "classifier": clf}, "^label=11 must lie in 0 to 9$"),
        (mnist, {"label": 1.5, "classifier": clf}, "must be an integer"),
        (mnist, {"label": 1}, "takes no labels"),
        (mnist, {"label": 1, "classifier": other}, "the classifier is of PSLD"),
        (mnist, {"label": 1, "classifier": wide}, r"of images \(64, 64, 1\)"),
        (mnist, {"label": 1, "classifier": "mnist"}, "is no classifier"),
        (mnist, {"label": 1, "classifier": clf, "guidance": -1.0}, "guidance=-1"),
        (mnist, {"classifier": clf}, "give label"),
        (digits_model, {"known": images}, "belong together"),
        (digits_model, {"known": images, "mask": mask[:, :5]}, "mask has shape"),
        (digits_model, {"known": images, "mask": mask * 0.5}, "0 only"),
        (digits_model, {"known": images[:, :5], "mask": mask}, "known images have shape"),
        (digits_model, {"operator": jnp.square, "measurement": images}, "must be linear"),
        (digits_model, {"operator": lambda x: x[:, ::2], "measurement": images}, "the measurement has shape"),
        (digits_model, {"operator": lambda x: x, "measurement": images, "posterior": "dsp"}, "Did you mean 'dps'"),
        (digits_model, {"known": images, "mask": mask, "resample": 0}, "resample=0"),
        (digits_model, {"operator": "downsample", "measurement": images}, "operator='downsample' must be a function"),
        (digits_model, {"operator": np.sort, "measurement": images}, "operator fails for images .2, 8, 8, 1."),
        (digits_model, {"operator": lambda x: x[0], "measurement": images}, "for two images"),
        (digits_model, {"operator": lambda x: x - x.mean(0), "measurement": images}, "must be linear|mixes images"),
        (digits_model, {"operator": lambda x: x[::-1], "measurement": images}, "mixes images"),
        (digits_model, {"operator": mixed, "measurement": images, "posterior": "dps"}, "mixes images"),
        (digits_model, {"operator": lambda x: x, "measurement": images[:0]}, "which holds nothing"),
        (digits_model, {"guidance": 4.0}, "guidance=4.0 has no effect by itself: give label"),
        (digits_model, {"posterior": "conjugate"}, "posterior='conjugate' has no effect by itself: give operator"),
        (digits_model, {"posterior": "dsp"}, "Did you mean 'dps'"),
        (digits_model, {"noise_std": 0.2}, "noise_std=0.2 has no effect"),
        (digits_model, {"noise_std": -1.0}, "noise_std=-1.0 must be"),
        (digits_model, {"fresh": False}, "fresh=False has no effect by itself: give known"),
        (digits_model, {"momentum_decay": 0.9}, "momentum_decay=0.9 has no effect"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            prepare(model, "RVV", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="6 entries for 7 samples"):
        pj.generate(digits_model, known=images, mask=mask, n=7)
    with pytest.raises(ValueError, match="does not divide"):
        pj.operators.downsample(3)(images)
    with pytest.raises(ValueError, match="Did you mean 'center'"):
        pj.operators.half_mask("centre", (8, 8, 1))


def test_blur_keeps_the_mean_of_what_is_inside():
    image = np.zeros((1, 15, 15, 2), np.float32)
    image[0, 7, 7] = (1.0, 2.0)
    blurred = np.asarray(pj.operators.blur(1.0)(jnp.asarray(image)))
    np.testing.assert_allclose(blurred.sum(axis=(0, 1, 2)), [1, 2], rtol=1e-5)
    at = np.arange(-1, 2)
    kernel = np.exp(-0.5 * at**2) / np.exp(-0.5 * np.arange(-3, 4) ** 2).sum()
    np.testing.assert_allclose(blurred[0, 6:9, 6:9, 0], np.outer(kernel, kernel), rtol=1e-5)


# --- networks that take labels ---------------------------------------------------------------------------------------

SMALL = NCSNppConfig(2, 1, 8, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), fir=False, num_labels=3)


@pytest.fixture(scope="module")
def labelled():
    """A small network whose label embedding is not zero, as an ``eps_fn``, and its diffusion."""
    sde, net = pj.sde.PSLD(0.01, 4.01).preconditioned(1.0), NCSNpp(SMALL, rngs=nnx.Rngs(0))
    table = net.layers["labels"]
    table.embedding = nnx.Param(jax.random.normal(seeds.key("labels"), table.embedding.shape))
    head = net.layers["out_conv"]
    head.kernel = nnx.Param(0.1 * jax.random.normal(seeds.key("head"), head.kernel.shape))
    for name, layer in net.layers.items():  # the last convolution of every branch begins at zero
        if "block" in name:
            layer.conv_1.kernel = nnx.Param(0.1 * jax.random.normal(seeds.key("blocks"), layer.conv_1.kernel.shape))
    return scores.network(net, sde), sde, net


@pytest.mark.slow
def test_labels_reach_the_network(key, labelled):
    eps_fn, sde, net = labelled
    z = sde.prior_sample(key, (6, 8, 8, 1))
    labels = np.array([0, 1, 2, 0, 1, 2])
    told, any_label = call(eps_fn.with_labels(labels), z, 0.5)[0], call(eps_fn, z, 0.5)[0]
    assert np.abs(told - any_label).max() > 1e-3
    # Tiles of four samples, the last of them padded: every sample keeps its own label.
    for i, label in enumerate(labels):
        one = call(eps_fn.with_labels(labels[i : i + 1]), tuple(leaf[i : i + 1] for leaf in z), 0.5)[0]
        np.testing.assert_allclose(told[i : i + 1], one, atol=1e-5)
        assert label == labels[i]
    with pytest.raises(ValueError, match="takes no labels"):
        NCSNpp(dataclasses.replace(SMALL, num_labels=0), rngs=nnx.Rngs(0))(
            jnp.zeros((1, 8, 8, 2)), 0.5, jnp.zeros(1, int)
        )
    with pytest.raises(ValueError, match="num_labels"):
        dataclasses.replace(SMALL, noise_cond=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted:
    """An ``eps_fn`` that takes labels: each class has a shift of its own, and no label that of all."""

    shift: jax.Array
    of_class: jax.Array

    def with_labels(self, labels):
        return Shifted(self.of_class[labels].reshape(-1, 1, 1, 1), self.of_class)

    def __call__(self, z, t):
        return jax.tree.map(lambda leaf: 0.1 * leaf + t * self.shift, z)


def test_classifier_free_guidance(key):
    sde, of_class = pj.sde.PSLD(0.01, 4.01), jnp.array([1.0, -2.0, 4.0])
    eps_fn = Shifted(of_class.mean(), of_class)
    z, labels = sde.prior_sample(key, (4, 8, 8, 1)), np.array([0, 1, 2, 1])
    told, free = call(eps_fn.with_labels(labels), z, 0.5)[0], call(eps_fn, z, 0.5)[0]
    guided = scores.classifier_free(eps_fn, labels, 2.5)
    np.testing.assert_allclose(call(guided, z, 0.5)[0], free + 2.5 * (told - free), atol=1e-5)
    np.testing.assert_allclose(call(scores.classifier_free(eps_fn, labels, 0.0), z, 0.5)[0], free, atol=1e-6)
    np.testing.assert_allclose(call(scores.classifier_free(eps_fn, labels), z, 0.5)[0], told, atol=1e-6)
    limited = scores.classifier_free(eps_fn, labels, 2.5, (0.6, 0.9))
    np.testing.assert_allclose(call(limited, z, 0.5)[0], told, atol=1e-6)
    assert np.abs(call(limited, z, 0.7)[0] - call(eps_fn.with_labels(labels), z, 0.7)[0]).max() > 1e-3


@dataclasses.dataclass(frozen=True)
class Counting:
    """An ``eps_fn`` that takes labels and counts its evaluations on the host."""

    calls: list

    def with_labels(self, labels):
        del labels
        return self

    def __call__(self, z, t):
        jax.debug.callback(lambda: self.calls.append(1))
        return jax.tree.map(lambda leaf: 0.1 * leaf, z)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7), (0.95, 1.0)])
def test_evaluations_of_guidance_are_counted(key, digits_model, interval):
    """The stated NFE is the number of calls, and stays in the budget."""
    calls = []
    model = dataclasses.replace(digits_model, eps_fn=Counting(calls), n_classes=10)
    sampler = prepare(model, "ddim", nfe=20, label=3, guidance=2.0, interval=interval)
    state, counts = sampler(key, np.arange(2))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == counts[0] <= 20
    assert sampler.nfe >= 18


@pytest.mark.slow
def test_training_tells_labels(key, labelled):
    """With dropout 0.999 the embedding of "any" learns, with 0 those of the labels; the held-out loss sees labels."""
    *_, net = labelled
    config = build.override(
        build.load_config("mnist"),
        {f"model.{name}": getattr(SMALL, name) for name in ("nf", "ch_mult", "image_size", "num_labels")},
    )
    loss, (transformation, rate) = build.build_loss(config), build.build_optimizer(config)
    images, labels = np.zeros((8, 8, 8, 1), np.float32), np.arange(8) % 3
    coefficients = loss.coefficients(np.linspace(0.1, 0.9, 8)).cast(np.float32)
    for dropout, rows in ((0.999, [False] * 3 + [True]), (0.0, [True] * 3 + [False])):
        step = jax.jit(make_train_step(net, loss, transformation, rate, label_dropout=dropout))
        state = create_state(net, transformation, ema=False)
        state, _ = step(state, key, images, labels, coefficients)
        moved = (
            np.abs(
                np.asarray(optax.tree_utils.tree_get(state.optimizer, "mu")["layers"]["labels"]["embedding"][...])
            ).max(axis=1)
            > 0
        )
        assert list(moved) == rows
    evaluate, keys = jax.jit(make_eval_step(net, loss)), jax.random.split(key, 8)
    values = [evaluate(state.online, keys, images, which, coefficients)["loss"] for which in (labels, (labels + 1) % 3)]
    assert np.abs(values[0] - values[1]).max() > 1e-5


@pytest.mark.slow
def test_training_begins_with_given_weights():
    """The shipped network with labels added gives what it gave: their embedding is zero."""
    config = build.override(
        build.load_config("mnist"), {"train.init": "mnist", "model.num_labels": 10, "data.path": "unused"}
    )
    net, model = build.initial_network(config), pj.load("mnist")
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
        for state in (nnx.to_pure_dict(nnx.state(net)), nnx.to_pure_dict(model.eps_fn.state))
    )
    added = {name: ours.pop(name) for name in ours.keys() - theirs.keys()}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert len(added) == 1 and not np.any(*added.values())
    with pytest.raises(ValueError, match="does not fit the network in"):
        build.initial_network(build.override(config, {"model.nf": 8}))
