"""Training losses: against the original's numbers, and against the identities that make them score matching."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import psld_jax as pj
from psld_jax.training.losses import ClassifierLoss, ScoreLoss, draw_times, perturb

DESCRIPTION, GOLDEN = golden_data.load("losses")
TIMES = np.array([1e-5, 1e-4, 1e-3, 0.02, 0.1, 0.3, 0.7, 1.0])
DATA_STD = 0.6
SDES = {
    "both": pj.sde.PSLD(),
    "momentum": pj.sde.PSLD(gamma=0.0, nu=4.0),
    "position": pj.sde.PSLD(gamma=4.0, nu=0.0, decomposition="upper"),
    "rising": pj.sde.PSLD(0.25, 4.25, beta_min=0.1, beta_max=20.0, kappa=0.1, jitter=0.0),
    "vp": pj.sde.VPSDE(),
}
# Rows are orthogonal and of mean square 1: as images and noises they have the moments of the law exactly.
EXACT = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float64)


def transpose(a):
    return np.swapaxes(a, -1, -2)


def score_loss(sde, *, half=False, **options):
    """The loss of a network for images of one channel; ``half``: that predicts one block."""
    k = sde.num_blocks
    return ScoreLoss(sde, k, 1 if half or sde.data_std is not None else k, **options)


def exact_batch(count, scale=1.0):
    """Images ``[n, 2, 2, 1]`` of standard deviation ``scale`` and ``count`` noises, with exact second moments."""
    rows = [np.broadcast_to(row.reshape(1, 2, 2, 1), (len(TIMES), 2, 2, 1)) for row in EXACT]
    return scale * rows[1], [rows[0], *rows[2:]][:count]


def random_batch(rng, count):
    x0, *noise = rng.standard_normal((1 + count, len(TIMES), 3, 2, 1))
    return x0, noise


def as_vectors(images):
    """``[n, H, W, K]`` or K arrays ``[n, H, W, 1]`` to ``[n, K, pixels]``."""
    stacked = images if not isinstance(images, list | tuple) else np.concatenate(images, axis=-1)
    return np.moveaxis(np.asarray(stacked), -1, 1).reshape(len(stacked), np.shape(stacked)[-1], -1)


class Recorder:
    """A network that gives a fixed output, and remembers what it saw."""

    def __init__(self, output):
        self.output = output

    def __call__(self, images, t):
        self.images, self.t = images, t
        return self.output


# The original's numbers. Everything is float32 on both sides, as in training.


def golden_batch(p, num_noise):
    """``x_0`` and the noises of one reference case, as the loss takes them."""

    def images(name):
        return jnp.asarray(np.moveaxis(GOLDEN[p + name], 1, -1), jnp.float32)

    x0 = images("x_0")
    if not p.startswith("v"):
        noise = jnp.split(images("eps_given" if p + "eps_given" in GOLDEN else "draw_1"), 2, axis=-1)
    else:
        noise = [images("draw_0")]
    if num_noise == 4:  # z_0 is drawn: its position is x_0, without noise
        noise = [jnp.zeros_like(x0), images("draw_0"), *noise]
    return x0, noise


def check_golden(case, loss, network, seen_name, labels=None):
    """Network input, time and loss of one reference case; returns what else the loss reports."""
    p = case["prefix"]
    x0, noise = golden_batch(p, loss.num_noise)
    assert len(noise) == loss.num_noise
    values, extra = loss(network, loss.coefficients(GOLDEN[p + "t"]).cast(np.float32), x0, labels, noise)
    seen = np.moveaxis(GOLDEN[p + seen_name], 1, -1)
    assert (network.images.dtype, values.dtype, values.shape) == (jnp.float32, jnp.float32, (len(x0),))
    # 1e-6: a few roundings of float32 in numbers of up to 4.
    np.testing.assert_allclose(network.images, seen, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(network.t, GOLDEN[p + "t"].astype(np.float32))
    # 1e-6: the original sums hundreds of float32 in another order.
    np.testing.assert_allclose(values.mean() if loss.reduce_mean else values.sum(), case["loss"], rtol=1e-6)
    return extra


@pytest.mark.parametrize("case", DESCRIPTION["score_loss_psld"], ids=lambda c: c["prefix"])
def test_psld_score_loss_is_the_original_s(case):
    prediction = jnp.asarray(np.moveaxis(GOLDEN[case["prefix"] + "eps_pred"], 1, -1))
    loss = ScoreLoss(
        golden_data.build_sde(case["sde"]),
        GOLDEN[case["prefix"] + "z_t"].shape[1],
        prediction.shape[-1],
        objective=case["training_mode"],
        reduce_mean=case["reduce_mean"],
    )
    assert check_golden(case, loss, Recorder(prediction), "z_t") == {}


@pytest.mark.parametrize("case", DESCRIPTION["score_loss_vp"], ids=lambda c: c["prefix"])
def test_vp_score_loss_is_the_original_s(case):
    prediction = jnp.asarray(np.moveaxis(GOLDEN[case["prefix"] + "eps_pred"], 1, -1))
    loss = ScoreLoss(
        pj.sde.VPSDE(case["beta_min"], case["beta_max"]),
        prediction.shape[-1],
        prediction.shape[-1],
        weighting=case["weighting"],
        norm=case["l_type"],
        reduce_mean=case["reduce_mean"],
    )
    assert check_golden(case, loss, Recorder(prediction), "x_t") == {}


class StandInClassifier(Recorder):
    """The formula of the reference classifier, which flattens images channel by channel."""

    def __call__(self, images, t):
        super().__call__(images, t)
        features = jnp.tanh(jnp.moveaxis(images, -1, 1)).reshape(len(images), -1)
        self.logits = (0.5 + t)[:, None] * (features @ self.output.T) / np.float32(np.sqrt(features.shape[1])) * 4
        return self.logits


@pytest.mark.parametrize("case", DESCRIPTION["tce_loss"], ids=lambda c: c["prefix"])
def test_classifier_loss_is_the_original_s(case):
    p = case["prefix"]
    loss = ClassifierLoss(
        golden_data.build_sde(case["sde"]),
        objective=case["diffusion_training_mode"],
        reduce_mean=case["diffusion_reduce_mean"],
    )
    network = StandInClassifier(jnp.asarray(GOLDEN[p + "clf_W"]))
    extra = check_golden(case, loss, network, "u_t", jnp.asarray(GOLDEN[p + "y"]))
    # 1e-5: the formula's sum of 96 float32 products.
    np.testing.assert_allclose(network.logits, GOLDEN[p + "logits"], rtol=0, atol=1e-5)
    assert extra.keys() == {"accuracy"} and extra["accuracy"].shape == (len(GOLDEN[p + "y"]),)
    assert float(extra["accuracy"].mean()) == GOLDEN[p + "top1_acc"] == case["acc"]


# What the losses measure.


def weighted_losses():
    """Every kind of network: diffusion, ``data_std`` (``None``: not preconditioned), half-width or not, objective."""
    for name, sde in SDES.items():
        for objective in ("hsm", "dsm") if sde.num_blocks == 2 else ("hsm",):
            for half in (False, True) if name in ("momentum", "position") else (False,):
                yield pytest.param(sde, None, half, objective, id=f"{name}-{objective}{'-half' * half}")
        yield pytest.param(sde, DATA_STD, False, "hsm", id=f"{name}-preconditioned")


@pytest.mark.parametrize(("sde", "data_std", "half", "objective"), [*weighted_losses()])
def test_likelihood_weighting_is_the_squared_error_of_the_score_seen_by_the_noise(rng, sde, data_std, half, objective):
    """``||G^T (score - kernel score)||^2``, from the kernel's own score ``-Sigma^-1 (z - mu x_0 - Psi z_0)``."""
    if data_std is not None:
        sde = sde.preconditioned(data_std)
    options = {"half": half, "objective": objective, "weighting": "nll"}
    sums, means = (score_loss(sde, **options, reduce_mean=mean) for mean in (False, True))
    (x0, noise), k = random_batch(rng, sums.num_noise), sde.num_blocks
    prediction = rng.standard_normal((*x0.shape[:-1], len(sums.predicted)))

    cov0 = np.zeros((k, k)) if objective == "dsm" else None
    eps, network = as_vectors(noise[-k:]), as_vectors(prediction)
    kernel_score = -np.linalg.solve(sde.cov(TIMES, cov0), sde.factor(TIMES, cov0) @ eps)
    if data_std is not None:
        z = sde.mean(TIMES) @ as_vectors(x0) + sde.factor(TIMES) @ eps
        score = sde.score_skip(TIMES) @ z + sde.score_matrix(TIMES)[..., :1] @ network
    else:
        filled = np.zeros_like(eps)
        filled[:, list(sums.predicted)] = network
        score = sde.score_matrix(TIMES, cov0) @ filled
    expected = np.square(transpose(sde.dispersion(TIMES)) @ (score - kernel_score))
    if k == 1:  # g^2 = beta
        direct = sde.beta(TIMES)[:, None, None] * np.square(score - kernel_score)
        np.testing.assert_allclose(expected, direct, rtol=1e-13)

    for loss, total in ((sums, expected.sum((1, 2))), (means, expected.mean((1, 2)))):
        values, _ = loss(Recorder(prediction), loss.coefficients(TIMES), x0, None, noise)
        # 1e-11: near t = 0 the covariance has a condition number of 1e7, which costs some of float64's 16 digits.
        np.testing.assert_allclose(values, total, rtol=1e-11)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("reduce_mean", [True, False])
@pytest.mark.parametrize("name", ["both", "momentum", "position"])
def test_without_weighting_it_is_the_error_of_the_predicted_eps(rng, name, reduce_mean, norm):
    """A half-width network learns the block that it is trusted with: momentum's eps, or position's."""
    half = name != "both"
    loss = score_loss(SDES[name], half=half, norm=norm, reduce_mean=reduce_mean)
    x0, noise = random_batch(rng, 2)
    prediction = rng.standard_normal((*x0.shape[:-1], 1 if half else 2))
    target = {"both": noise, "momentum": noise[1:], "position": noise[:1]}[name]
    error = np.abs(prediction - np.concatenate(target, axis=-1)) ** (2 if norm == "l2" else 1)
    values, _ = loss(Recorder(prediction), loss.coefficients(TIMES), x0, None, noise)
    expected = error.mean((1, 2, 3)) if reduce_mean else error.sum((1, 2, 3))
    np.testing.assert_allclose(values, expected, rtol=1e-13)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_denoising_and_hybrid_score_matching_have_the_same_law(sde):
    hybrid, denoising = (score_loss(sde, objective=name) for name in ("hsm", "dsm"))
    k, (a, b) = sde.num_blocks, (loss.coefficients(TIMES) for loss in (hybrid, denoising))
    assert (hybrid.num_noise, denoising.num_noise) == ((2, 4) if k == 2 else (1, 1))
    np.testing.assert_array_equal(a.kernel[..., :1], b.kernel[..., :1])  # the mean
    for coefficients in (a, b):
        spread = coefficients.kernel[..., 1:]
        cov = sde.cov(TIMES)
        scale = np.sqrt(np.einsum("nii,njj->nij", cov, cov))
        # 1e-13: a correlation, in float64.
        np.testing.assert_allclose(spread @ transpose(spread) / scale, cov / scale, rtol=0, atol=1e-13)
    # The noise that the network must find is the last K: the kernel given z_0.
    rest = b.kernel[..., -k:]
    np.testing.assert_allclose(rest @ transpose(rest), sde.cov(TIMES, denoising.start_cov), rtol=1e-12)
    if k == 2:
        assert np.all(denoising.start_cov == 0)
        np.testing.assert_array_equal(b.target[0], np.eye(5)[-2:])
        # Drawing z_0 takes no noise for the position: x_0 is known.
        np.testing.assert_array_equal(b.kernel[..., 1], 0)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("data_std", [0.05, DATA_STD, 3.0])
def test_a_preconditioned_network_sees_and_predicts_unit_variance(sde, data_std):
    """With exact moments in place of an expectation: unit variances, and 0 is the best guess for Gaussian data."""
    loss = score_loss(sde.preconditioned(data_std))
    k, coefficients = sde.num_blocks, loss.coefficients(TIMES)
    x0, noise = exact_batch(loss.num_noise, data_std)
    seen = as_vectors(perturb(coefficients, x0, noise))
    target = coefficients.target @ as_vectors([x0, *noise])
    # 1e-12: float64, with nothing that cancels, down to t = 1e-5.
    np.testing.assert_allclose(seen @ transpose(seen) / 4, np.broadcast_to(np.eye(k), (8, k, k)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.square(target).mean(axis=(1, 2)), 1, rtol=1e-12)
    np.testing.assert_allclose(target @ transpose(seen) / 4, 0, atol=1e-12)

    values, _ = loss(Recorder(np.zeros_like(x0)), coefficients, x0, None, noise)
    np.testing.assert_allclose(values, 1, rtol=1e-12)


frictions = st.tuples(st.floats(0, 5), st.floats(0, 5)).filter(lambda pair: abs(pair[0] - pair[1]) > 0.1)
phase_space = st.builds(
    lambda frictions, *rest: pj.sde.PSLD(*frictions, *rest),
    frictions,
    st.floats(0.1, 8),
    st.floats(0.1, 20),
    st.floats(0, 1),
    st.sampled_from(["lower", "upper"]),
)
diffusions = phase_space | st.builds(pj.sde.VPSDE, st.floats(0.1, 8), st.floats(0.1, 20))


@given(diffusions, st.floats(0.05, 5), st.lists(st.floats(1e-5, 1), min_size=1, max_size=4))
def test_a_perfect_preconditioned_network_gives_the_kernel_s_score(raw, data_std, times):
    """``Cskip z + C target = -Sigma^-1 (z - mu x_0)`` for any ``x_0`` and eps: both sides are matrices."""
    sde, t = raw.preconditioned(data_std), np.array(times)
    loss = score_loss(sde)
    coefficients, k = loss.coefficients(t), sde.num_blocks
    ours = sde.score_skip(t) @ coefficients.kernel + sde.score_matrix(t)[..., :1] @ coefficients.target
    kernel_score = -np.linalg.solve(raw.cov(t), raw.factor(t))
    expected = np.concatenate([np.zeros((len(t), k, 1)), kernel_score], axis=-1)
    # The two terms of our side may cancel. 1e-10 of their size: condition numbers of up to 1e7, in float64.
    size = np.abs(sde.score_skip(t)) @ np.abs(coefficients.kernel) + np.abs(expected)
    error = np.abs(ours - expected).max((1, 2)) / size.max((1, 2))
    assert error.max() < 1e-10
    # Its input and its target are of unit variance for all of them.
    law = np.diag([data_std**2] + [1.0] * k)
    variance = coefficients.target @ law @ transpose(coefficients.target)
    np.testing.assert_allclose(variance, 1, rtol=1e-12)
    inputs = coefficients.inputs @ coefficients.kernel
    np.testing.assert_allclose(inputs @ law @ transpose(inputs), np.broadcast_to(np.eye(k), (len(t), k, k)), atol=1e-11)


def textbook_variance(sde, t):
    """The stationary covariance minus what is remembered of it, in float32: the form that cancels."""
    psi, prior, start = (np.asarray(a, np.float32) for a in (sde.transition(t, 0.0), sde.prior_cov(), sde.initial_cov))
    return (prior + psi @ (start - prior) @ psi.T)[0, 0]


@pytest.mark.parametrize("objective", ["hsm", "dsm"])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_coefficients_are_exact_in_float32_near_the_data(sde, objective):
    """Computed in float64 and cast once; computed in float32, the variance near the data would be noise."""
    t = np.array([1e-5, 3e-5, 1e-4])
    general = pj.sde.LinearSDE(  # the same diffusion by matrix exponentials, doubled up from where they are exact
        sde.unit_drift,
        sde.unit_diffusion,
        beta_min=sde.beta_min,
        beta_max=sde.beta_max,
        initial_cov=sde.initial_cov,
        decomposition=sde.decomposition,
        jitter=sde.jitter,
    )
    pairs = [(sde, general)]
    if objective == "hsm":
        pairs.append((sde.preconditioned(DATA_STD), general.preconditioned(DATA_STD)))
    for ours, reference in pairs:
        options = {"objective": objective, "weighting": "nll"}
        coefficients = score_loss(ours, **options).coefficients(t).cast(np.float32)
        leaves, expected = (
            jax.tree.leaves(coefficients),
            jax.tree.leaves(score_loss(reference, **options).coefficients(t)),
        )
        assert len(leaves) == len(expected) == (4 if ours.data_std is None else 5)
        for leaf, value in zip(leaves, expected, strict=True):
            assert leaf.dtype == np.float32
            # 1e-6 of every entry; 1e-12 of the largest: a triangle's zeros, by way of an inverse.
            np.testing.assert_allclose(leaf, value, rtol=1e-6, atol=1e-12 * np.abs(value).max())
    variance = sde.cov(1e-5)[0, 0] - sde.jitter
    assert abs(textbook_variance(sde, 1e-5) / variance - 1) > 1e-5


# Times.


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 64), st.sampled_from([1e-6, 1e-5, 1e-3, 0.5]))
def test_times_are_a_function_of_seed_and_step(seed, step, n, t_min):
    for sampling in ("uniform", "stratified"):
        t = draw_times(seed, step, n, t_min, sampling)
        assert t.shape == (n,) and t.dtype == np.float64
        assert t_min <= t.min() and t.max() <= 1
        np.testing.assert_array_equal(t, draw_times(seed, step, n, t_min, sampling))
        # Two draws of 53 random bits.
        assert not np.any(t == draw_times(seed, step + 1, n, t_min, sampling))
        assert not np.any(t == draw_times((seed + 1) % 2**64, step, n, t_min, sampling))
    if seed != step:
        assert not np.any(t == draw_times(step, seed, n, t_min, sampling))
    interval = np.floor((t - t_min) / (1 - t_min) * n).astype(int)
    np.testing.assert_array_equal(np.sort(interval), np.arange(n))


def test_the_order_of_the_intervals_is_random():
    """Images of a batch come in an order of their own; their times must not follow it."""
    order = np.argsort([draw_times(0, step, 4, sampling="stratified") for step in range(600)], axis=1)
    counts = np.unique(order, axis=0, return_counts=True)[1]
    # 24 orders, 25 times each: Poisson, 5 standard deviations.
    assert len(counts) == 24 and np.all(np.abs(counts - 25) < 25)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_times_are_uniform(sampling):
    """Within one step, and from step to step."""
    within = draw_times(1, 2, 40_000, 0.0, sampling)
    across = np.concatenate([draw_times(1, step, 2, 0.0, sampling) for step in range(2_000)])
    for u in (within, across):
        # 5 standard deviations of a mean over n, which stratifying only makes smaller.
        np.testing.assert_allclose(u.mean(), 1 / 2, atol=5 * np.sqrt(1 / 12 / len(u)))
        np.testing.assert_allclose(np.square(u).mean(), 1 / 3, atol=5 * np.sqrt(4 / 45 / len(u)))
    first = across[::2]
    # Correlation of one step with the next: 5 / sqrt(n).
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / np.sqrt(len(first))


# What is refused.


@pytest.mark.parametrize(
    ("sde", "channels", "options", "message"),
    [
        ("both", (6, 6), {"objective": "hms"}, "unknown training objective 'hms'. Did you mean 'hsm'"),
        ("both", (6, 6), {"weighting": "mle"}, "unknown loss weighting 'mle'.* Allowed: fid, nll"),
        ("both", (6, 6), {"norm": "l3"}, "unknown loss norm 'l3'.* Allowed: l1, l2"),
        ("vp", (3, 3), {"weighting": "nll", "norm": "l1"}, "weighting='nll' weights squared errors"),
        ("both", (5, 5), {}, "in_ch=5 must be divisible by 2"),
        ("both", (6, 3), {}, "out_ch=3 does not fit in_ch=6"),
        ("momentum", (6, 4), {}, "out_ch=4 does not fit in_ch=6"),
        ("vp", (3, 6), {}, "out_ch=6 does not fit in_ch=3"),
        ("preconditioned", (6, 6), {}, "out_ch=6 must be 3: a preconditioned network predicts one block"),
        ("preconditioned", (6, 3), {"objective": "dsm"}, "objective='dsm' must be 'hsm', or data_std 0"),
    ],
)
def test_score_losses_that_make_no_sense_are_refused(sde, channels, options, message):
    sde = SDES["both"].preconditioned(DATA_STD) if sde == "preconditioned" else SDES[sde]
    with pytest.raises(ValueError, match=message):
        ScoreLoss(sde, *channels, **options)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown training objective 'dms'. Did you mean 'dsm'"):
        ClassifierLoss(SDES["both"], objective="dms")
    with pytest.raises(ValueError, match="unknown time sampling 'importance'.* Allowed: stratified, uniform"):
        draw_times(0, 0, 4, sampling="importance")


def test_denoising_is_allowed_where_there_is_nothing_to_draw():
    """K = 1, or a momentum that starts at rest: denoising and hybrid are the same, preconditioned or not."""
    for sde in (SDES["vp"], pj.sde.PSLD(kappa=0.0)):
        for variant in (sde, sde.preconditioned(DATA_STD)):
            a, b = (score_loss(variant, objective=name).coefficients(TIMES) for name in ("hsm", "dsm"))
            jax.tree.map(np.testing.assert_array_equal, a, b)
