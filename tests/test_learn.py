"""Learned solvers: what is learned, how the loss moves with it, that it helps, and their files."""

import copy
import dataclasses
import importlib
import json
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import seeds

import psld_jax as pj
from psld_jax.sampling.generate import prepare, resolve
from psld_jax.sampling.settings import Tuned
from psld_jax.tuning._coefficients import FREE, Coefficients, with_more_rows
from psld_jax.tuning._curvature import Objective
from psld_jax.tuning._evaluate import Evaluator

module = importlib.import_module("psld_jax.tuning.learn")  # the function has the module's name
MULTISTEP = pj.Setting("exponential_multistep", hyper={"prediction": "data", "order": 2})


@pytest.fixture(scope="module")
def model():
    return pj.load("digits", {"data.num_points": 40})


@pytest.fixture(scope="module")
def vp():
    return pj.load("digits", {"data.num_points": 40, "sde.name": "vpsde"})


@pytest.fixture(scope="module")
def evaluator(model):
    noise = seeds.generator("learning target").standard_normal((80, *model.image_shape))
    return Evaluator(model, target=np.tile(model.data, (2, 1, 1, 1)) + 0.05 * noise, batch_size=16)


@pytest.fixture(scope="module")
def solver(model):
    """A solver that was learned for nothing but to be a file: its numbers are the table's."""
    table = MULTISTEP.table(model.sde, 5)
    about = {"diffusion": repr(model.sde), "network": model.fingerprint, "t_end": model.sde.t_end, "denoise": True}
    return pj.Solver(table, {**about, "start": MULTISTEP.to_json()})


@pytest.mark.parametrize("sampler", ["exponential_multistep", "predictor_corrector", "reduced_oba", "heun"])
def test_zero_is_the_table_and_every_number_moves_its_row_alone(model, sampler, rng):
    table = pj.Setting(sampler).table(model.sde, 7)
    free = Coefficients(table, free=FREE, history=3)
    same = free.table(np.zeros(free.size))
    for name, values in table.rows().items():
        if values is not None:
            got = getattr(same, name)
            np.testing.assert_array_equal(got[:, : table.B.shape[1]] if name == "B" else got, values)
    number = int(rng.integers(free.size))
    moved = free.table(1e-3 * np.eye(free.size)[number])
    for name, values in same.rows().items():
        if values is not None:
            others = np.delete(np.arange(table.nfe), free.rows[number])
            np.testing.assert_array_equal(getattr(moved, name)[others], values[others])


def test_a_consistent_solver_stays_exact_for_a_constant_prediction(model, rng):
    table = MULTISTEP.table(model.sde, 6)
    free = Coefficients(table, free=("A", "B", "P", "tau"), history=4, consistent=True)
    moved = free.table(rng.standard_normal(free.size))
    np.testing.assert_array_equal(moved.A, table.A)
    np.testing.assert_allclose(moved.B.sum(axis=1), table.B.sum(axis=1), atol=1e-14)
    assert not np.allclose(moved.B[:, 0], table.B[:, 0])


def test_an_update_before_the_evaluation_can_be_learned_where_there_is_none(model, key, rng):
    table = MULTISTEP.table(model.sde, 5)
    assert table.P is None
    free = Coefficients(table, free=("P",), history=1)
    assert free.size == 5 * 2**2
    z_T = model.sde.prior_sample(key, (2, 8, 8, 1))
    want = pj.sample(model.eps_fn, table, z_T)
    np.testing.assert_array_equal(pj.sample(model.eps_fn, free.table(np.zeros(free.size)), z_T)[0], want[0])
    theta = 0.1 * rng.standard_normal(free.size)
    np.testing.assert_array_equal(free.table(theta).P, np.eye(2) + theta.reshape(5, 2, 2))


def test_some_steps_can_be_learned_alone(model, rng):
    table = MULTISTEP.table(model.sde, 6)
    every, some = (Coefficients(table, free=("tau", "B"), history=4, steps=steps) for steps in ((), (1, 4)))
    assert set(some.rows) == {1, 4} and some.size == np.isin(every.rows, (1, 4)).sum()
    theta = rng.standard_normal(every.size)
    theta[~np.isin(every.rows, (1, 4))] = 0
    for name, values in every.table(theta).rows().items():
        if values is not None:
            np.testing.assert_array_equal(getattr(some.table(theta[theta != 0]), name), values)


@pytest.mark.parametrize("sampler", ["exponential_multistep", "ancestral", "reduced_oba"])
def test_more_evaluations_change_nothing_until_they_are_learned(model, sampler, key):
    table = pj.Setting(sampler).table(model.sde, 5)
    longer = with_more_rows(table, 7)
    assert longer.nfe == 7 and longer.num_steps == table.num_steps and with_more_rows(table, 5) is table
    z_T = model.sde.prior_sample(key, (2, 8, 8, 1))
    want = pj.sample(model.eps_fn, table, z_T, key)
    np.testing.assert_array_equal(pj.sample(model.eps_fn, longer, z_T, key)[0], want[0])


@pytest.mark.parametrize(("weight", "error"), [pytest.param(0.0, "pixels", marks=pytest.mark.slow), (1.0, "pixels")])
def test_the_gradient_is_that_of_the_loss(evaluator, weight, error, rng):
    free = Coefficients(MULTISTEP.table(evaluator.model.sde, 4), free=("tau", "A", "B"), history=2)
    objective = Objective(evaluator, free, 32, weight=weight, error=error)
    theta = 0.01 * rng.standard_normal(free.size)
    curvature, gradient = objective.normal_equations(theta, objective.samples(theta), [0, 1])
    direction = rng.standard_normal(free.size)
    step = 1e-3 / np.linalg.norm(direction)
    up, down = (objective.loss(objective.samples(theta + s * step * direction)).value for s in (1, -1))
    # Samples are float32: the difference of the losses has some three digits. A wider step crosses kinks, where a
    # pixel is clipped.
    np.testing.assert_allclose(gradient @ direction, (up - down) / (2 * step), rtol=1e-2, atol=1e-2)
    assert np.linalg.eigvalsh(curvature).min() > -1e-6 * np.abs(curvature).max()


@pytest.mark.slow
def test_the_gradient_through_features_is_that_of_the_loss(rng):
    model = pj.load("mnist")
    target = rng.uniform(-1, 1, (80, *model.image_shape))  # 512 fine samples would take minutes
    evaluator = Evaluator(model, target=target, features=pj.metrics.features("mnist"), batch_size=4)
    evaluator.exact(4)
    free = Coefficients(MULTISTEP.table(model.sde, 3), free=("B",), history=1)
    for weight, error in ((0.0, "features"), (1.0, "pixels")):
        objective = Objective(evaluator, free, 4, weight=weight, error=error)
        theta = np.zeros(free.size)
        _, gradient = objective.normal_equations(theta, objective.samples(theta), [0])
        direction = rng.standard_normal(free.size)
        step = 1e-2 / np.linalg.norm(direction)
        up, down = (objective.loss(objective.samples(theta + s * step * direction)).value for s in (1, -1))
        # As above; the classifier's kinks are between the two points.
        np.testing.assert_allclose(gradient @ direction, (up - down) / (2 * step), rtol=5e-2, atol=5e-2)


def _learned(model, log=None, **options):
    # Batches as those of the evaluator share its programs.
    options = {"num_samples": 32, "batch_size": 16, "iterations": 3, "history": 2, **options}
    return pj.learn(model, 4, MULTISTEP, log=log, **options)


@pytest.fixture(scope="module")
def learning(model, tmp_path_factory):
    """A learning to the end, without a break: what it found, its log, and what it reported."""
    lines, log = [], tmp_path_factory.mktemp("learning") / "log.jsonl"
    return _learned(model, log, report=lines.append), log, lines


@pytest.mark.parametrize("name", ["model", pytest.param("vp", marks=pytest.mark.slow)])
def test_learning_makes_the_error_smaller_on_noise_it_has_not_seen(name, request):
    found = request.getfixturevalue("learning")[0] if name == "model" else _learned(request.getfixturevalue(name))
    assert found.better and found.after.rmse < 0.9 * found.before.rmse
    assert found.solver.about["scores"]["after"]["rmse"] == found.after.rmse
    assert found.solver.nfe == 4 and found.size == found.solver.about["numbers"]


def test_a_killed_learning_goes_on(model, learning, tmp_path, monkeypatch):
    whole, written, lines = learning
    assert len(lines) == whole.iterations == 3
    kept, log = written.read_text().splitlines(keepends=True), tmp_path / "log.jsonl"
    log.write_text("".join(kept[:-1]) + kept[-1][:40])  # killed while it wrote
    steps = []
    step = module._Run._step
    monkeypatch.setattr(module._Run, "_step", lambda self, *args: steps.append(args) or step(self, *args))
    again = _learned(model, log)
    assert len(steps) == 1
    np.testing.assert_array_equal(again.solver.table.B, whole.solver.table.B)
    with pytest.raises(ValueError, match="seed"):
        _learned(model, log, seed=5)


def test_a_log_is_of_one_target(model, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr(module, "_Run", begin)  # made after the log is
    for _ in range(2):
        with pytest.raises(Begun):
            pj.learn(model, 4, target=model.data, log=tmp_path / "log.jsonl")
    for other in (model.data[1:], None):
        with pytest.raises(ValueError, match="is of a learning with target="):
            pj.learn(model, 4, target=other, log=tmp_path / "log.jsonl")


def test_a_step_is_doubled_as_long_as_the_loss_falls():
    run = object.__new__(module._Run)

    def loss(x):
        return SimpleNamespace(value=float((x[0] - 10) ** 2))

    run._train = SimpleNamespace(weight=1.0, samples=lambda theta: theta, loss=loss)
    step, found = run._longer(np.zeros(1), np.ones(1), loss(np.ones(1)))
    assert step == 8 and found.value == 4  # 16 is further away
    run._train.weight = 0.0  # the curvature of an error is none that is too large
    assert run._longer(np.zeros(1), np.ones(1), loss(np.ones(1)))[0] == 1


@pytest.mark.slow
def test_numbers_of_numpy_and_jax_are_written_as_others_are(model, tmp_path):
    options = {"num_samples": 16, "batch_size": 8, "iterations": 1, "steps": [0], "history": 3, "distance": 0.5}
    numbers = {"steps": [np.int32(0)], "num_samples": np.int64(16), "history": np.int32(3), "distance": np.float32(0.5)}
    numbers |= {"consistent": np.False_, "denoise": np.True_, "soft": jax.numpy.float32(0)}
    log = tmp_path / "learning.jsonl"
    found = pj.learn(model, np.int64(3), log=log, **{**options, **numbers})
    found.solver.write(tmp_path / "solver.json")
    written = pj.load_solver(tmp_path / "solver.json").about
    assert written == pj.learn(model, 3, log=log, **options).solver.about == found.solver.about


@pytest.mark.slow
def test_noise_can_be_learned(model):
    options = {"history": 1, "num_samples": 256, "batch_size": 64, "iterations": 6}
    alone = pj.learn(model, 8, pj.Setting("euler_maruyama"), free=("R",), **options)
    assert alone.after.rmse is None
    # Seen: 7.3 before, 4.4 with the noise learned, 0.7 with the step too.
    assert alone.after.distance < 0.75 * alone.before.distance
    whole = pj.learn(model, 8, pj.Setting("euler_maruyama"), free=("A", "B", "R"), **options)
    assert whole.after.distance < 0.5 * alone.after.distance


def test_learning_ends_where_the_distance_is_within_the_noise(evaluator):
    """A stochastic sampler has nothing but the distance."""
    free = Coefficients(pj.Setting("ancestral").table(evaluator.model.sde, 3), free=("R",), history=1)
    objective = Objective(evaluator, free, 16, weight=1.0, error="none")
    objective.samples = lambda theta: evaluator.exact(16)  # as close as the fine solution
    curvature, gradient = objective.normal_equations(np.zeros(free.size), objective.samples(None), [0])
    assert not curvature.any() and not gradient.any()


@pytest.mark.slow
def test_a_start_that_is_not_finite_is_left_out(model, monkeypatch):
    lines = []
    bad = pj.Setting.learned(_with_nan(model))
    found = pj.learn(
        model, 5, [bad, MULTISTEP], num_samples=16, batch_size=16, iterations=1, history=1, report=lines.append
    )
    assert "not finite" in lines[0] and found.solver.about["start"]["sampler"] == "exponential_multistep"
    with pytest.raises(pj.NotFinite, match="no start"):
        pj.learn(model, 5, bad, num_samples=16, batch_size=16, iterations=1)


def _with_nan(model):
    table = MULTISTEP.table(model.sde, 5)
    table = dataclasses.replace(table, A=np.full_like(table.A, np.nan))
    about = {"diffusion": repr(model.sde), "network": "", "t_end": model.sde.t_end, "denoise": True}
    return pj.Solver(table, about)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free": ("C",)}, "C"),
        ({"free": ("R",)}, "nothing to learn"),
        ({"error": "faces"}, "faces"),
        ({"num_samples": 40}, "multiple of batch_size=32"),
        ({"history": 0}, "history=0"),
        ({"distance": -1.0}, "distance=-1.0"),
        ({"soft": 2.0}, "soft=2.0"),
        ({"steps": (4,)}, "4 evaluations: 0 to 3"),
        ({"steps": (-1,)}, "steps.0.=-1"),
        ({"iterations": 0}, "iterations=0"),
        ({"history": 40, "free": ("B",)}, "at most 16"),
    ],
)
def test_bad_options_are_one_line(model, options, message):
    nfe = 20 if "history" in options and options["history"] > 16 else 4
    with pytest.raises(ValueError, match=message):
        pj.learn(model, nfe, MULTISTEP, **{"num_samples": 64, "batch_size": 32, **options})


def test_a_file_holds_every_bit_and_the_samples_are_the_same(model, solver, tmp_path):
    solver.write(tmp_path / "solver.json")
    again = pj.load_solver(tmp_path / "solver.json")
    for name, values in solver.table.rows().items():
        if values is None:
            assert getattr(again.table, name) is None
        else:
            np.testing.assert_array_equal(getattr(again.table, name), values)
    assert again.about == json.loads(json.dumps(solver.about))
    want = pj.generate(model, "exponential_multistep", nfe=5, n=4, grid=MULTISTEP.grid, **MULTISTEP.hyper)
    for given in (solver, tmp_path / "solver.json", str(tmp_path / "solver.json")):
        np.testing.assert_array_equal(pj.generate(model, solver=given, n=4), want)
    np.testing.assert_array_equal(pj.generate(model, "learned", solver=solver, n=4), want)


def _damage():
    def change(name, value):
        return lambda values: values.update({name: value})

    def row(name, make):
        return lambda values: values["rows"].update({name: make(values["rows"][name])})

    yield "format", change("format", "another")
    yield "version", change("version", 99)
    yield "about", change("about", {})
    yield "about is no object", change("about", 3)
    yield "draws", change("num_draws", "two")
    yield "missing rows", lambda values: values.pop("rows")
    yield "missing B", lambda values: values["rows"].pop("B")
    yield "nan", row("A", lambda a: [[[float("nan")] * 2] * 2] * len(a))
    yield "tau 0", row("tau", lambda tau: [0.0, *tau[1:]])
    yield "short", row("U", lambda u: u[:-1])
    yield "text", row("V", lambda v: "V")
    yield "ragged", row("B", lambda b: [*b[:-1], b[-1][:1] * 3])
    yield "long history", row("B", lambda b: [x * 17 for x in b])
    yield "noise without a draw", row("R", lambda r: [[[0.0] * 2] * 2] * 5)
    yield "last rows", change("last_rows", [0, 1, 2, 3, 9])
    yield "times", change("times", [1.0])
    yield "lead", change("lead", [0.5])
    yield "lead without an inverse", change("lead", [0.5, [[1.0, 1.0], [1.0, 1.0]]])
    yield "numbers as text", row("tau", lambda tau: ["0.5", *tau[1:]])
    yield "no rows", row("A", lambda a: [])
    yield "half a draw", change("num_draws", 0.5)
    yield "times that rise", lambda values: values["times"].reverse()
    for name, value in (("diffusion", 1), ("network", None), ("t_end", "0.001"), ("denoise", 5), ("start", "ddim")):
        yield f"about.{name}", lambda values, name=name, value=value: values["about"].update({name: value})


@pytest.mark.parametrize(("what", "damage"), list(_damage()), ids=[what for what, _ in _damage()])
def test_a_damaged_file_is_one_line(solver, tmp_path, what, damage):
    values = copy.deepcopy(solver.to_json())
    damage(values)
    path = tmp_path / "solver.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as raised:
        pj.load_solver(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"rows": []}, r"rows=\[\] must be an object"),
        ({"lead": [0.5, [[1.0]], 3]}, "lead must be a time"),
        ({"lead": "ab"}, "lead must be a time"),
    ],
)
def test_a_file_of_another_form_is_refused_by_what_is_wrong(solver, damage, message):
    with pytest.raises(ValueError, match=f"solver is damaged: {message}"):
        pj.Solver.from_json(solver.to_json() | damage)


def test_what_an_edited_file_says_of_itself_stays_on_one_line(model, solver, tmp_path):
    about = solver.about | {"network": "a\nb", "start": {"sampler": "a\n" * 1000}}
    text = json.dumps(dataclasses.replace(solver, about=about).to_json())
    (tmp_path / "solver.json").write_text(f"\ufeff{text}", encoding="utf-8")  # a mark that some editors write first
    edited = pj.load_solver(tmp_path / "solver.json")
    assert "\n" not in edited.describe() and len(edited.describe()) < 300
    with pytest.warns(UserWarning, match="another network") as warned:
        prepare(model, solver=edited)
    assert "\n" not in str(warned[0].message)
    other = dataclasses.replace(edited, about=about | {"diffusion": "PSLD(\n)"})
    with pytest.raises(ValueError, match=r"is for PSLD\( \); this model is PSLD\("):
        prepare(model, solver=other)


def test_a_directory_is_no_place_for_a_solver_and_nothing_is_left_beside_it(solver, tmp_path):
    place = tmp_path / "solvers"
    place.mkdir()
    with pytest.raises(ValueError, match="solvers cannot be written: it is a directory"):
        solver.write(place)
    assert list(tmp_path.iterdir()) == [place] and not list(place.iterdir())


def test_a_file_holds_the_way_to_the_start(model, solver, tmp_path):
    table = pj.Setting("ddim", t_start=0.4).table(model.sde, 4)
    dataclasses.replace(solver, table=table).write(tmp_path / "solver.json")
    start, matrix = pj.load_solver(tmp_path / "solver.json").table.lead
    assert start == 0.4
    np.testing.assert_array_equal(matrix, table.lead[1])
    assert "lead" not in solver.to_json()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "null", "[" * 100_000])
def test_what_is_no_solver_is_one_line(tmp_path, content):
    path = tmp_path / "solver.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"solver\.json"):
        pj.load_solver(path)
    with pytest.raises(ValueError, match="cannot be read"):
        pj.load_solver(tmp_path / "none.json")


def test_a_solver_of_other_blocks_is_refused_before_it_runs(vp, solver):
    edited = dataclasses.replace(solver, about={**solver.about, "diffusion": repr(vp.sde), "t_end": vp.sde.t_end})
    with pytest.raises(ValueError, match="2 blocks; this model has 1"):
        prepare(vp, solver=edited)


def test_a_solver_is_for_one_diffusion_one_end_and_one_budget(model, vp, solver):
    for options, message in (
        ({"nfe": 4}, "nfe=4 is too few"),
        ({"t_end": 0.1}, "t_end"),
        ({"denoise": False}, "denoise"),
        ({"grid": "uniform"}, "its own times"),
        ({"order": 2}, "its own times"),
        ({"sampler": "ddim"}, "sampler by itself"),
        ({"sampler": "rk45"}, "sampler by itself"),
        ({"known": np.zeros((1, 8, 8, 1)), "mask": np.ones((8, 8)), "resample": 2}, "resample=2"),
    ):
        with pytest.raises(ValueError, match=message):
            pj.generate(model, n=1, **{"solver": solver, **options})
    with pytest.raises(ValueError, match="this model is"):
        pj.generate(vp, n=1, solver=solver)
    with pytest.raises(ValueError, match="needs solver="):
        pj.generate(model, "learned", n=1)


def test_other_weights_are_warned_of_once(model, solver):
    other = pj.load("digits", {"data.num_points": 39})
    assert other.fingerprint != model.fingerprint == pj.load("digits", {"data.num_points": 40}).fingerprint
    with pytest.warns(UserWarning, match="another network"):
        pj.generate(other, n=1, solver=solver)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pj.generate(model, n=1, solver=solver)


def test_auto_takes_a_solver_for_its_own_budget_alone(model, solver):
    learned, tuned = Tuned(5, pj.Setting.learned(solver)), Tuned(8, pj.Setting("ddim"))
    model = dataclasses.replace(model, tuned=(learned, tuned))
    same = {"n": 2, "nfe": 5}
    np.testing.assert_array_equal(pj.generate(model, **same), pj.generate(model, solver=solver, **same))
    known = {"known": np.zeros((1, 8, 8, 1)), "mask": np.eye(8)}
    assert prepare(model, nfe=5, **known).setting.solver is None  # there it was worse than what was tuned
    assert prepare(model, nfe=5, solver=solver, **known).setting.solver is solver
    assert resolve(model, nfe=5).solver is None  # who does not say what it is for gets what is right for all
    for options in ({"nfe": 6}, {"nfe": 5, "denoise": False}, {"nfe": 5, "t_end": 1e-2}, {"nfe": 5, "grid": "uniform"}):
        np.testing.assert_array_equal(
            pj.generate(model, n=2, **{"grid": "quadratic", **options} if "nfe" in options else options),
            pj.generate(model, "ddim", n=2, **{"grid": "quadratic", **options}),
        )


@pytest.mark.slow
def test_known_pixels_and_measurements_go_with_a_solver(model, solver, rng):
    images = np.clip(model.data[:2], -1, 1)
    mask = np.zeros((8, 8))
    mask[:4] = 1
    filled = pj.generate(model, n=2, solver=solver, known=images, mask=mask)
    np.testing.assert_allclose(filled[:, :4], images[:, :4], atol=1e-6)  # float32
    operator = pj.operators.downsample(2)
    steered = pj.generate(model, n=2, nfe=10, solver=solver, operator=operator, measurement=operator(images))
    assert np.isfinite(steered).all()


@pytest.mark.slow
def test_the_tuner_leaves_out_learned_times_that_are_no_better(model, tmp_path, monkeypatch):
    """Descent on a few noises may end anywhere, so what it finds is given here: all steps at the start of the grid."""
    found = pj.Setting("exponential_multistep", (1.0, 0.99, 0.98, model.sde.t_end), hyper=MULTISTEP.hyper)
    steps, lines = [], []
    tune = importlib.import_module("psld_jax.tuning.tune")  # the function has the module's name
    monkeypatch.setattr(tune, "refine", lambda start, evaluator, nfe, count: steps.append(count) or found)
    options = {"num_samples": 32, "candidates": 2, "gradient_steps": 0, "log": str(tmp_path / "tuning.jsonl")}
    tuning = pj.tune(model, (4,), ("exponential_multistep",), learn="times", progress=lines.append, **options)
    assert steps == [tune._TIMES_STEPS] and len(tuning.rows) == 1 and "is no better" in lines[-1]
    again = pj.tune(model, (4,), ("exponential_multistep",), learn="times", **options)
    assert again == tuning and len(steps) == 1


@pytest.mark.parametrize("learn", ["times", "table"])
def test_a_tuning_that_has_nothing_to_learn_from_is_refused_before_it_runs(model, learn):
    with pytest.raises(ValueError, match=f"learn='{learn}' starts from a deterministic sampler.*'euler_maruyama'"):
        pj.tune(model, (4,), ("euler_maruyama", "ancestral"), learn=learn)


@pytest.mark.slow
def test_the_tuner_says_for_which_budget_it_has_nothing_to_learn_from(model):
    lines = []
    options = {"num_samples": 8, "candidates": 1, "gradient_steps": 0, "target": model.data, "learn": "table"}
    pj.tune(model, (2,), ("heun", "euler_maruyama"), progress=lines.append, **options)  # heun takes three evaluations
    assert lines[-1].startswith("2 evaluations: no deterministic sampler was tuned")


@pytest.mark.slow
def test_the_tuner_keeps_what_was_learned_where_it_is_better(model, tmp_path):
    rows, lines, learn = [], [], "table"
    options = {"num_samples": 32, "candidates": 2, "gradient_steps": 2, "log": tmp_path / "tuning.jsonl"}
    learning = {"num_samples": 32, "iterations": 4, "history": 2}
    tuning = pj.tune(
        model, (4,), ("exponential_multistep",), learn=learn, learning=learning, report=rows.append,
        progress=lines.append, **options,
    )  # fmt: skip
    assert len(rows) == len(tuning.rows) == 2 and rows[1].score.loss < rows[0].score.loss
    tuning.write(tmp_path / "samplers.json")
    read = pj.load("digits", {"data.num_points": 40, "sampler.tuned": str(tmp_path / "samplers.json")})
    assert (tmp_path / "solver_4.json").exists()
    mine = dataclasses.replace(model, tuned=tuning.best)
    np.testing.assert_array_equal(pj.generate(read, nfe=4, n=2), pj.generate(mine, nfe=4, n=2))
    again = pj.tune(model, (4,), ("exponential_multistep",), learn=learn, learning=learning, **options)
    assert [row.to_json() for row in again.rows] == [row.to_json() for row in tuning.rows]


def test_the_device_count_does_not_matter_to_a_table(solver):
    leaves = jax.tree.leaves(solver.table)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype in (np.float64, np.int64) for leaf in leaves)
