"""Guidance: intervals, schedules, CFG++, rescaling, autoguidance and momentum, against formulas; and what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import scores
from psld_jax._runtime.device import TimeFunction
from psld_jax.conditioning._modes import projection_of
from psld_jax.conditioning.conjugate import pull_law
from psld_jax.conditioning.momentum import PAST, pull_with_momentum, with_momentum
from psld_jax.conditioning.weights import interval_of_sigmas, renoised, rescaled
from psld_jax.sampling.generate import prepare

VP = pj.sde.VPSDE(0.1, 20.0)
MEANS, SPREAD = (-0.8, 0.5), 0.4
SHAPE = (3, 2, 1, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoClasses:
    """The exact ``eps_fn`` of pixels from two Gaussians, of both together or of the labels' own."""

    path: TimeFunction
    labels: jax.Array | None = None
    shift: float = dataclasses.field(default=0.0, metadata={"static": True})

    def with_labels(self, labels):
        return dataclasses.replace(self, labels=jnp.asarray(labels))

    def __call__(self, z, t):
        (x,) = z
        alpha, std = self.path(jnp.asarray(t, x.dtype))
        return (two_classes(jnp, x, alpha, std, self.labels) + self.shift,)


def two_classes(xp, x, alpha, std, labels):
    """``eps = -std score``; for numpy and for JAX."""
    variance = alpha**2 * SPREAD**2 + std**2
    off = [x - alpha * mean for mean in MEANS]
    if labels is not None:
        mean = xp.asarray(MEANS)[labels].reshape(-1, 1, 1, 1).astype(x.dtype)
        return std * (x - alpha * mean) / variance
    odds = 1 / (1 + xp.exp((off[0] ** 2 - off[1] ** 2) / (-2 * variance)))  # of the second
    return std * (odds * off[1] + (1 - odds) * off[0]) / variance


def path_of(sde):
    return TimeFunction(lambda t: np.stack([sde.mean(t)[..., 0, 0], sde.factor(t)[..., 0, 0]], axis=-1))


EPS, LABELS = TwoClasses(path_of(VP)), np.array([0, 1, 1])


def table_of(name="ddim", n=6, sde=VP, **hyper):
    return pj.tabulate(pj.integrators.get(name, **hyper), sde, pj.grids.quadratic(n))


@pytest.fixture
def start(key):
    return VP.prior_sample(key, SHAPE)


def test_plain_guidance_is_the_same_to_the_bit(start):
    table, plain = table_of(), scores.classifier_free(EPS, LABELS, 2.5)
    x = pj.sample(plain, table, start)[0]
    ones = scores.weight_of(2.5, schedule=np.ones_like, table=table)
    for same in (
        scores.classifier_free(EPS, LABELS, 2.5, (0.0, 1.0), rescale=0.0),
        scores.classifier_free(EPS, LABELS, scores.weight_of(2.5, schedule="constant")),
        scores.classifier_free(EPS, LABELS, ones),
        scores.classifier_free(EPS, LABELS, scores.weight_of(2.5, interval=(1e-9, 1.0))),
    ):
        np.testing.assert_array_equal(pj.sample(same, table, start)[0], x)
    np.testing.assert_array_equal(pj.sample(plain, with_momentum(table, 0.0), start)[0], x)


@pytest.mark.parametrize("schedule", ["linear", "cosine", lambda t: 0.3 + t**2])
def test_schedules_are_found_at_the_times_of_a_table(schedule):
    table = table_of("predictor_corrector", 9)
    exact = {"linear": lambda t: 2 - 2 * t, "cosine": lambda t: 1 + np.cos(np.pi * t)}.get(schedule, schedule)
    for neutral in (0.0, 1.0):
        weight = scores.weight_of(3.0, neutral, schedule=schedule, table=table)
        expected = neutral + (3 - neutral) * exact(table.tau)
        # One rounding of the factor and two of the weight in float32, of numbers up to 6; 0 stays 0.
        np.testing.assert_allclose(weight.on_host(table.tau), expected, rtol=3e-7, atol=1e-7)
        on_device = np.asarray(jax.jit(lambda t, weight=weight: weight(t))(jnp.asarray(table.tau)))
        np.testing.assert_allclose(on_device, expected, rtol=3e-7, atol=1e-7)
        # What is counted on the host is what the device skips.
        np.testing.assert_array_equal(on_device != neutral, weight.acts(table.tau))
    if isinstance(schedule, str):  # guidance has the same mean over time
        assert abs(np.mean(exact(np.linspace(0, 1, 1001))) - 1) < 1e-9


def test_schedules_without_a_table_are_interpolated():
    t = np.linspace(0.003, 1, 77)
    found = scores.weight_of(2.0, 0.0, schedule="cosine").on_host(t)
    # Linear interpolation over 1,022 pieces: (pi / 1022)^2 / 8 of the amplitude, twice the scale.
    np.testing.assert_allclose(found, 2 * (1 + np.cos(np.pi * t)), atol=2 * (np.pi / 1022) ** 2 / 8 + 1e-6)


@pytest.mark.parametrize("sde", [VP, pj.sde.PSLD(), pj.sde.EDM()], ids=repr)
def test_intervals_of_noise_levels(sde):
    low, high = interval_of_sigmas(sde, (0.2, 2.0))
    np.testing.assert_allclose(sde.sigma(np.array([low, high])), [0.2, 2.0], rtol=1e-9)
    assert interval_of_sigmas(sde, (0.0, np.inf)) == (0.0, 1.0)


# --- CFG++ ------------------------------------------------------------------------------------------------------------


def cfg_pp(sde, eps, guided, scale, x, times):
    """The algorithm of Chung et al. (2024), step by step in float64: ``D_lambda`` with the noise of no guidance."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha, std = sde.mean(t)[0, 0], sde.factor(t)[0, 0]
        free, told = eps(x, alpha, std), guided(x, alpha, std)
        data = (x - std * (free + scale * (told - free))) / alpha
        x = sde.mean(s)[0, 0] * data + sde.factor(s)[0, 0] * free if s > 0 else data
    return x


@pytest.mark.parametrize(
    "sde",
    [pj.sde.VESDE(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (VP, pj.sde.SubVP()))],
    ids=lambda sde: type(sde).__name__,
)
def test_cfg_pp_is_its_algorithm(key, sde):
    """On the exact scores of two Gaussians, float64, for every one-block path."""
    grid = pj.grids.edm(6, t_end=sde.t_end, sde=sde)
    table = pj.tabulate(pj.integrators.get("ddim"), sde, grid, denoise="exponential")
    with jax.enable_x64(True):
        z = sde.prior_sample(key, SHAPE, np.float64)
        guided = scores.classifier_free(TwoClasses(path_of(sde)), LABELS, renoised(sde, table, 0.6, 1.0))
        found = pj.sample(guided, table, z)[0]
    expected = cfg_pp(
        sde,
        lambda x, a, s: two_classes(np, x, a, s, None),
        lambda x, a, s: two_classes(np, x, a, s, LABELS),
        0.6,
        np.asarray(z[0]),
        table.times,
    )
    # Weights are float32; where steps are small they are large, and both terms cancel but for the step.
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_cfg_pp_at_its_ends(start):
    """``lambda = 0`` is the sampler without guidance; one step with ``lambda = 1`` is the estimate of the label."""
    table = table_of()
    free = scores.classifier_free(EPS, LABELS, renoised(VP, table, 0.0, 1.0))
    np.testing.assert_allclose(pj.sample(free, table, start)[0], pj.sample(EPS, table, start)[0], atol=1e-6)
    last = pj.integrators.tableau.denoising(VP, 0.4, False, "exponential")
    told = scores.classifier_free(EPS, LABELS, renoised(VP, last, 1.0, 1.0))
    np.testing.assert_array_equal(pj.sample(told, last, start)[0], pj.sample(EPS.with_labels(LABELS), last, start)[0])


@pytest.mark.slow
def test_cfg_pp_of_a_measurement_puts_the_whole_of_it_into_the_estimate(key):
    """``lambda = 1`` of a nearly exact measurement of Gaussian pixels: the estimate is the measurement."""
    table, y = table_of(n=3), jnp.linspace(-1, 1, 6).reshape(SHAPE)
    score = scores.mixture(np.zeros((1, *SHAPE[1:])), 1.0, VP)
    weight = renoised(VP, table, 1.0, 0.0)
    guided = scores.posterior_guided(score, VP, as_it_is, y, noise_std=1e-3, scale=weight)
    x = pj.sample(guided, table, VP.prior_sample(key, SHAPE))[0]
    # The last estimate is at time 1e-3, r = 0.012: pixels move by all but (noise / r)^2 = 0.7% of their distance to y.
    np.testing.assert_allclose(x, y, atol=0.02)


def as_it_is(x):
    return x


@pytest.mark.parametrize(
    ("sde", "name", "hyper", "message"),
    [
        (pj.sde.PSLD(), "ddim", {}, "of 2 blocks has not"),
        (VP, "predictor_corrector", {}, "take sampler='ddim'"),
        (VP, "heun", {}, "take sampler='ddim'"),
        (VP, "ddim", {"eta": 0.5}, "take sampler='ddim'"),
    ],
)
def test_cfg_pp_is_refused_where_it_means_nothing(sde, name, hyper, message):
    with pytest.raises(ValueError, match=message):
        renoised(sde, table_of(name, sde=sde, **hyper), 0.5, 1.0)


# --- rescaling, and worse networks ------------------------------------------------------------------------------------


def test_rescaled_guidance_keeps_the_standard_deviation(rng):
    a, b = ((jnp.asarray(rng.normal(size=(4, 8, 8, 1)) * size),) for size in (3.0, 1.0))
    for part in (0.3, 1.0):
        (out,) = rescaled(a, b, jnp.float32(part))
        expected = part * b[0].std(axis=(1, 2, 3)) + (1 - part) * a[0].std(axis=(1, 2, 3))
        np.testing.assert_allclose(out.std(axis=(1, 2, 3)), expected, rtol=1e-5)
        ratio = out / a[0]  # one factor for each sample
        np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)
    (zero,) = rescaled((jnp.zeros((2, 3)),), (jnp.zeros((2, 3)),), jnp.float32(1.0))
    np.testing.assert_array_equal(zero, 0)


@jax.jit
def call(fn, z):
    return fn(z, 0.4)[0]


def test_every_guide_is_rescaled_to_scale_1(start):
    def logits(z, t):
        del t
        return jnp.stack([z[0].sum(axis=(1, 2, 3)), (z[0] ** 2).sum(axis=(1, 2, 3))], axis=-1)

    def made(scale, rescale):
        y = jnp.full(SHAPE, 0.3)
        return (
            scores.classifier_free(EPS, LABELS, scale, rescale=rescale),
            scores.autoguided(EPS.with_labels(LABELS), EPS, scale, rescale=rescale),
            scores.classifier_guided(EPS, logits, VP, LABELS, scale, rescale=rescale),
            scores.posterior_guided(EPS, VP, as_it_is, y, scale=scale, rescale=rescale),
        )

    for whole, plain, free in zip(made(4.0, 1.0), made(1.0, 0.0), made(4.0, 0.0), strict=True):
        spreads = [np.asarray(call(fn, start)).std(axis=(1, 2, 3)) for fn in (whole, plain, free)]
        np.testing.assert_allclose(spreads[0], spreads[1], rtol=1e-5)
        assert np.abs(spreads[2] / spreads[1] - 1).max() > 1e-2


def test_autoguidance_takes_a_common_error_away(start):
    """The worse network errs twice as much in the same direction: scale 2 extrapolates to none."""
    good, bad = (dataclasses.replace(EPS, shift=shift) for shift in (0.05, 0.1))

    def eps(eps_fn):
        return np.asarray(jax.jit(lambda z: eps_fn(z, 0.5))(start)[0])

    np.testing.assert_allclose(eps(scores.autoguided(good, bad, 2.0)), eps(EPS), atol=1e-6)
    np.testing.assert_array_equal(eps(scores.autoguided(good, bad, 1.0)), eps(good))
    told = eps(scores.autoguided(good, bad, 2.0, labels=LABELS))
    np.testing.assert_allclose(told, eps(EPS.with_labels(LABELS)), atol=1e-6)


# --- momentum -----------------------------------------------------------------------------------------------------


def by_hand(table, eps_fn, z, momentum, decay, pull=None):
    """The rows of a table with predictions that are extrapolated one by one, float64."""
    raw, moved, eps_fn = [], [], jax.jit(eps_fn)
    end = table.nfe - (table.times[-1] == 0)
    for i in range(table.nfe):
        eps = np.asarray(eps_fn((jnp.asarray(z),), table.tau[i])[0])
        q = table.U[i, 0, 0] * z + table.V[i, 0, 0] * eps
        past = raw[: min(PAST, len(raw))]
        weights = np.array([decay**j for j in range(len(past))])
        mean = sum(w * p for w, p in zip(weights / weights.sum(), past, strict=True)) if past else q
        raw.insert(0, q)
        moved.insert(0, q + momentum * (q - mean) if i < end else q)
        z = table.A[i, 0, 0] * z + sum(b[0, 0] * p for b, p in zip(table.B[i], moved, strict=False))
        if pull is not None:
            target = np.asarray(pull.target)
            z = z + sum(pull.weights[i, 0, j, 0] * (target - p) for j, p in enumerate(moved[: pull.weights.shape[2]]))
            z = z + pull.last[i, 0] * (target - z)
    return z


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("exponential_multistep", {"order": 3, "variable": "log_snr"}),
        pytest.param("ddim", {}, marks=pytest.mark.slow),
        pytest.param("heun", {}, marks=pytest.mark.slow),
    ],
)
def test_momentum_is_in_the_table(name, hyper, key):
    table = table_of(name, **hyper)
    with jax.enable_x64(True):
        z = VP.prior_sample(key, SHAPE, np.float64)
        moved = with_momentum(table, 0.4, 0.6)
        found = pj.sample(EPS, moved, z)[0]
        expected = by_hand(table, EPS, np.asarray(z[0]), 0.4, 0.6)
    assert moved.nfe == table.nfe
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert np.abs(found - pj.sample(EPS, table, z)[0]).max() > 1e-3


def test_momentum_of_an_integrated_measurement(key):
    """Null space and range have the same extrapolated predictions."""
    integrator = pj.integrators.get("exponential_multistep", order=2, variable="log_snr")
    table = pj.tabulate(integrator, VP, pj.grids.quadratic(6))
    mask = np.array([[1], [0]])
    law = pull_law(VP, integrator, table, pj.operators.mask(mask), SHAPE[1:], 0.0, 1.0)
    y = np.linspace(-1, 1, 3).reshape(3, 1, 1, 1) * mask[None, ..., None]
    moved = pull_with_momentum(law, table, 0.4, 0.6).of(y)
    with jax.enable_x64(True):
        z = VP.prior_sample(key, SHAPE, np.float64)
        found = pj.sample(EPS, with_momentum(table, 0.4, 0.6), z, pull=moved)[0]
        expected = np.asarray(by_hand(table, EPS, np.asarray(z[0]), 0.4, 0.6, law.of(y)))
        free = by_hand(table, EPS, np.asarray(z[0]), 0.4, 0.6)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[:, 1], free[:, 1], rtol=1e-9, atol=1e-9)


def test_momentum_of_what_stands_still_is_none():
    """Weights of every prediction keep their sum, so a constant prediction gives the same step."""
    table = table_of("exponential_multistep", 8, pj.sde.PSLD(), order=3, variable="log_snr")
    moved = with_momentum(table, -0.7, 1.0)
    np.testing.assert_allclose(moved.B.sum(axis=1), table.B.sum(axis=1), atol=1e-13)
    np.testing.assert_array_equal(moved.B[-1, :1], table.B[-1, :1])  # the denoising step
    with pytest.raises(ValueError, match="without jumps"):
        again = pj.tabulate(pj.integrators.get("ddim"), VP, pj.grids.quadratic(4), resample=2)
        with_momentum(again, 0.5)


# --- what it costs ------------------------------------------------------------------------------------------------


class Counter:
    """Evaluations on the host, forward and backward."""

    def __init__(self):
        self.forward = self.backward = 0


def counting(counter):
    """An ``eps_fn`` that counts."""

    @jax.custom_vjp
    def eps(x):
        jax.debug.callback(lambda: setattr(counter, "forward", counter.forward + 1))
        return 0.1 * x

    def ahead(x):
        return eps(x), None

    def back(_, slope):
        jax.debug.callback(lambda: setattr(counter, "backward", counter.backward + 1))
        return (0.1 * slope,)

    eps.defvjp(ahead, back)
    return Counted(eps)


@dataclasses.dataclass(frozen=True)
class Counted:
    eps: object

    def with_labels(self, labels):
        del labels
        return self

    def __call__(self, z, t):
        del t
        return pj.blocks.like(z, map(self.eps, z[:1])) if len(z) == 1 else pj.blocks.like(z, (self.eps(z[0]), z[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"label": 3, "guidance": 2.0, "sigma_interval": (0.3, 3.0)},
        {"label": 3, "guidance": 2.0, "guidance_schedule": "linear", "momentum": 0.3},
        {"posterior": "pigdm", "interval": (0.0, 0.5)},
        {"posterior": "dps"},
        {"posterior": "pigdm", "label": 3, "guidance": 2.0, "interval": (0.3, 0.7)},
        {"negative": True, "guidance": 2.0, "interval": (0.0, 0.4)},
        {"negative": True, "posterior": "dps", "guidance": 2.0},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_is_said_to_be_evaluated_is_evaluated(key, digits_model, options):
    """Forward and backward apart; the budget is that of forward evaluations."""
    counter = Counter()
    model = dataclasses.replace(digits_model, eps_fn=counting(counter), n_classes=10)
    if "negative" in options:
        options = {**options, "negative": model}
    if "posterior" in options:
        y = np.asarray(pj.operators.downsample(2)(digits_model.data[:1]))
        options = {**options, "operator": pj.operators.downsample(2), "measurement": y}
    sampler = prepare(model, "ddim", nfe=15, **options)
    state, counts = sampler(key, np.arange(2))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert (counter.forward, counter.backward) == sampler.evaluations[:2]
    assert counter.forward == counts[0] == sampler.nfe <= 15
    assert ("posterior" in options) == (counter.backward > 0)


def test_intervals_save_evaluations_and_say_so(digits_model):
    """More steps fit in the budget; a measurement outside of its interval has no backward pass."""
    model = dataclasses.replace(digits_model, n_classes=10)
    whole, part = (
        prepare(model, "ddim", nfe=20, label=1, guidance=2.0, interval=interval) for interval in ((0.0, 1.0), (0, 0.5))
    )
    assert whole.evaluations == (20, 0, 0) and whole.table.nfe == 10
    assert part.evaluations.forward <= 20 and part.table.nfe == 12
    half = {"operator": pj.operators.mask(np.eye(8)), "measurement": digits_model.data[:1] * np.eye(8)[None, ..., None]}
    limited = prepare(model, "ddim", nfe=20, interval=(0.0, 0.5), **half)
    assert limited.evaluations.forward == 20 and limited.evaluations.backward == np.sum(limited.table.tau <= 0.5)
    assert prepare(model, "ddim", nfe=20, **half).evaluations == (20, 20, 0)
    integrated = {"posterior": "conjugate", **half}
    assert prepare(model, nfe=20, momentum=0.2, **integrated).evaluations == (20, 0, 0)
    assert prepare(model, nfe=20, null_weight=1.0, **integrated).evaluations == (20, 20, 0)
    negative = {"negative": model, "guidance": 2.0}
    assert prepare(model, "ddim", nfe=20, **negative).evaluations == (20, 0, 0)


# --- what a measurement says of what it does not see ------------------------------------------------------------------


def test_the_gradient_on_what_is_not_seen(start):
    """It is PiGDM's, but for the range of the operator, where the table has the pull."""
    operator = pj.operators.mask(np.array([[1], [0]]))
    y = operator(jnp.full(SHAPE, 0.4))
    whole, part = (
        scores.posterior_guided(summed, VP, operator, y, outside=outside) for outside in (None, operator.projection)
    )
    free, all_of_it, unseen = (np.asarray(call(fn, start)) for fn in (jax.tree_util.Partial(summed), whole, part))
    np.testing.assert_array_equal(unseen[:, 0], free[:, 0])
    np.testing.assert_allclose(unseen[:, 1], all_of_it[:, 1], rtol=1e-6)
    assert np.abs(unseen - free)[:, 1].min() > 1e-3


def summed(z, t):
    """Both pixels depend on both."""
    del t
    return (z[0] + jnp.tanh(z[0].sum(axis=1, keepdims=True)),)


def pairs(path, x, times):
    """The eps of two pixels N(0, 1) with correlation 0.9: sum and difference are independent."""
    alpha, std = path(times[0])
    both, apart = x[:, :1] + x[:, 1:], x[:, :1] - x[:, 1:]
    both, apart = (v / (alpha**2 * (1 + sign * 0.9) + std**2) for v, sign in ((both, 1), (apart, -1)))
    return std / 2 * jnp.concatenate([both + apart, both - apart], axis=1)


def test_projections_are_data_of_a_program(rng):
    """Those of operators with many singular values, and of one, as they are made on the host."""
    x = jnp.asarray(rng.standard_normal((2, 8, 6, 1)), jnp.float32)
    for operator in (pj.operators.blur(1.0, cutoff=0.1), pj.operators.downsample(2)):
        found = jax.jit(lambda fn, x: fn(x))(projection_of(operator, x.shape[1:]), x)
        np.testing.assert_allclose(found, operator.projection(x), atol=1e-5)


@pytest.mark.slow
def test_what_is_not_seen_follows_what_is():
    """Of two pixels with correlation 0.9 one is measured to be 1.5: the other has mean 1.35."""
    n, model = 1024, pj.from_function(jax.tree_util.Partial(pairs, path_of(VP)), VP, image_shape=(2, 1, 1))
    operator = pj.operators.mask(np.array([[1], [0]]))
    y = np.array([1.5, 0.0], np.float32).reshape(1, 2, 1, 1)
    options = {"operator": operator, "measurement": y, "noise_std": 0.05, "posterior": "conjugate", "weight": 1.0}
    mean = {}
    for null in (0.0, 1.0):
        state, _ = pj.generate_states(
            model, "exponential_multistep", nfe=20, n=n, order=2, variable="log_snr", null_weight=null, **options
        )
        mean[null] = float(state[0][:, 1].mean())
    # p(x_0 | z) is not isotropic, as is assumed, so neither is exact.
    assert abs(mean[1.0] - 1.35) < 0.5 * abs(mean[0.0] - 1.35)


# --- a function of the user's own -------------------------------------------------------------------------------------


def test_dps_of_a_function_that_is_not_linear(start):
    """The gradient of ``-(y - A(x_0(z)))^2 / (2 Var)``, by differences of the exact estimate."""
    y, noise, t = jnp.full(SHAPE, 0.4), 0.2, np.float64(0.3)
    with jax.enable_x64(True):
        z = (np.asarray(start[0], np.float64),)
        guided = scores.posterior_guided(EPS, VP, jnp.tanh, y, noise_std=noise, method="dps")
        found = np.asarray(jax.jit(guided)(z, t)[0])
    alpha, std = VP.mean(t)[0, 0], VP.factor(t)[0, 0]
    variance = 1 / (1 + VP.snr(t))

    def likelihood(x):
        data = (x - std * two_classes(np, x, alpha, std, None)) / alpha
        return -0.5 * (0.4 - np.tanh(data)) ** 2 / (variance + noise**2)

    slope = (likelihood(z[0] + 1e-5) - likelihood(z[0] - 1e-5)) / 2e-5
    np.testing.assert_allclose(found, two_classes(np, z[0], alpha, std, None) - std * slope, atol=1e-7)


def saturated(images):
    """Pixels as a camera sees them that saturates: strongly bent, with a derivative."""
    return jnp.tanh(3 * images)


@pytest.mark.slow
def test_a_saturated_measurement_of_digits_is_fitted(digits_model):
    y = np.asarray(saturated(digits_model.data[:8]))
    options = {"operator": saturated, "measurement": y, "posterior": "dps", "noise_std": 0.1}
    x = pj.generate(digits_model, nfe=30, n=8, **options)
    free = pj.generate(digits_model, nfe=30, n=8)
    error, without = (np.sqrt(np.mean((np.asarray(saturated(v)) - y) ** 2)) for v in (x, free))
    assert error < 0.5 * without


def rounded(images):
    return jnp.round(images)


def test_bad_input(digits_model):
    model = dataclasses.replace(digits_model, n_classes=10)
    other = dataclasses.replace(digits_model, sde=pj.sde.PSLD(0.25, 4.25))
    small = dataclasses.replace(digits_model, image_shape=(4, 4, 1))
    label, y = {"label": 1, "guidance": 2.0}, digits_model.data[:1]
    for options, message in (
        ({"interval": (0.5, 0.2), **label}, "interval=.0.5, 0.2. must be two times"),
        ({"interval": "all", **label}, "interval='all' must be two times"),
        ({"sigma_interval": (2.0, 1.0), **label}, "two noise levels 0 <= low < high"),
        ({"sigma_interval": (1e9, 2e9), **label}, "above all noise levels"),
        ({"sigma_interval": (0.1, 1.0), "interval": (0.1, 0.5), **label}, "give one"),
        ({"sigma_interval": (0.1, 1.0)}, "sigma_interval has no effect"),
        ({"guidance_schedule": "linaer", **label}, "Did you mean 'linear'"),
        ({"guidance_schedule": lambda t: 1.0, **label}, "a finite number for each time"),
        ({"guidance_schedule": "linear"}, "guidance_schedule has no effect"),
        ({"guidance_rescale": 1.5, **label}, "rescale=1.5 must be"),
        ({"guidance_rescale": 0.5}, "guidance_rescale has no effect"),
        ({"guidance_rule": "cfgpp", **label}, "Did you mean 'cfg"),
        ({"guidance_rule": "cfg++", **label}, "must be at most 1"),
        ({"guidance_rule": "cfg++", "label": 1, "guidance": 0.5}, "of 2 blocks has not"),
        (
            {"guidance_rule": "cfg++", "label": 1, "guidance": 0.5, "guidance_rescale": 0.5},
            "leave guidance_rescale out",
        ),
        ({"momentum": float("nan")}, "momentum=nan"),
        ({"momentum": 0.5, "momentum_decay": 2.0}, "momentum_decay=2"),
        ({"momentum": 0.5, "known": y, "mask": np.eye(8), "resample": 2}, "neither resample"),
        ({"negative": model}, "has no effect: give guidance"),
        ({"negative": 3, "guidance": 2.0}, "negative=3 must be a model"),
        ({"negative": other, "guidance": 2.0}, "must predict the same thing"),
        ({"negative": small, "guidance": 2.0}, r"of images \(4, 4, 1\)"),
        ({"operator": saturated, "measurement": y}, "posterior='dps' takes any"),
        ({"operator": rounded, "measurement": y, "posterior": "dps"}, "derivative 0"),
        ({"operator": jnp.log, "measurement": y, "posterior": "dps"}, "is not finite"),
        ({"operator": lambda x: x > 0, "measurement": y, "posterior": "dps"}, "have no derivative"),
        ({"operator": pj.operators.downsample(2), "measurement": y, "null_weight": 1.0}, "posterior='conjugate'"),
        ({"operator": as_it_is, "measurement": y, "posterior": "conjugate", "guidance_rescale": 0.5}, "in the table"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            prepare(model, "ddim", nfe=8, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="change the table of a sampler"):
        prepare(model, "rk45", momentum=0.5)
