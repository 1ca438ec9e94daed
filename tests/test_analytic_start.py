"""The analytical first step: to the start of the grid as if the data were Gaussian, without an evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from benchmarks import analytic_start as script
from benchmarks import clocks
from psld_jax import build
from psld_jax._runtime import device
from psld_jax.conditioning.weights import renoised
from psld_jax.evaluation import evaluate
from psld_jax.sampling.generate import prepare, resolve
from psld_jax.sampling.settings import Setting, Tuned
from psld_jax.tuning import _search as search
from psld_jax.tuning._coefficients import with_more_rows
from psld_jax.tuning._evaluate import Score

SDES = {
    "psld": pj.sde.PSLD(),
    "psld_upper": pj.sde.PSLD(decomposition="upper"),
    "cld": pj.sde.CLD(),
    "third_order": pj.sde.ThirdOrder(),
    "varying": pj.sde.VaryingSDE(lambda t: np.array([[-1.0 - t]]), lambda t: np.array([[4.0 * (1 + t)]])),
    "vp": pj.sde.VPSDE(),
    "edm": pj.sde.EDM(),
    "cosine": pj.sde.Cosine(),
    "flow": pj.sde.Flow(),
}
START = 0.4


@pytest.mark.parametrize("name", SDES)
def test_the_flow_of_gaussian_data_solves_its_ode_and_keeps_their_law(name):
    sde, std = SDES[name], 0.6
    s, t = np.float64(START), np.float64(0.9)
    phi = sde.gaussian_flow(s, t, std)
    # In three blocks rounding leaves some 1e-11; the matrices have size 1.
    np.testing.assert_allclose(phi @ sde.total_cov(t, std) @ phi.T, sde.total_cov(s, std), rtol=1e-9, atol=1e-9)
    through = sde.gaussian_flow(s, np.float64(0.6), std) @ sde.gaussian_flow(np.float64(0.6), t, std)
    np.testing.assert_allclose(through, phi, rtol=1e-9, atol=1e-9)
    h = 1e-5  # the error of a central difference is of its square, and the slopes are below 1e3
    up, down = (sde.gaussian_flow(s + sign * h, t, std) for sign in (1, -1))
    generator = sde.drift(s) + 0.5 * sde.diffusion(s) @ np.linalg.inv(sde.total_cov(s, std))
    np.testing.assert_allclose((up - down) / (2 * h), generator @ phi, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["psld", "third_order", "vp", "edm", "flow"])
def test_for_gaussian_data_it_solves_the_probability_flow(rng, name):
    # A preconditioned network that gives nothing is exact for such data.
    sde = SDES[name].preconditioned(0.6)
    z_T = tuple(jnp.asarray(rng.standard_normal((2, 2, 2, 1))) for _ in range(sde.num_blocks))

    def nothing(z, t):
        return (jnp.zeros_like(z[0]), *(jnp.zeros_like(leaf) for leaf in z[1:]))

    exact, _ = pj.sample_ode(nothing, sde, z_T, t_end=START, denoise=False, solver="dopri8", rtol=1e-9, atol=1e-9)
    phi = sde.gaussian_flow(np.float64(START), np.float64(1.0), 0.6)
    for row, leaf in zip(phi, exact, strict=True):
        led = sum(value * z for value, z in zip(row, z_T, strict=True))
        # The clocks of the network keep matrices to 1e-7 of their size.
        np.testing.assert_allclose(led, leaf, rtol=1e-5, atol=1e-6)


def test_a_table_says_that_the_state_comes_from_1_and_takes_no_evaluation_for_it():
    setting = Setting("predictor_corrector", t_start=START)
    table, plain = setting.table(SDES["psld"], 6), Setting("predictor_corrector").table(SDES["psld"], 6)
    assert table.nfe == plain.nfe == 6 and table.tau[0] == START and plain.tau[0] == 1
    np.testing.assert_array_equal(table.times, [1.0, *table.tau[1:], 0.0])
    np.testing.assert_array_equal(table.P[1:], np.tile(np.eye(2), (5, 1, 1)))
    np.testing.assert_allclose(table.P[0], SDES["psld"].gaussian_flow(START, 1.0, 1.0), rtol=1e-12)
    # From 1 there is no way to go.
    at_once = pj.tabulate(setting.integrator(), SDES["psld"], pj.grids.uniform(4), analytic_start=True)
    assert at_once.P is None
    # A measurement says itself where to start, and the state is noise of that time.
    late = setting.table(SDES["psld"], 6, t_start=0.5)
    assert late.P is None and late.tau[0] == 0.5


def test_a_setting_with_a_start_survives_json_and_says_it():
    times = (START, 0.1, 1e-3)
    for setting in (Setting("ddim", t_start=START), Setting("ddim", times, t_start=START)):
        assert Setting.from_json(setting.to_json()) == setting
        assert "analytic start at t=0.4" in setting.describe()
    assert "t_start" not in Setting("ddim").to_json()
    for wrong in (0.0, -1.0, 1.5, np.nan, "0.5", None):
        with pytest.raises(ValueError, match="t_start"):
            Setting("ddim", t_start=wrong)
    with pytest.raises(ValueError, match=r"t_start=0.5 must be the first of the times that are given, 0.4"):
        Setting("ddim", times, t_start=0.5)
    for wrong in ((), None, (START,), (np.nan, 0.1), (START, 0.5)):
        with pytest.raises(ValueError, match="grid"):
            Setting("ddim", wrong, t_start=START)
    # Numbers of numpy and JAX, as sde.time and an array give them, are written as others are.
    for start in (np.float32(0.5), jnp.float32(0.5), np.array(0.5)):
        setting = Setting("ddim", t_start=start)
        assert type(setting.t_start) is float and '"t_start": 0.5' in json.dumps(setting.to_json())
        numbers = {"lam": start, "matrix": (start, np.ones((1, 1), np.float32))}
        written = json.dumps(Setting("ddim", (start, 0.1), hyper=numbers).to_json())
        assert '"grid": [0.5, 0.1]' in written and '{"lam": 0.5, "matrix": [0.5, [[1.0]]]}' in written


@pytest.mark.parametrize("sampler", ["predictor_corrector", "ancestral", "reduced_oba"])
def test_it_helps_where_evaluations_are_few(digits_model, sampler):
    def distance(**options):
        x = pj.generate(digits_model, sampler, nfe=6, n=512, batch_size=512, **options)
        return pj.metrics.frechet_distance(*pj.metrics.statistics(x), *pj.metrics.statistics(digits_model.data))

    # Seen: 0.4 in place of 0.8, 0.9 in place of 1.6, 10 in place of 11.
    assert distance(t_start=0.38) < 0.95 * distance()


def test_generate_passes_the_start_on(few_digits):
    options = {"nfe": 5, "n": 2}
    sampler = prepare(few_digits, "ddim", nfe=5, t_start=START)
    assert sampler.setting.t_start == START and sampler.nfe == 5
    config = build.override(few_digits.config, {"sampler.name": "ddim", "sampler.t_start": START})
    told = build.sampler_options(config)
    assert resolve(few_digits, "ddim", 5, t_start=told["t_start"]) == Setting("ddim", t_start=START)
    assert build.sampler_options(few_digits.config)["t_start"] is None
    tuned = dataclasses.replace(few_digits, tuned=(Tuned(5, Setting("ddim", "uniform", t_start=START)),))
    assert resolve(tuned, nfe=5).t_start == START and resolve(tuned, nfe=5, t_start=0.3).t_start == 0.3
    assert resolve(tuned, nfe=5, grid="quadratic").t_start == 1  # another grid has its own start
    assert resolve(tuned, nfe=5, t_start=1.0).t_start == 1
    jobs = list(evaluate.jobs(few_digits, ["ddim", "heun"], [5], tuned.tuned, told))
    assert [job[2].setting.t_start for job in jobs] == [START, START]
    with jax.enable_x64(False):
        want = pj.generate(few_digits, "ddim", t_start=START, **options)
        np.testing.assert_array_equal(pj.generate(tuned, grid="auto", **options).shape, want.shape)
        given = pj.generate(few_digits, "ddim", grid=tuple(sampler.table.times[1:-1]), **options)
        assert np.isfinite(given).all()
        known = {"known": np.zeros((1, *few_digits.image_shape)), "mask": np.eye(8)}
        kept = pj.generate(few_digits, "ddim", t_start=START, **known, **options)
        np.testing.assert_allclose(kept[:, np.eye(8) == 1], 0, atol=0.2)  # the denoising step changes them a little


def test_what_auto_chose_gives_way_to_a_start_or_an_end_that_is_asked_for(few_digits):
    untuned = dataclasses.replace(few_digits, tuned=())
    times = (START, 0.1, few_digits.sde.t_end)
    by_times = dataclasses.replace(few_digits, tuned=(Tuned(3, Setting("ddim", times, t_start=START)),))
    by_name = dataclasses.replace(few_digits, tuned=(Tuned(6, Setting("ddim", t_start=START)),))
    # The start was chosen, not asked for: an end before it takes it away, and one after it leaves it.
    for model in (untuned, by_name):
        early, late = (prepare(model, nfe=6, t_end=t_end) for t_end in (0.9, 0.01))
        assert early.setting.t_start == 1 and early.table.tau[0] == 1 and early.table.times[-2] == 0.9
        assert late.setting.t_start < 1
    # Times that were tuned for one start say nothing of another; least of all is noise of t = 1 noise of theirs.
    for start in (1.0, 0.3):
        with pytest.raises(ValueError, match=r"times that were tuned start at 0.4: .* grid='quadratic'"):
            prepare(by_times, nfe=3, t_start=start)
        assert prepare(by_times, nfe=3, t_start=start, grid="quadratic").setting.t_start == start
    assert prepare(by_times, nfe=3, t_start=START).setting.grid == times
    # Nor of another end: the grid of the diffusion leads there, from the same start.
    assert prepare(by_times, nfe=3, t_end=times[-1]).setting.grid == times
    for t_end, start in ((0.01, START), (1e-4, START), (0.9, 1)):
        sampler = prepare(by_times, nfe=3, t_end=t_end)
        assert (sampler.setting.grid, sampler.setting.t_start) == ("quadratic", start)
        assert sampler.table.times[-2] == t_end and sampler.table.nfe == 3
    told = {**build.sampler_options(few_digits.config), "t_end": 0.01}
    ((_, _, sampler),) = evaluate.jobs(few_digits, ["ddim"], [3], by_times.tuned, told)
    assert sampler.table.times[-2] == 0.01 and sampler.setting.sampler == "ddim"
    half = pj.operators.downsample(2)
    measured = {"operator": half, "measurement": np.zeros((1, 4, 4, 1))}
    started = prepare(by_times, nfe=3, t_start=0.5, **measured)
    assert started.table.times[0] == started.table.tau[0] == 0.5 and started.setting.sampler == "ddim"
    learned = pj.load("digits")
    assert prepare(learned, nfe=5, t_start=0.5, **measured).setting.solver is None


def test_a_budget_that_guidance_makes_too_small_is_named_as_it_was_given(monkeypatch):
    model = pj.from_function(lambda x, t, label: x, pj.sde.VPSDE(), (2, 2, 1), n_classes=3)
    guided = {"label": 1, "guidance": 2.0}
    with pytest.raises(ValueError, match=r"^nfe=3 is too small: with guidance one step takes 4 evaluations"):
        prepare(model, nfe=3, **guided)
    with pytest.raises(ValueError, match=r"^nfe=1 is too small: with guidance one step takes 2 evaluations"):
        prepare(model, "ddim", nfe=1, denoise=False, **guided)
    table = Setting("ddim").table(model.sde, 3)
    about = {"diffusion": repr(model.sde), "network": "", "t_end": model.sde.t_end, "denoise": True}
    with pytest.raises(ValueError, match=r"^nfe=5 .* with guidance the learned solver of 3 evaluations takes 6 eval"):
        prepare(model, solver=pj.Solver(table, about), nfe=5, **guided)
    assert prepare(model, nfe=4, **guided).nfe == 4
    # Every smaller budget would have a table of its own.
    made, table = [], Setting.table
    monkeypatch.setattr(
        Setting, "table", lambda self, sde, nfe, **options: made.append(nfe) or table(self, sde, nfe, **options)
    )
    assert prepare(model, "ddim", nfe=300, **guided).nfe == 300 and len(made) < 10
    with pytest.raises(ValueError, match="nfe=1 is too small for"):
        prepare(model, nfe=1, **guided)


@pytest.mark.parametrize("name", ["edm", "flow", "varying", "vp", "psld"])
def test_a_grid_that_starts_late_without_one_has_the_noise_of_its_start(name):
    sde, times = SDES[name], (START, 0.1, 1e-3)
    table, plain = (
        Setting("heun", times).table(sde, 5, t_end=times[-1]),
        pj.tabulate(pj.integrators.get("heun"), sde, times),
    )
    assert table.nfe == plain.nfe == 5
    if name in ("vp", "psld"):  # their prior is that of every time
        assert table.P is None
        return
    np.testing.assert_allclose(table.P[0] @ sde.prior_cov() @ table.P[0].T, sde.cov(np.float64(START)), rtol=1e-12)
    np.testing.assert_array_equal(table.times, [1.0, *plain.times[1:]])
    # What is told the state of its start, such as a measurement's, has the steps alone.
    assert Setting("heun").table(sde, 5, t_start=START).P is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "rk45", "t_start": 0.5}, "t_start=0.5 is for samplers with a grid; 'rk45' is adaptive"),
        ({"sampler": "ddim", "t_start": 0.5, "grid": (0.4, 0.1, 1e-3)}, "must be the first of the times"),
        ({"sampler": "ddim", "t_start": 1e-4}, "t_end < t_start"),
        ({"sampler": "ddim", "t_start": 2.0}, "t_start=2.0 must be"),
        ({"solver": "learned", "t_start": 0.5}, "leave t_start out"),
    ],
    ids=["adaptive", "times", "too late", "beyond 1", "learned"],
)
def test_a_start_that_makes_no_sense_is_refused(few_digits, options, message):
    if "solver" in options:
        tuned = pj.load("digits").tuned
        options |= {"solver": next(row.setting.solver for row in tuned if row.setting.solver is not None)}
    with pytest.raises(ValueError, match=message):
        pj.generate(few_digits, nfe=5, n=2, **options)


def test_the_search_looks_at_starts():
    sde = SDES["edm"]
    starts = search.first_times(sde, sde.t_end)
    np.testing.assert_allclose(sde.sigma(np.array(starts)), [80, 32, 16, 8, 4, 2], rtol=2e-3)
    times = tuple(sde.time(np.array([16.0, 1.0, 0.01])))

    def trial(setting, n):
        distance = 1 + (setting.t_start != starts[3]) + (setting.grid != "quadratic")
        return Score(None, distance, 0.0)

    options = {"num_samples": 16, "candidates": 4, "seed": 0}
    best = search.search("ddim", trial, grids=[times], starts=starts, **options)
    assert (best.grid, best.t_start) == ("quadratic", starts[3])
    tried = []

    def likes_times(setting, n):
        tried.append(setting)
        return Score(None, 1.0 + (setting.grid != times), 0.0)

    best = search.search("ddim", likes_times, grids=[times], starts=starts, **options)
    assert (best.grid, best.t_start) == (times, times[0])
    assert all(isinstance(setting.grid, str) or setting.t_start == times[0] for setting in tried)


@pytest.mark.parametrize("name", ["psld", "edm", "flow"])
def test_few_evaluations_of_a_model_that_was_not_tuned_start_where_noise_hides_the_mean(few_digits, name):
    model = pj.load("digits", {"sde.name": name, "data.num_points": 20})
    model = dataclasses.replace(model, tuned=())
    chosen = resolve(model, nfe=6)
    np.testing.assert_allclose(model.sde.sigma(np.float64(chosen.t_start)), 8.0, rtol=1e-6)  # 64 pixels
    assert resolve(model, nfe=20).t_start == 1
    # Where images are so large that the noise at t = 1 does not hide their mean, there is no such start.
    large = dataclasses.replace(model, image_shape=(10**6, 10**6, 1))
    assert resolve(large, nfe=6).t_start == 1 or name == "flow"  # all noise at t = 1


def test_conditions_see_the_steps_alone(rng):
    """Clipping, CFG++ and measurements change steps, and those are the same with and without the way to their start."""
    sde, grid = SDES["vp"], pj.grids.power(5, 1e-3, START)
    ddim, data = pj.integrators.get("ddim"), pj.integrators.get("exponential_multistep", order=2)
    led, plain = ([pj.tabulate(one, sde, grid, analytic_start=lead) for one in (ddim, data)] for lead in (True, False))
    curves = [renoised(sde, tables[0], 0.5, 0.0) for tables in (led, plain)]
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(curve) for curve in curves))
    clips = [pj.scores.clipped(lambda z, t: z, sde, table=tables[0]).weights for tables in (led, plain)]
    np.testing.assert_array_equal(*clips)
    half = pj.operators.mask(pj.operators.half_mask("top", (4, 4, 1)))
    y = rng.standard_normal((1, 4, 4, 1))
    pulls = [pj.measurement_pull(sde, data, tables[1], half, y, (4, 4, 1)).weights for tables in (led, plain)]
    np.testing.assert_array_equal(*pulls)


@pytest.mark.parametrize("time", ["current", "original"])
@pytest.mark.parametrize("lead", ["analytic", "prior"])
@pytest.mark.parametrize("name", ["psld", "third_order", "vp", "edm", "flow"])
def test_known_pixels_have_their_law_where_the_grid_starts(name, lead, time):
    """The way to the start is for noise: led there like the others, a known pixel would say nothing of its value."""
    sde = SDES[name].preconditioned(0.6)
    grid = "quadratic" if lead == "analytic" else (START, 0.1, 1e-2)
    for sampler in ("exponential_multistep", "ancestral"):
        setting = Setting(sampler, grid, t_start=START if lead == "analytic" else 1.0)
        table = setting.table(sde, 3, t_end=1e-2)
        known = pj.known_pixels(sde, table, np.ones((1, 2, 2, 1)), np.ones((2, 2)), time=time)
        first = np.eye(sde.num_blocks) if table.P is None else table.P[0]
        factor = first @ known.factor[0]
        np.testing.assert_allclose(first @ known.mean[0], sde.mean(np.float64(START))[:, :1], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(factor @ factor.T, sde.cov(np.float64(START)), rtol=1e-6, atol=1e-9)
        after = table.times[1] if time == "current" else np.float64(START)
        np.testing.assert_allclose(known.mean[1], sde.mean(after)[:, :1], rtol=1e-12)


def test_what_is_known_reaches_the_first_evaluation(key):
    """Two pixels with one value, one step of DDIM from where it is seen: the mean of the other one is closed."""
    sde, value, n = SDES["vp"], -0.8, 20_000
    start, middle = (np.float64(sde.time(level)) for level in (1.0, 0.5))

    def same_value(t):  # eps of N(0, 1 1^T), along the mean of both and across it
        signal, noise = sde.mean(t)[:, 0, 0] ** 2, sde.cov(t)[:, 0, 0]
        return np.stack([np.sqrt(noise) / (noise + 2 * signal), 1 / np.sqrt(noise)], axis=-1)[:, None]

    weights = device.TimeFunction(same_value, 1e-4)

    def eps_fn(z, t):
        along, across = weights(t)[0]
        mean = z[0].mean(axis=2, keepdims=True)
        return (along * mean + across * (z[0] - mean),)

    table = Setting("ddim", (start, middle), t_start=start).table(sde, 1, t_end=middle, denoise=False)
    images = np.full((n, 1, 2, 1), value)
    known = pj.known_pixels(sde, table, images, np.array([[1, 0]]))
    found = pj.sample(eps_fn, table, sde.prior_sample(key, images.shape), key, known=known)[0][:, 0, 1, 0]
    (a, b), (v, w) = (np.array([f(t)[0, 0] for t in (start, middle)]) for f in (sde.mean, sde.cov))
    # Noise has the mean 0, so that of the other pixel is what DDIM takes of E[x_0 | z], of which the known one is half.
    expected = (b - np.sqrt(w / v) * a) * a / (v + 2 * a**2) * a * value
    error = float(found.std()) / np.sqrt(n)
    assert abs(expected) > 8 * error
    np.testing.assert_allclose(found.mean(), expected, atol=4 * error)


def test_the_script_prints_a_row_for_every_budget(monkeypatch, capsys):
    monkeypatch.setattr(script, "PATHS", {"psld": {"data.num_points": 50}})
    monkeypatch.setattr(script, "TARGETS", 200)
    script.main((4, 6), 8)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["NFE", "4", "6"]
    values = np.array([[list(map(float, cell.split(", "))) for cell in row[1:]] for row in rows[1:]])
    assert values.shape == (2, 1 + len(script.LEVELS), 2) and np.isfinite(values).all() and (values > 0).all()


def test_clocks_are_compared_on_every_path(monkeypatch, capsys):
    monkeypatch.setattr(clocks, "PATHS", {"edm": {"sde.name": "edm", "data.num_points": 50}})
    clocks.main((), (4, 10), 8)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].split("`")[1] for row in rows[1:]] == [*clocks.PUBLISHED, *(grid for grid, *_ in clocks.CLOCKS)]
    errors = np.array([[float(cell.split(", ")[0]) for cell in row[1:]] for row in rows[1:]])
    # The steps of a VP diffusion err least on this path, whose own time is the noise level.
    assert errors.shape == (7, 2) and (errors[-1] < errors[:-1]).all()


def test_rows_that_are_added_come_after_the_way_to_the_start(rng):
    setting, sde = Setting("predictor_corrector", t_start=START), SDES["psld"]
    table = setting.table(sde, 4)
    more = with_more_rows(table, 6)
    z_T = tuple(jnp.asarray(rng.standard_normal((2, 3, 3, 1))) for _ in range(2))

    def network(z, t):
        return tuple(jnp.tanh(leaf + t) for leaf in z)

    assert more.nfe == 6
    for a, b in zip(pj.sample(network, more, z_T), pj.sample(network, table, z_T), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_array_equal(more.P[0], table.P[0])
