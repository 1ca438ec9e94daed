"""Sweeps over samplers: moments in one pass, cells that a killed run does not repeat, tables."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from seeds import generator

from psld_jax import build, metrics
from psld_jax._runtime.journal import Journal
from psld_jax.data import open_dataset
from psld_jax.evaluation import evaluate
from psld_jax.modes import compare
from psld_jax.sampling import files as sampling
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.settings import Setting, Tuned


def test_moments_of_parts_are_those_of_the_whole(rng):
    """Float64, awkward on purpose: a mean of 1e4 deviations, parts of unequal size, one of them a single sample."""
    data = 1e4 + rng.standard_normal((1001, 7)) @ rng.standard_normal((7, 7))
    moments = metrics.Moments()
    for part in np.split(data, [1, 400, 400, 640]):
        moments.add(part)
    law = moments.gaussian(unbiased=True)
    np.testing.assert_allclose(law.mean, data.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(law.cov, np.cov(data.T), rtol=1e-9)  # a mean of 1e4 costs eight of sixteen digits
    np.testing.assert_allclose(moments.gaussian().cov, np.cov(data.T, bias=True), rtol=1e-9)


def test_moments_of_bad_features():
    moments = metrics.Moments()
    with pytest.raises(ValueError, match="at least two"):
        moments.gaussian()
    moments.add(np.array([[1.0, np.nan]]))
    assert not moments.finite
    with pytest.raises(ValueError, match="finite: False"):
        moments.gaussian()


@pytest.fixture(scope="module")
def digits_sweep(digits_model):
    """A reference of exact images, and the jobs of two samplers."""
    rng = generator("sweep")
    images = digits_model.data[rng.integers(len(digits_model.data), size=4000)]
    features = metrics.features("pixels")
    moments = metrics.Moments()
    moments.add(features(images + 0.05 * rng.standard_normal(images.shape)))
    options = build.sampler_options(digits_model.config)
    jobs = list(evaluate.jobs(digits_model, ("auto", "ROBA"), (6, 12), (), options))
    return jobs, moments.gaussian(), features


def test_a_killed_sweep_goes_on(digits_sweep, tmp_path):
    """The second run takes the cells of the first from the journal, and gives the same rows."""
    jobs, reference, features = digits_sweep
    path, reported = tmp_path / "evaluation.jsonl", []
    options = {"features": features, "seeds": (0, 1), "num_samples": 90, "batch_size": 64}

    def run(jobs):
        journal = Journal(path, {"model": "digits"}, "an evaluation")
        return evaluate.evaluate(jobs, reference, **options, journal=journal, picture=lambda c, x: reported.append(c))

    first = run(jobs[:2])
    assert [(cell.sampler, cell.budget, cell.seed) for cell in first] == [
        ("auto", 6, 0),
        ("auto", 6, 1),
        ("ROBA", 6, 0),
        ("ROBA", 6, 1),
    ]
    path.write_text(path.read_text() + '{"key": "half a li')
    cells = run(jobs)
    assert cells[:4] == first
    assert [(cell.sampler, cell.budget) for cell in reported] == [("auto", 6), ("ROBA", 6), ("auto", 12), ("ROBA", 12)]
    rows = evaluate.summary(cells)
    assert [row["nfe"] for row in rows] == [6, 6, 12, 12]
    # At 6 evaluations "auto" is a learned solver, which 90 samples do not tell apart from 12 evaluations.
    assert max(rows[0]["distance"], rows[2]["distance"]) < rows[1]["distance"]
    evaluate.write(tmp_path, rows, (1.0, 0.1), "pixels")
    lines = (tmp_path / "evaluation.md").read_text().splitlines()
    assert lines[2] == "| | 6 NFE | 12 NFE |"
    assert lines[4].startswith("| `auto` | **")
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == json.loads(json.dumps(rows))
    with pytest.raises(ValueError, match="is of an evaluation with model='digits'"):
        Journal(path, {"model": "another"}, "an evaluation")


def test_distance_is_that_of_the_samples(digits_sweep):
    """Streaming in batches against all samples at once."""
    jobs, reference, features = digits_sweep
    options = {"features": features, "num_samples": 90, "batch_size": 64}
    (cell,) = evaluate.evaluate(jobs[:1], reference, **options, journal=Journal(None, {}, ""))
    images = np.concatenate([state[0] for _, state, _ in jobs[0][2].batches(0, range(90), 90)])
    expected = metrics.frechet_distance(*metrics.statistics(np.clip(images, -1, 1)), reference.mean, reference.cov)
    np.testing.assert_allclose(cell.distance, expected, rtol=1e-6)  # float32 samples in batches of another size


@pytest.mark.slow
def test_images_from_a_folder(digits_sweep, digits_model, tmp_path):
    """What was written as files has nearly the distance of what was drawn: levels are 1/127.5 apart."""
    jobs, reference, features = digits_sweep
    sampling.write_samples(jobs[2][2], tmp_path / "images", 90)
    folder = evaluate.FolderImages(open_dataset("folder", tmp_path / "images", channels=1))
    both = [("folder", 0, folder), jobs[2]]
    options = {"features": features, "num_samples": 90, "journal": Journal(None, {}, "")}
    from_files, drawn = evaluate.evaluate(both, reference, **options)
    assert from_files.nfe == 0 and from_files.setting is None
    np.testing.assert_allclose(from_files.distance, drawn.distance, rtol=0.01)
    with pytest.raises(ValueError, match="num_samples=91"):
        evaluate.evaluate(both[:1], reference, **{**options, "num_samples": 91})


def test_a_journal_tells_tolerances_and_folders_apart(digits_model, digits_sweep, tmp_path, rng):
    """Neither an adaptive solver nor a folder has a setting; a resumed sweep ran none of the second ones."""
    _, reference, features = digits_sweep
    jobs, keys = [], []
    for number, rtol in enumerate((1e-2, 1e-3)):
        np.savez(tmp_path / f"{number}.npz", images=rng.integers(0, 256, (4, 8, 8, 1), np.uint8))
        jobs.append(("folder", 0, evaluate.FolderImages(open_dataset("arrays", tmp_path / f"{number}.npz"))))
        jobs.append(("rk23", 0, prepare(digits_model, "rk23", rtol=rtol)))
    known = evaluate.Cell("", 0, 0, 4, 0.0, 1.0, 1.0, None)
    journal = SimpleNamespace(get=lambda key, make: keys.append(json.dumps(key)) or dataclasses.asdict(known))
    for _ in range(2):
        evaluate.evaluate(jobs, reference, features=features, num_samples=4, journal=journal)
    assert keys[:4] == keys[4:] and len(set(keys)) == 4


@pytest.mark.filterwarnings("ignore:4 samples of 64 features")
def test_an_evaluation_is_of_one_network_and_one_reference(tmp_path):
    config = build.override(build.load_config("digits"), {"data.num_points": 40, "evaluate.samplers": ("ddim",)})
    config = build.override(config, {"evaluate.nfe": (2,), "evaluate.num_samples": 4, "evaluate.seeds": (0,)})
    config = build.override(config, {"evaluate.num_reference": 100})
    compare.run_evaluate(config, tmp_path, Console())
    with pytest.raises(ValueError, match="is of an evaluation with network="):
        compare.run_evaluate(build.override(config, {"data.num_points": 41}), tmp_path, Console())
    own, directory = build.override(config, {"evaluate.reference": str(tmp_path / "law.npz")}), tmp_path / "file"
    directory.mkdir()
    np.savez(tmp_path / "law.npz", mu=np.zeros(64), sigma=np.eye(64))
    compare.run_evaluate(own, directory, Console())
    np.savez(tmp_path / "law.npz", mu=np.ones(64), sigma=np.eye(64))  # another one in the same place
    with pytest.raises(ValueError, match="is of an evaluation with reference_images="):
        compare.run_evaluate(own, directory, Console())


def test_an_evaluation_of_nothing_or_of_images_in_colour_is_one_line(tmp_path, rng):
    config = build.override(build.load_config("digits"), {"evaluate.samplers": ("ddim",), "evaluate.nfe": (1,)})
    with pytest.raises(ValueError, match="leaves nothing to compare"):
        compare.run_evaluate(config, tmp_path, Console())
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="8 x 8 x 3.*the model has 8 x 8 pixels of 1 channels"):
        compare.run_evaluate(build.override(config, {"evaluate.folder": str(tmp_path)}), tmp_path, Console())
    with pytest.raises(ValueError, match="leaves nothing to compare"):
        compare.run_bench(build.override(config, {"bench.samplers": ("heun",), "bench.nfe": (2,)}), tmp_path, Console())
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_budgets_below_one_step_count_what_a_run_begins_with(digits_model):
    """``restart`` with intervals takes evaluations beyond those of its steps."""
    options = build.sampler_options(digits_model.config)
    setting = Setting("restart", hyper={"intervals": ((0.1, 0.5, 2, 1),)})
    least = setting.integrator().least_nfe()
    assert least > setting.integrator().nfe_per_step + 1
    tuned = [Tuned(least, setting)]
    found = evaluate.jobs(digits_model, ("restart",), (least - 1, least), tuned, options)
    assert [budget for _, budget, _ in found] == [least]


def test_tuned_settings_and_budgets(digits_model):
    options = build.sampler_options(digits_model.config)
    tuned = [Tuned(10, Setting("lambda_ddim_ii", "log_snr", hyper={"lam": 0.7})), Tuned(50, Setting("lambda_ddim_ii"))]
    samplers = ("rk45", "lambda_ddim_ii", "RVV")
    jobs = list(evaluate.jobs(digits_model, samplers, (2, 15), tuned, options))
    assert [(name, budget) for name, budget, _ in jobs] == [
        ("rk45", 0),
        ("lambda_ddim_ii", 2),
        ("lambda_ddim_ii", 15),
        ("RVV", 15),
    ]
    setting = jobs[2][2].setting
    assert (setting.grid, setting.hyper) == ("log_snr", {"lam": 0.7})
    with pytest.raises(ValueError, match="Did you mean 'ancestral'"):
        list(evaluate.jobs(digits_model, ("ancestra",), (10,), (), options))
    with pytest.raises(ValueError, match="nfe"):
        list(evaluate.jobs(digits_model, ("ancestral",), (0,), (), options))


def test_adaptive_solvers_have_a_column_of_that_name():
    cells = [evaluate.Cell("rk45", 0, 0, 8, 150.0, 2.0, 1.0, None), evaluate.Cell("ddim", 5, 0, 8, 5.0, 3.0, 1.0, None)]
    assert evaluate.markdown(evaluate.summary(cells), None).startswith("| | adaptive | 5 NFE |")


def test_features(rng):
    images = rng.uniform(-1, 1, (70, 32, 32, 1)).astype(np.float32)
    features = metrics.features("mnist")
    values = features(images)
    assert values.shape == (70, 64) and values.dtype == np.float32
    # A batch of another size rounds otherwise.
    np.testing.assert_allclose(values[:3], metrics.judge("mnist").features(images[:3]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="are of images"):
        features(images[:, :28])
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        metrics.features("mnst")


def test_judge_round_trip(rng, tmp_path):
    net = metrics.judge("mnist")
    net.save(tmp_path / "judge.npz")
    images = rng.uniform(-1, 1, (4, 32, 32, 1)).astype(np.float32)
    np.testing.assert_array_equal(metrics.ImageClassifier.open(tmp_path / "judge.npz")(images), net(images))


def test_a_sampler_is_prepared_once(digits_model):
    """What ``generate`` returns, from the prepared sampler; frozen, so that it can be passed around."""
    sampler = prepare(digits_model, "ancestral", nfe=6)
    (_, first, _), (start, second, counts) = sampler.batches(3, range(20), 16)
    assert (start, len(first[0]), len(second[0]), list(counts)) == (16, 16, 4, [6] * 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.table = None


def test_a_network_on_the_digits_is_compared_to_those_that_ship(capsys):
    fields = {"data.name": "digits", "data.holdout": 0.1, "model.image_size": 8, "evaluate.num_samples": 100}
    config = build.override(build.load_config("mnist"), fields)
    model = SimpleNamespace(data=None, image_shape=(8, 8, 1), config=config.copy_and_resolve_references())
    reference = compare._Reference(model, config, metrics.features("pixels"), Console())
    assert reference.law.mean.shape == (64,) and 0.5 < reference.real[0] < 5
    assert "1,617 images" in capsys.readouterr().out  # of 1,797, without the held-out tenth

    config.evaluate.num_samples = 200  # 180 are held out
    assert compare._Reference(model, config, metrics.features("pixels"), Console()).real is None
    assert "too few" in capsys.readouterr().out

    model.image_shape = (16, 16, 1)
    with pytest.raises(ValueError, match=r"config.data.name and config.data.path"):
        compare._Reference(model, config, metrics.features("pixels"), Console())
