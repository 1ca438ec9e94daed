"""The suite of benchmarks: its reports and their comparison; the baseline in PyTorch computes what JAX does."""

import copy
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from models_support import run as run_network
from seeds import generator

import psld_jax as pj
from benchmarks import __main__ as suite
from benchmarks import compare, inverse, inverse_mnist, measure, networks, report
from psld_jax.sampling.generate import prepare


@pytest.fixture(autouse=True)
def as_users_run_it():
    """In float32, and with the options of JAX afterwards as they were before."""
    names = ("jax_enable_compilation_cache", "jax_disable_most_optimizations")
    before = {name: jax.config.values[name] for name in names}
    with jax.enable_x64(False):
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A report of three groups."""
    path = tmp_path_factory.mktemp("suite") / "report.json"
    with jax.enable_x64(False):
        suite.main(["--output", str(path), "--small", "--rounds", "2", "--only", "samplers", "recompile", "pipeline"])
    return path


def test_report_holds_the_machine_and_measures_that_make_sense(measured):
    content = json.loads(measured.read_text())
    assert content["format"] == report.FORMAT and list(content["groups"]) == ["samplers", "recompile", "pipeline"]
    chosen = {"configs": ["mnist"], "batches": [2], "dtype": "float32", "rounds": 2, "small": True, "eager": False}
    assert content["options"] == chosen
    environment = content["environment"]
    assert environment["versions"]["jax"] == jax.__version__ and environment["cpus"] >= 1
    assert {"date", "commit", "variables", "processor", "devices", "load"} <= set(environment)
    samplers = content["groups"]["samplers"]["rows"]
    assert [row["case"]["sampler"] for row in samplers] == ["reduced_oba", "predictor_corrector"]
    for row in samplers:
        assert row["case"]["nfe"] == 6
        for name in ("seconds", "network_seconds", "overhead"):
            assert 0 < row[name]["q1"] <= row[name]["median"] <= row[name]["q3"]
    first, *others = content["groups"]["recompile"]["rows"]
    assert first["compilations"] > 0 and all(row["compilations"] == 0 for row in others)
    assert min(row["resident_mebibytes"] for row in [first, *others]) > 50
    sources = [row["case"]["source"] for row in content["groups"]["pipeline"]["rows"]]
    assert sources == ["array", "PNG files", "PNG files"]


def test_comparison_shows_ratios_overlap_and_what_is_missing(measured, tmp_path, capsys):
    other = copy.deepcopy(json.loads(measured.read_text()))
    first, _ = other["groups"]["samplers"]["rows"]
    first["overhead"] = {name: 2 * first["overhead"]["q3"] for name in ("q1", "median", "q3")}
    other["groups"]["recompile"]["rows"][0]["case"]["nfe"] = 99
    del other["groups"]["pipeline"]
    other["environment"]["cpus"] = 1234
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    compare.main([str(measured), str(path)])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "overhead" in line]
    assert lines[0].split("│")[-2].strip() == "no" and lines[1].split("│")[-2].strip() == "yes"
    assert lines[1].split("│")[-3].strip() == "1.000"
    assert "B 1234" in printed and "nfe=99 is in B only" in printed and "pipeline is in A only" in printed


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"groups": {}}', '{"groups": {}, "environment": {}, "format": 0}', None]
)
def test_comparison_refuses_other_files_in_one_line(measured, tmp_path, capsys, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(measured), str(path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(f"error: {path}") and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "netwrok"], "Did you mean 'network'?"),
        (["--configs", "cifar"], "unknown config 'cifar'"),
        (["--rounds", "0"], "rounds=0 must be an integer >= 1"),
        (["--batch", "0"], "batch 0=0 must be an integer >= 1"),
        (["--batch", "many"], "invalid int value: 'many'"),
        (["--output", "nowhere/report.json"], "there is no directory nowhere"),
    ],
)
def test_bad_arguments_end_with_one_line_before_anything_runs(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        suite.main(["--output", str(tmp_path / "report.json"), *arguments])
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "report.json").exists()


ROOT = Path(__file__).parent.parent
SCRIPTS = [path.stem for path in sorted(ROOT.glob("benchmarks/*.py")) if '"__main__"' in path.read_text()]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "peak"])  # which begins with PyTorch
def test_every_script_tells_its_usage_and_does_nothing_else(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    told = f"{ended.value.code} {capsys.readouterr().out}"
    assert "python -m benchmarks" in told or f"python benchmarks/{name}.py" in told
    assert not list(tmp_path.iterdir())


def test_operations_are_counted_through_loops_and_not_for_inserted_zeros():
    """A 3x3 convolution, 4 to 8 channels at 6 x 6: 6 6 9 4 8 products, with zeros between pixels or without."""

    def convolution(x, w, **options):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"), **{"padding": "SAME"} | options
        )

    x, w, m = np.ones((1, 6, 6, 4)), np.ones((3, 3, 4, 8)), np.ones((5, 7))
    products = 6 * 6 * 9 * 4 * 8
    assert measure.flops(jax.make_jaxpr(convolution)(x, w).jaxpr) == 2 * products
    up = jax.make_jaxpr(lambda x, w: convolution(x, w, padding=((2, 1), (2, 1)), lhs_dilation=(2, 2)))(x, w)
    assert measure.flops(up.jaxpr) == 2 * products
    loop = jax.make_jaxpr(lambda a: jax.lax.map(jax.jit(lambda v: v @ m), a))(np.ones((3, 5)))
    assert measure.flops(loop.jaxpr) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("name", ["cifar10", "cifar10_sota"])
def test_network_in_pytorch_is_that_of_flax(rng, name):
    """Between them these use all that published networks do: attention, both embeddings and samplings, the pyramid."""
    torch = pytest.importorskip("torch")
    from benchmarks.torch_ncsnpp import from_flax

    net = networks.random_network(networks.load_config(name, small=True))
    z = rng.standard_normal((2, 16, 16, 6), np.float32)
    t = np.array([0.02, 0.9], np.float32)
    with torch.inference_mode():
        result = from_flax(net).eval()(torch.from_numpy(z).permute(0, 3, 1, 2), torch.from_numpy(t))
    expected = np.asarray(run_network(net, z, t))
    # Two float32 implementations of some ten layers: a few roundings of numbers up to 4.
    np.testing.assert_allclose(result.permute(0, 2, 3, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.EDM_CONFIGS)
@pytest.mark.parametrize("architecture", ["song", "dhariwal"])
def test_networks_of_edm_in_pytorch_are_those_of_flax(name, architecture):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_edm import from_flax

    config = networks.load_config(name, small=True)
    options = {"model.edm.architecture": architecture, "model.edm.channels_per_head": 8}
    net = networks.random_network(networks.build.override(config, options))
    x = generator("test_networks_of_edm_in_pytorch_are_those_of_flax").standard_normal((2, 16, 16, 3), np.float32)
    sigma = np.array([0.02, 9.0], np.float32)
    with torch.inference_mode():
        result = from_flax(net).eval()(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(sigma))
    # Two float32 implementations of some ten layers: a few roundings of numbers up to 4.
    np.testing.assert_allclose(result.permute(0, 2, 3, 1), run_network(net, x, sigma), atol=1e-4, rtol=0)


def test_training_in_pytorch_is_that_of_jax():
    """Three steps with a rate that moves the weights: losses, gradients and with them Adam and clipping agree."""
    pytest.importorskip("torch")
    from benchmarks import torch_baseline

    config = networks.load_config("cifar10_sota", small=True, dropout=0.0)
    config = torch_baseline.build.override(config, {"train.warmup": 2, "train.lr": 1e-2})
    jax.config.update("jax_disable_most_optimizations", True)
    sides = [torch_baseline.train_step(side, config, 2) for side in ("jax", "eager")]
    for _ in range(4):
        (losses, norm), (torch_losses, torch_norm) = (side() for side in sides)
        np.testing.assert_allclose(torch_losses, losses, rtol=1e-4)
        np.testing.assert_allclose(torch_norm, norm, rtol=1e-3)


def test_network_in_pytorch_refuses_options_that_it_does_not_know():
    pytest.importorskip("torch")
    from benchmarks.torch_ncsnpp import NCSNpp

    config = networks.load_config("cifar10", small=True, progressive="residual")
    with pytest.raises(ValueError, match=r"progressive in \('none',\), not 'residual'"):
        NCSNpp(networks.build.network_options(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_inverse_problems_are_accepted(name):
    """Every method of both tables takes every problem; nothing is drawn."""
    model, module = pj.load(name), {"digits": inverse, "mnist": inverse_mnist}[name]
    problems = module.cases if name == "digits" else module.problems
    for operator, noise_std in problems(model.image_shape).values():
        y = np.zeros(operator(np.zeros((1, *model.image_shape), np.float32)).shape, np.float32)
        for options in module.METHODS.values():
            given = {"operator": operator, "measurement": y, "noise_std": noise_std, "nfe": 5}
            sampler = prepare(model, **options, **given)
            runs_backward = options.get("posterior") != "conjugate" or "null_weight" in options
            assert sampler.evaluations == (5, 5 if runs_backward else 0, 0)


def test_a_problem_has_the_same_measurements_alone(monkeypatch, capsys):
    def ran(*arguments):
        found = {}
        monkeypatch.setattr(inverse, "_run", lambda model, problem, *rest: found.update({problem: rest[2][0]}))
        monkeypatch.setattr(sys, "argv", ["inverse", "--measurements", "2", "--samples", "2", *arguments])
        inverse.main()
        return found

    alone = ran("--only", "half, noise 0.5")
    assert list(alone) == ["half, noise 0.5"]
    np.testing.assert_array_equal(alone["half, noise 0.5"], ran()["half, noise 0.5"])
