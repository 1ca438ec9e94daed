"""Conditional samples: the original's recorded runs, and exact posteriors in closed form."""

import closed_forms
import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax._runtime.device import TimeFunction
from psld_jax.conditioning.guidance import gradient_matrix

GUIDED, GUIDED_ARRAYS = golden_data.load("sampler_cc_em_sde")
INPAINTED, INPAINTED_ARRAYS = golden_data.load("sampler_ip_em_sde")


def by_prefix(runs):
    return [pytest.param(run, id=run["prefix"]) for run in runs["runs"]]


def relative(ours, reference):
    return np.abs(np.concatenate([np.asarray(b) for b in ours], axis=-3) - reference).max() / np.abs(reference).max()


def golden_logits(weights):
    """The stand-in for the classifier: float32, flattened in the order C, H, W."""
    return jax.tree_util.Partial(flat_logits, weights)


def flat_logits(weights, z, t):
    flat = jnp.concatenate(z, axis=1).astype(jnp.float32).reshape(len(z[0]), -1)
    t = jnp.asarray(t, jnp.float32)
    return (0.5 + t) * (jnp.tanh(flat) @ weights.T) / jnp.sqrt(jnp.float32(flat.shape[1]))


@pytest.mark.parametrize("run", by_prefix(GUIDED))
def test_classifier_guidance_replays_the_original(run):
    """EM with the gradient of the classifier; the original asks it at the reversed time."""
    arrays, p = GUIDED_ARRAYS, run["prefix"]
    sde = golden_data.build_sde(run["sde"])
    grid = pj.grids.get(run["stride_type"])(run["n_discrete_steps_passed"], t_end=run["eval_eps"])
    table = pj.tabulate(pj.integrators.get("EM"), sde, grid, denoise=run["denoise"])
    labels = np.full(len(arrays[p + "init"]), run["label_to_sample"])
    guided = pj.scores.classifier_guided(
        golden_data.eps_fn(run["eps_fn"], sde),
        golden_logits(jnp.asarray(arrays[p + "clf_W"])),
        sde,
        labels,
        run["clf_temp"],
        time="original",
    )
    draws = np.stack([arrays[f"{p}draw_{i:03d}"] for i in range(table.num_draws)])
    z_T, noise = golden_data.state(sde, arrays[p + "init"]), golden_data.state(sde, draws, axis=2)
    z = pj.sample(guided, table, z_T, noise=noise, return_trajectory=True)
    # 1e-5: gradients and eps are float32, and a step multiplies them by up to 50.
    steps = run["n_discrete_steps_passed"]
    assert relative([leaf[1 : steps + 1] for leaf in z], arrays[p + "states"][:steps]) < 1e-5
    assert relative([leaf[-1] for leaf in z], arrays[p + "final"]) < 1e-5


def recorded_noise(sde, run, arrays, steps):
    """The draws in our order: those of the steps, then those of the known pixels, the start first.

    The original with DSM draws the momentum at t = 0 and the noise that comes after; our one draw has the same law.
    """
    p = run["prefix"]
    draws = [arrays[f"{p}draw_{i:03d}"] for i in range(run["n_draws"])]
    step_noise = np.stack(draws[4::3][:steps])
    known = []
    times = [1.0, *(1 - arrays[p + "ts"])]
    for k in range(steps + 1):
        momentum, eps = draws[2 + 3 * k], draws[3 + 3 * k]
        if run["training_mode"] == "dsm":
            t, start = times[k], np.sqrt(sde.initial_cov[1, 1])
            x, m = np.split(np.asarray(eps, np.float64), 2, axis=1)
            factor, after = sde.factor(t, np.zeros((2, 2))), sde.transition(t, 0.0)[:, 1] * start
            shift = [factor[i, 0] * x + factor[i, 1] * m + after[i] * momentum for i in range(2)]
            inverse = np.linalg.inv(sde.factor(t))
            eps = np.concatenate([inverse[i, 0] * shift[0] + inverse[i, 1] * shift[1] for i in range(2)], axis=1)
        known.append(eps)
    return step_noise, np.stack(known)


@pytest.mark.parametrize("run", by_prefix(INPAINTED))
def test_inpainting_replays_the_original(run):
    """EM with known pixels replaced after every step; the original is a step behind with their noise."""
    arrays, p = INPAINTED_ARRAYS, run["prefix"]
    sde = golden_data.build_sde(run["sde"])
    steps = run["n_discrete_steps_passed"]
    grid = pj.grids.get(run["stride_type"])(steps, t_end=run["eval_eps"])
    table = pj.tabulate(pj.integrators.get("EM"), sde, grid, denoise=run["denoise"])
    x, mask = arrays[p + "x_0"], arrays[p + "mask"]
    known = pj.known_pixels(sde, table, x, mask, time="original")
    step_noise, known_noise = recorded_noise(sde, run, arrays, steps)
    if run["denoise"]:
        known_noise = np.concatenate([known_noise, known_noise[-1:]])  # times zero: denoising takes means
    noise = golden_data.state(sde, np.concatenate([step_noise, known_noise]), axis=2)
    prior = np.sqrt(np.diag(sde.prior_cov()))
    z_T = sde.state(*(prior[i] * np.asarray(arrays[f"{p}draw_{i:03d}"], np.float64) for i in range(2)))
    eps = golden_data.eps_fn(run["eps_fn"], sde)
    z = pj.sample(eps, table, z_T, noise=noise, known=known, return_trajectory=True)
    assert relative([leaf[1 : steps + 1] for leaf in z], arrays[p + "states"][:steps]) < 1e-5  # as for EM
    if not run["denoise"]:
        return
    final, free = arrays[p + "final"], np.concatenate([mask, mask], axis=1) == 0
    ours = np.concatenate([np.asarray(leaf[-1]) for leaf in z], axis=1)
    # The original denoises at a float32 time, off by up to 2e-6 of 1e-3.
    assert np.abs(ours - final)[free].max() < 1e-5 * np.abs(final).max()
    if run["training_mode"] == "hsm":  # with DSM the original's mean holds a draw of the momentum at t = 0
        assert np.abs(ours - final)[~free].max() < 1e-5 * np.abs(final).max()


# --- Gaussian data: every posterior is known --------------------------------------------------------------------------

SDES = (
    pytest.param(pj.sde.PSLD(0.01, 4.01), id="psld"),
    pytest.param(pj.sde.VPSDE(0.1, 20.0), id="vp"),
    pytest.param(pj.sde.PSLD(0.01, 4.01).preconditioned(1.0), id="preconditioned"),
)
MEAN, SPREAD = 0.3, 0.8


def gaussian_eps(sde, mean=MEAN, spread=SPREAD):
    """The exact ``eps_fn`` of pixels ``N(mean, spread^2)``, independent: ``score = -S^-1 (z - mu mean)``."""

    def fn(t):
        total = sde.total_cov(t, spread)
        score = -np.linalg.inv(total)
        shift = np.linalg.solve(total, sde.mean(t)) * mean
        left = score - sde.score_skip(t)
        # A preconditioned network predicts the first block, along Sigma^-1 mu.
        solve = gradient_matrix(sde, t)
        return np.concatenate([solve @ left, solve @ shift], axis=-1)

    return closed_forms.affine(fn)


PATHS = [sde for sde in map(pj.sde.get, pj.sde.available()) if sde.num_blocks == 1]
PATHS += [pj.sde.Discrete("squaredcos_cap_v2"), pj.sde.Discrete(zero_terminal_snr=True), pj.sde.Flow(shift=3.0)]


def _data_matrices(sde, t):
    """``[U, V] [n, 1, 2 K]`` of ``E[x_0 | z] = U z + V eps``."""
    return np.concatenate(sde.denoiser(t), axis=-1)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_guidance_knows_every_path_on_the_device(sde):
    """Also where the signal vanishes, at t = 1, and where slopes jump, at the levels of a schedule."""
    made = pj.scores.posterior_guided(closed_forms.smooth_eps, sde, flat_logits, np.zeros((1, 1)))
    t = np.concatenate([np.geomspace(1e-4, 1, 300), 1 - np.geomspace(1e-9, 0.1, 300), np.arange(1, 20) / 20])
    for found, fn in ((made.gradient, gradient_matrix), (made.matrices, _data_matrices)):
        exact = fn(sde, t)
        scale = np.maximum(np.abs(exact), np.abs(fn(sde, 0.9 * t))).max(axis=(1, 2))
        assert (np.abs(np.asarray(found(jnp.asarray(t))) - exact).max(axis=(1, 2)) / scale).max() < 2e-9


@pytest.mark.parametrize("sde", SDES)
def test_data_matrices_give_the_posterior_mean(rng, sde):
    """``E[x_0 | z]`` of Gaussian data in closed form; float64."""
    t = np.array([1e-3, 0.1, 0.5, 1.0])
    matrices, mu = _data_matrices(sde, t), sde.mean(t)
    with jax.enable_x64(True):
        z = sde.state(*rng.standard_normal((sde.num_blocks, 3)))
        for i, at in enumerate(t):
            eps = gaussian_eps(sde)(z, at)
            x0 = sum(matrices[i, 0, j] * np.asarray(leaf) for j, leaf in enumerate((*z, *eps)))
            gain = SPREAD**2 * mu[i].T @ np.linalg.inv(sde.total_cov(at, SPREAD))
            expected = MEAN + sum(gain[0, j] * (z[j] - mu[i, j, 0] * MEAN) for j in range(sde.num_blocks))
            # The spline of eps has 1e-9 of its largest entry, which near 0 is a thousand times the difference to x_0.
            np.testing.assert_allclose(x0, expected, atol=1e-6)


def linear_logits(sde):
    """Two classes of Gaussian pixels, ``N(+-0.5, 0.6^2)``: the exact ``log p(z | class)`` at every time."""
    inverse = TimeFunction(lambda t: np.concatenate([np.linalg.inv(sde.total_cov(t, 0.6)), sde.mean(t)], axis=-1))
    return jax.tree_util.Partial(two_logits, inverse)


def two_logits(inverse, z, t):
    m = inverse(jnp.asarray(t, z[0].dtype))
    k = m.shape[0]
    out = []
    for mean in (-0.5, 0.5):
        off = pj.blocks.like(z, (leaf - m[i, k] * mean for i, leaf in enumerate(z)))
        pulled = pj.blocks.apply(m[:, :k], off)
        out.append(-0.5 * sum(jnp.sum(a * b, axis=(1, 2, 3)) for a, b in zip(off, pulled, strict=True)))
    return jnp.stack(out, axis=-1)


def two_gaussians(plain, logits, z, t):
    """The eps of both classes together."""
    weights = jax.nn.softmax(logits(z, t))
    parts = [fn(z, t) for fn in plain]
    return jax.tree.map(lambda a, b: weights[:, :1, None, None] * a + weights[:, 1:, None, None] * b, *parts)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["predictor_corrector", "ancestral", "RVV", "ROBA", "lambda_ddim_ii"])
@pytest.mark.parametrize("sde", SDES)
def test_guided_samples_have_the_law_of_the_class(key, sde, sampler):
    """Two Gaussians of single pixels with exact score and classifier: class 1 has mean 0.5 and deviation 0.6."""
    if not pj.integrators.get(sampler).applies_to(sde):
        pytest.skip("for phase space")
    plain = [gaussian_eps(sde, mean, 0.6) for mean in (-0.5, 0.5)]
    logits = linear_logits(sde)

    eps = jax.tree_util.Partial(two_gaussians, plain, logits)
    n, integrator = 4096, pj.integrators.get(sampler)
    table = pj.tabulate(integrator, sde, pj.grids.quadratic(150))
    z_T = sde.prior_sample(jax.random.fold_in(key, 0), (n, 1, 1, 1))
    guided = pj.scores.classifier_guided(eps, logits, sde, np.ones(n, int))
    x = np.asarray(pj.sample(guided, table, z_T, jax.random.fold_in(key, 1))[0]).ravel()
    # Four standard errors of mean and deviation of 4096 samples, and 0.02 for 150 steps of first-order schemes.
    assert abs(x.mean() - 0.5) < 4 * 0.6 / np.sqrt(n) + 0.02
    assert abs(x.std() - 0.6) < 4 * 0.6 / np.sqrt(2 * n) + 0.02


def as_it_is(x):
    return x


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pigdm", "dps"])
@pytest.mark.parametrize("sde", SDES)
def test_posterior_of_a_noisy_measurement(key, sde, method):
    """Pixels N(0, 1) measured with noise 0.5: PiGDM's Gaussian assumption is then exact, for A = 1 also that of DPS."""
    n, noise = 4096, 0.5
    y = np.full((n, 1, 1, 1), 1.5, np.float32)
    guided = pj.scores.posterior_guided(gaussian_eps(sde, 0.0, 1.0), sde, as_it_is, y, noise_std=noise, method=method)
    table = pj.tabulate(pj.integrators.get("predictor_corrector"), sde, pj.grids.quadratic(60))
    z_T = sde.prior_sample(key, (n, 1, 1, 1))
    x = np.asarray(pj.sample(guided, table, z_T)[0]).ravel()
    expected, spread = 1.5 / (1 + noise**2), noise / np.sqrt(1 + noise**2)
    # Four standard errors; the prior at t = 1 is not quite z_1, which is below them.
    assert abs(x.mean() - expected) < 4 * spread / np.sqrt(n)
    assert abs(x.std() - spread) < 4 * spread / np.sqrt(2 * n)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vesde", "edm", "vpsde", "subvp", "cosine", "flow", "discrete"])
def test_posterior_of_a_noisy_measurement_on_every_path(key, name):
    """The same on paths of one block, where the exact score is that of one point smoothed by 1."""
    sde, n, noise = pj.sde.get(name), 4096, 0.5
    y = np.full((n, 1, 1, 1), 1.5, np.float32)
    score = pj.scores.mixture(np.zeros((1, 1, 1, 1)), 1.0, sde)
    guided = pj.scores.posterior_guided(score, sde, as_it_is, y, noise_std=noise)
    times = pj.grids.edm(60, t_end=sde.t_end, sde=sde)
    table = pj.tabulate(pj.integrators.get("predictor_corrector", variable="log_snr"), sde, times)
    x = np.asarray(pj.sample(guided, table, sde.prior_sample(key, (n, 1, 1, 1)))[0]).ravel()
    expected, spread = 1.5 / (1 + noise**2), noise / np.sqrt(1 + noise**2)
    # Four standard errors, and what is left out: where the signal is below 1/80 of the noise, guidance fades.
    assert abs(x.mean() - expected) < 4 * spread / np.sqrt(n) + expected * spread / 80
    assert abs(x.std() - spread) < 4 * spread / np.sqrt(2 * n)


def test_pigdm_solves_with_the_operator(key):
    """Averages over pairs, of known covariance: the minimiser is that of the normal equations."""
    sde = pj.sde.PSLD(0.01, 4.01)

    def operator(x):
        return (x[:, ::2] + x[:, 1::2]) / 2

    n = 2048
    y = np.full((n, 1, 1, 1), 0.8, np.float32)
    guided = pj.scores.posterior_guided(gaussian_eps(sde, 0.0, 1.0), sde, operator, y, noise_std=0.1)
    table = pj.tabulate(pj.integrators.get("predictor_corrector"), sde, pj.grids.quadratic(60))
    z_T = sde.prior_sample(key, (n, 2, 1, 1))
    x = np.asarray(pj.sample(guided, table, z_T)[0])[:, :, 0, 0]
    # x ~ N(0, I), y = mean + N(0, 0.01): the mean has posterior mean 0.8 / (1 + 0.02), the difference stays N(0, 2).
    assert abs(x.mean() - 0.8 / 1.02) < 4 * 0.1 / np.sqrt(n)
    assert abs((x[:, 0] - x[:, 1]).std() - np.sqrt(2)) < 4 / np.sqrt(n)


@pytest.mark.parametrize("sampler", pj.integrators.available())
def test_every_sampler_keeps_known_pixels(rng, key, sampler):
    sde, integrator = pj.sde.PSLD(0.01, 4.01), pj.integrators.get(sampler)
    table = pj.tabulate(integrator, sde, pj.grids.quadratic(4))
    x = rng.uniform(-1, 1, (5, 4, 4, 1)).astype(np.float32)
    mask = np.zeros((1, 4, 4, 1))
    mask[:, :2] = 1
    known = pj.known_pixels(sde, table, x, mask, fresh=table.num_draws > 0)
    z = pj.sample(gaussian_eps(sde), table, sde.prior_sample(key, x.shape), key, known=known)
    np.testing.assert_array_equal(z[0][:, :2], x[:, :2])
    assert np.isfinite(z[0]).all() and not np.array_equal(z[0][:, 2:], x[:, 2:])


def correlated(sde):
    """Two pixels, N(0, 1) with correlation 0.9, as an ``eps_fn`` of their sum and difference."""
    # Sum and difference over sqrt(2) are independent pixels.
    halves = [gaussian_eps(sde, 0.0, float(np.sqrt(1 + sign * 0.9))) for sign in (1, -1)]
    return jax.tree_util.Partial(of_sum_and_difference, halves)


def of_sum_and_difference(halves, z, t):
    root = np.float32(np.sqrt(0.5))
    along = [pj.blocks.like(z, (root * (leaf[:, :1] + sign * leaf[:, 1:]) for leaf in z)) for sign in (1, -1)]
    outs = [fn(part, t) for fn, part in zip(halves, along, strict=True)]
    return pj.blocks.like(z, (root * jnp.concatenate([a + b, a - b], axis=1) for a, b in zip(*outs, strict=True)))


@pytest.mark.slow
def test_resampling_makes_what_is_found_agree_with_what_is_known(key):
    """Given one of two correlated pixels the other has mean 0.9 x; plain replacement falls short, jumps mend it.

    In phase space they must be long, a quarter of the grid here: noise enters through the momentum, and takes its time
    to reach the position.
    """
    sde, n = pj.sde.PSLD(0.01, 4.01), 1024
    x = np.full((n, 2, 1, 1), 1.5, np.float32)
    mask = np.array([1, 0]).reshape(1, 2, 1, 1)
    found = {}
    for resample in (1, 20):
        table = pj.tabulate(
            pj.integrators.get("ancestral", order=2), sde, pj.grids.quadratic(40), resample=resample, jump=10
        )
        assert table.nfe == 40 * resample + 1
        known = pj.known_pixels(sde, table, x, mask)
        z = pj.sample(correlated(sde), table, sde.prior_sample(key, x.shape), key, known=known)
        found[resample] = float(np.asarray(z[0])[:, 1].mean())
    # Standard error 0.44 / 32 = 0.014.
    assert abs(found[1] - 1.35) > 0.3
    assert abs(found[20] - 1.35) < 0.1


def test_resampling_without_conditions_changes_no_law(key):
    """There and back: samples of Gaussian data stay what they are."""
    sde, n = pj.sde.PSLD(0.01, 4.01), 4096
    for sampler in ("predictor_corrector", "exponential_multistep"):
        table = pj.tabulate(pj.integrators.get(sampler), sde, pj.grids.quadratic(60), resample=3, jump=4)
        x = np.asarray(pj.sample(gaussian_eps(sde), table, sde.prior_sample(key, (n, 1, 1, 1)), key)[0])
        assert abs(x.mean() - MEAN) < 4 * SPREAD / np.sqrt(n)
        assert abs(x.std() - SPREAD) < 4 * SPREAD / np.sqrt(2 * n)


def test_bad_input(key):
    sde = pj.sde.PSLD(0.01, 4.01)
    table = pj.tabulate(pj.integrators.get("EM"), sde, pj.grids.quadratic(4))
    x = np.zeros((3, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4, 3, 1\)"):
        pj.known_pixels(sde, table, x, np.zeros((3, 4, 3, 1)))
    with pytest.raises(ValueError, match="must hold 1 .known. and 0 only"):
        pj.known_pixels(sde, table, x, np.full((1, 4, 4, 1), 0.5))
    other = pj.tabulate(pj.integrators.get("EM"), sde, pj.grids.quadratic(5))
    known = pj.known_pixels(sde, other, x, np.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="another table"):
        pj.sample(gaussian_eps(sde), table, sde.prior_sample(key, x.shape), key, known=known)
    with pytest.raises(ValueError, match="resample=0"):
        pj.tabulate(pj.integrators.get("EM"), sde, pj.grids.quadratic(4), resample=0)
    with pytest.raises(ValueError, match="Did you mean 'forward'"):
        pj.scores.classifier_guided(gaussian_eps(sde), linear_logits(sde), sde, [0], time="forwards")
    with pytest.raises(ValueError, match="Did you mean 'pigdm'"):
        pj.scores.posterior_guided(gaussian_eps(sde), sde, lambda x: x, x, method="pgdm")
    with pytest.raises(ValueError, match="noise_std=0"):
        pj.scores.posterior_guided(gaussian_eps(sde), sde, lambda x: x, x, noise_std=0.0)
