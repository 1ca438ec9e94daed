"""The product as a user meets it: models by name, generate, and the command line."""

import configparser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

import psld_jax as pj
from psld_jax import build, modes
from psld_jax.modes import sample as sample_mode
from psld_jax.modes._common import prepared
from psld_jax.modes.dry_run import dry_run
from psld_jax.modes.listing import list_choices

ROOT = Path(__file__).parent.parent
SMALL = {
    "sampling.num_samples": 9,
    "sampler.nfe": 10,
    "bench.nfe": (13, 25),
    "bench.num_samples": 64,
    "data.num_points": 100,
    "bench.samplers": ("ddim", "EM", "reduced_oba", "naive_baoab"),
}


def run(mode, workdir, **overrides):
    config = build.override(build.load_config("digits"), {**SMALL, **overrides})
    with jax.enable_x64(False):
        modes.run(mode, config, workdir, Console(quiet=True))
    return json.loads((workdir / "report.json").read_text())


def test_sample_leaves_pictures_and_a_report(tmp_path):
    report = run("sample", tmp_path)["sample"]
    assert report["nfe_mean"] == 10 and report["num_samples"] == 9 and report["sampler"] == "auto"
    assert report["setting"]["sampler"] in pj.integrators.available()
    assert report["config"]["sampler"]["nfe"] == 10 and report["versions"]["jax"] == jax.__version__
    picture = plt.imread(tmp_path / "samples.png")
    assert picture.std() > 0.1
    assert {p.name for p in tmp_path.iterdir()} == {"samples.png", "trajectories.png", "report.json", "report.html"}


@pytest.mark.slow
def test_bench_compares_and_keeps_the_other_mode_s_report(tmp_path):
    run("sample", tmp_path)
    report = run("bench", tmp_path)
    assert set(report) == {"sample", "bench"}
    rows = {(row["sampler"], row["budget"]): row for row in report["bench"]["rows"]}
    assert set(rows) == {
        (name, b) for name in ("ddim", "euler_maruyama", "reduced_oba", "naive_baoab") for b in (13, 25)
    }
    for (name, budget), row in rows.items():
        assert row["nfe"] == budget  # 12 k + 1: nobody's budget is cut
        assert row["seconds"] > 0 and row["frechet"] > 0
        assert (row["rmse"] is None) == pj.integrators.get(name).stochastic
    assert rows["ddim", 25]["rmse"] < rows["ddim", 13]["rmse"]
    assert rows["euler_maruyama", 25]["frechet"] < rows["euler_maruyama", 13]["frechet"]
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert lines[0] == "sampler,grid,budget,nfe,rmse,frechet,seconds,hyper,t_start" and len(lines) == 9
    assert all(row["t_start"] == 1 for row in rows.values())
    assert (tmp_path / "error_vs_nfe.png").stat().st_size > 10_000


def test_bench_s_numbers_are_those_of_the_library(tmp_path):
    rows = run("bench", tmp_path, **{"bench.samplers": ("heun",), "bench.nfe": (13,)})["bench"]["rows"]
    config = build.override(build.load_config("digits"), SMALL)
    model = build.build_model(config)
    with jax.enable_x64(False):
        images = pj.generate_states(model, "heun", nfe=13, n=64, seed=0)[0][0]
    law = pj.metrics.mixture_statistics(model.data, config.model.bandwidth)
    distance = pj.metrics.frechet_distance(*pj.metrics.statistics(images), *law)
    # The same samples, denoised in another program: a few float32 roundings.
    np.testing.assert_allclose(rows[0]["frechet"], distance, rtol=1e-3)
    late = {"bench.samplers": ("heun",), "bench.nfe": (13,), "sampler.t_start": 0.5}
    (row,) = run("bench", tmp_path / "late", **late)["bench"]["rows"]
    assert row["t_start"] == 0.5 and row["frechet"] != rows[0]["frechet"]


@pytest.mark.slow
def test_evaluate_compares_by_many_samples(tmp_path):
    """A table, a plot, a picture of each cell; the second run draws nothing, and shows what somebody else published."""
    few = {"evaluate.samplers": ("auto", "RVV", "rk23"), "evaluate.nfe": (6, 13), "evaluate.num_samples": 60}
    few |= {"evaluate.num_kept": 40}
    few |= {"evaluate.seeds": (0, 1), "evaluate.num_reference": 500, "sampling.batch_size": 60, "sampler.rtol": 1e-2}
    rows = run("evaluate", tmp_path, **few)["evaluate"]["rows"]
    assert [(row["sampler"], row["budget"]) for row in rows] == [
        ("rk23", 0),
        *(("auto", 6), ("RVV", 6), ("auto", 13), ("RVV", 13)),
    ]
    assert all(row["nfe"] <= (row["budget"] or 500) for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in ("precision", "recall"))
    assert rows[3]["kid"] < rows[2]["kid"]  # auto at 13 NFE against RVV at 6
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        *("rk23_0.png", "auto_6.png", "auto_13.png", "RVV_6.png", "RVV_13.png")
    }
    assert {p.name for p in tmp_path.glob("evaluation.*")} == {
        f"evaluation.{e}" for e in ("md", "csv", "json", "png", "jsonl")
    }
    before = (tmp_path / "evaluation.jsonl").read_bytes()
    again = run("evaluate", tmp_path, **few, **{"evaluate.published": (("RVV", 13, 14.19),)})["evaluate"]["rows"]
    assert again == rows and (tmp_path / "evaluation.jsonl").read_bytes() == before
    assert "[14.19] |" in (tmp_path / "evaluation.md").read_text()


@pytest.mark.slow
def test_conditions_from_the_command_line(tmp_path):
    """Known halves and a measurement, with pictures of what is seen, the samples and the truth."""
    small = {"sampling.num_samples": 9, "sampler.nfe": 8}
    for name, steer in (
        ("mask", {"steer.mask": "left"}),
        ("operator", {"steer.operator": "downsample", "steer.factor": 2}),
    ):
        report = run("sample", tmp_path / name, **small, **steer)["sample"]
        assert report["rmse_to_truth"] < 0.8 and "frechet" not in report
        assert plt.imread(tmp_path / name / "restored.png").std() > 0.1
    for steer, message in (
        ({"steer.mask": "lift"}, "Did you mean 'left'"),
        ({"steer.operator": "blurr"}, "Did you mean 'blur'"),
        ({"steer.labels": (1,)}, "takes no labels"),
        ({"steer.classifier": "mnist_clf"}, "config.steer.labels"),
    ):
        with pytest.raises(ValueError, match=message):
            run("sample", tmp_path / "bad", **small, **steer)
    assert not (tmp_path / "bad").exists()


def test_a_measurement_from_the_command_line_says_where_to_start(few_digits):
    """``steer.t_start`` and ``sampler.t_start`` have one name in Python."""
    few = {"sampling.num_samples": 2, "sampler.name": "ddim", "sampler.nfe": 6, "sampler.t_start": 0.5}
    for start in (1.0, 0.4):
        measured = {"steer.operator": "downsample", "steer.t_start": start}
        config = build.override(few_digits.config, few | measured)
        conditions, _, _ = build.steer_options(config, few_digits)
        sampler = prepared(few_digits, config, **conditions)
        assert sampler.table.times[0] == start and sampler.table.P is None and sampler.nfe == 6


def test_an_adaptive_solver_goes_without_the_start_that_has_no_effect(few_digits):
    config = build.override(few_digits.config, {"sampler.name": "rk45", "sampler.t_start": 0.5})
    assert prepared(few_digits, config).table is None
    with pytest.raises(ValueError, match="t_start=0.5 is for samplers with a grid"):
        prepared(few_digits, config, t_start=0.5)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"sampler.name": "heun", "sampler.sigmas": (20.0, 5.0, 1.0, 0.1)}, [6, 6, 6]),
        ({"sampler.name": "ddim", "sampler.timesteps": (0.9, 0.3, 0.01)}, [2, 2]),
        ({"sampler.name": "ddim", "sampler.nfe": 1, "sampler.denoise": False}, [1]),
    ],
    ids=["sigmas", "timesteps", "one evaluation"],
)
def test_trajectories_are_those_of_the_run_and_of_what_its_budget_allows(
    few_digits, tmp_path, monkeypatch, fields, shown
):
    tables = []

    def remember(eps_fn, table, z_T, key, **options):
        tables.append(table)
        return jax.tree.map(lambda leaf: np.zeros((table.num_steps + 1, *leaf.shape)), z_T)

    monkeypatch.setattr(sample_mode, "sample", remember)
    monkeypatch.setattr(sample_mode.plots, "save_trajectories", lambda *arguments: None)
    config = build.override(few_digits.config, fields)
    sampler = prepared(few_digits, config)
    sample_mode._trajectories(few_digits, config, tmp_path, sampler)
    assert [table.nfe for table in tables] == shown
    if "sampler.nfe" not in fields:
        np.testing.assert_array_equal(tables[0].tau, sampler.table.tau[:-1])


def test_the_list_has_all_that_can_be_named():
    printed = io.StringIO()
    list_choices(Console(file=printed, width=300, markup=False))
    for name in (*pj.integrators.available(), "ROBA", "rk45", "paper_table", "mnist_clf", "fashion_mnist"):
        assert name in printed.getvalue()
    assert set(modes.SUMMARIES) == {*modes.MODES, "list"}


@pytest.mark.slow
def test_the_list_needs_no_configuration_and_a_run_says_that_it_does():
    listed, without = command("--mode=list"), command("--mode=sample")
    assert listed.returncode == 0 and "ROBA" in listed.stdout
    assert without.returncode == 1 and "--config and --workdir must be given" in without.stderr


@pytest.mark.slow
def test_a_dry_run_tells_the_cost_and_leaves_nothing(tmp_path, monkeypatch):
    """Evaluations, and the memory of the compiled programs, which grows with the batch."""
    monkeypatch.chdir(tmp_path)

    def told(mode, **overrides):
        printed = io.StringIO()
        name = "default" if mode == "train" else "digits"
        config = build.override(build.load_config(name), overrides)
        dry_run(mode, config, Console(file=printed, width=200))
        return printed.getvalue()

    small = {"sampler.name": "ROBA", "sampler.nfe": 11}
    texts = [told("sample", **small, **{"sampling.num_samples": n}) for n in (64, 512)]
    assert "config.sampler.nfe=11\n" in texts[0] and "ROBA" in texts[0]
    assert "11 evaluations; 64 samples, 64 at a time" in texts[0]
    scratch = [float(re.findall(r"([\d,.]+) MiB of scratch", text)[0].replace(",", "")) for text in texts]
    assert 0 < scratch[0] < scratch[1]
    sweep = {"evaluate.samplers": ("ROBA", "ddim"), "evaluate.nfe": (5, 10), "evaluate.num_samples": 100}
    assert "12 cells (4 samplers and budgets, 3 seeds) of 100 samples: 9,000 evaluations" in told("evaluate", **sweep)
    network = {"model.name": "ncsnpp", "model.in_ch": 2, "model.out_ch": 2, "model.image_size": 8, "model.nf": 8}
    network |= {"model.ch_mult": (1,), "model.num_res_blocks": 1, "model.attn_resolutions": (), "data.holdout": 0.1}
    trained = told("train", **network, **{"train.batch_size": 16, "train.steps": 50})
    assert "50 steps of 16 images" in trained and "a training step" in trained
    with pytest.raises(ValueError, match="train.batch_size=0"):
        told("train", **network, **{"train.batch_size": 0})
    assert not list(tmp_path.iterdir())


def test_every_package_is_installed():
    """An editable install finds a package that setup.cfg has forgotten; a wheel does not."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "psld_jax").rglob("__init__.py")}
    assert listed == found | {"psld_jax.configs", "psld_jax.convert"}


@pytest.mark.slow
def test_likelihood_and_interpolation(tmp_path):
    few = {"likelihood.num_images": 6, "likelihood.draws": 2, "likelihood.batch_size": 4, "likelihood.rtol": 1e-3}
    report = run("likelihood", tmp_path, **few)["likelihood"]
    assert np.load(tmp_path / "likelihood.npz")["nats"].shape == (6,)
    # Images that a mixture of 100 was made of, far apart: log N(0; 0, 0.05^2) - log(100) / 64 = 2.005 a dimension.
    assert abs(report["nats_per_dim"] - 2.005) < 5 * report["standard_error_of_draws"] < 0.1
    assert "bits_per_dim" not in report
    few = {"interpolate.num_paths": 2, "interpolate.num_steps": 3, "interpolate.rtol": 1e-3}
    assert run("interpolate", tmp_path, **few)["interpolate"]["reconstruction_rmse"] < 0.05
    assert plt.imread(tmp_path / "interpolation.png").std() > 0.1


@pytest.mark.slow
def test_what_was_tuned_is_what_auto_takes(tmp_path):
    few = {"tune.num_samples": 16, "tune.candidates": 2, "tune.gradient_steps": 1, "tune.num_targets": 300}
    report = run("tune", tmp_path, **few, **{"tune.nfe": (6, 12), "tune.samplers": ("ancestral", "lambda_ddim_i")})
    best = {row["nfe"]: row["setting"] for row in report["tune"]["best"]}
    assert set(best) == {6, 12}
    assert {p.name for p in tmp_path.iterdir()} == {
        "samplers.json",
        "tuning.jsonl",
        "tuning.png",
        "tuned_numbers.png",
        "report.json",
        "report.html",
    }
    report = run("sample", tmp_path, **{"sampler.tuned": str(tmp_path / "samplers.json"), "sampler.nfe": 11})
    assert report["sample"]["setting"] == best[12] and report["sample"]["nfe_mean"] == 11


@pytest.mark.slow
def test_adaptive_samplers_and_vp_go_through_the_same_door(tmp_path):
    report = run(
        "sample", tmp_path, **{"sampler.name": "rk45", "sde.name": "vpsde", "sde.beta_min": 0.1, "sde.beta_max": 20.0}
    )
    assert report["sample"]["nfe_mean"] > 20 and report["sample"]["frechet"] < 20


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "psld_jax.main", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_the_command_itself(tmp_path):
    done = command(
        "--config=configs/digits.py",
        "--mode=sample",
        f"--workdir={tmp_path / 'new' / 'folder'}",
        "--config.sampler.name=ddim",
        "--config.sampler.nfe=5",
        "--config.sampling.num_samples=4",
        "--config.data.num_points=50",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert report["sample"]["nfe_mean"] == 5 and report["sample"]["sampler"] == "ddim"


def test_bad_input_ends_with_one_line_and_leaves_nothing(tmp_path):
    done = command("--config=configs/digits.py", f"--workdir={tmp_path}", "--config.sampler.nmae=ddim")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "unknown config field 'sampler.nmae'. Did you mean 'sampler.name'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sampler.name": "reduced_obaa"}, "Did you mean 'reduced_oba'"),
        ({"sampler.nfe": 1}, "nfe=1 is too small"),
        ({"sampler.tuned": "nowhere.json"}, "nowhere.json is no file of tuned samplers"),
        ({"sampler.grid": "cubic"}, "unknown grid 'cubic'"),
        ({"sampler.t_end": -0.1}, "t_end=-0.1"),
        ({"sampler.t_end": 1.5}, "t_end=1.5"),
        ({"sampler.name": "ROBA", "sampler.hyper.lam_s": -1.0}, "lam_s=-1.0"),
        ({"sampler.name": "ROBA", "sampler.hyper.noise_scaling": "steps"}, "step, mean_time"),
        ({"sde.gamma": 4.01}, "gamma = nu = 4.01"),
        ({"sde.beta_min": -8.0}, "beta_min=-8.0"),
        ({"sde.name": "psdl"}, "Did you mean 'psld'"),
        ({"sampling.num_samples": 0}, "n=0"),
        ({"data.num_points": 2000}, "num_points=2000"),
        ({"model.bandwidth": 0.0}, "bandwidth=0.0"),
    ],
)
def test_bad_configurations_are_named_before_anything_is_left(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run("sample", tmp_path, **overrides)
    assert list(tmp_path.iterdir()) == []


def test_unknown_fields_and_wrong_types_are_named_in_python_too():
    config = build.load_config("digits")
    with pytest.raises(ValueError, match="unknown config field 'sde.gama'. Did you mean 'sde.gamma'"):
        build.override(config, {"sde.gama": 0.1})
    with pytest.raises(ValueError, match="sampler.nfe='fifty' has the wrong type"):
        build.override(config, {"sampler.nfe": "fifty"})
    with pytest.raises(ValueError, match="unknown model 'digit'. Did you mean 'digits'"):
        pj.load("digit")
    with pytest.raises(ValueError, match="unknown config 'digitz'"):
        build.load_config("digitz")
    with pytest.raises(ValueError, match="has no hyper-parameters, got 'lam'"):
        pj.integrators.get("euler", lam=1.0)
    with pytest.raises(ValueError, match="Did you mean 'lam_s'"):
        pj.integrators.get("reduced_oba", lams=1.0)
    with pytest.raises(ValueError, match="B='big' must be a finite number"):
        pj.integrators.get("conjugate", B="big")
    with pytest.raises(ValueError, match="lam=nan"):
        pj.integrators.get("lambda_ddim_ii", lam=float("nan"))


@pytest.mark.slow
def test_generate_is_deterministic_clipped_and_keeps_its_promises(digits_model):
    with jax.enable_x64(False):
        images = pj.generate(digits_model, sampler="reduced_oba", nfe=50, n=6, seed=0, lam_s=0.5)
        again = pj.generate(digits_model, sampler="ROBA", nfe=50, n=3, seed=0, lam_s=0.5)
        other = pj.generate(digits_model, sampler="reduced_oba", nfe=50, n=3, seed=1, lam_s=0.5)
    assert images.shape == (6, 8, 8, 1) and images.dtype == np.float32
    assert images.min() >= -1 and images.max() <= 1
    np.testing.assert_array_equal(images[:3], again)
    assert np.abs(again - other).max() > 0.1
    with pytest.raises(ValueError, match="unknown sampler 'roba2'"):
        pj.generate(digits_model, "roba2")
    with pytest.raises(ValueError, match="no hyper-parameters, got"):
        pj.generate(digits_model, "rk45", lam=1.0)


def test_the_embedded_digits_are_the_uci_digits():
    images, labels = pj.assets.digits()
    assert images.shape == (1797, 8, 8, 1) and images.min() == -1 and images.max() == 1
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
