"""What is not finite leaves nowhere unsaid, and enters nowhere: every exit and every entrance."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import psld_jax as pj
from psld_jax import build, modes
from psld_jax._runtime import checks
from psld_jax.evaluation import evaluate
from psld_jax.sampling.files import write_samples
from psld_jax.sampling.generate import prepare


def _second_is_nan(z, t):
    return jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), z)


def _all_nan(z, t):
    return jax.tree.map(lambda leaf: leaf * jnp.nan, z)


@pytest.fixture(scope="module")
def broken(digits_model):
    """A model with the diffusion and data of the digits, one of whose samples is NaN."""
    return dataclasses.replace(digits_model, eps_fn=jax.tree_util.Partial(_second_is_nan))


# Public functions that return samples, codes or measures of a model, with arguments for two images.
EXITS = {
    "generate": lambda m, x: pj.generate(m, "ddim", nfe=3, n=2),
    "generate_states": lambda m, x: pj.generate_states(m, "ROBA", nfe=3, n=2),
    "log_likelihood": lambda m, x: pj.log_likelihood(m, x, draws=1, rtol=1e-2, atol=1e-2, max_steps=64),
    "encode": lambda m, x: pj.encode(m, x, rtol=1e-2, atol=1e-2),
    "decode": lambda m, x: pj.decode(m, m.sde.state(x, x), rtol=1e-2, atol=1e-2),
    "gits_grid": lambda m, x: pj.gits_grid(m, 3, n=2),
    "learn": lambda m, x: pj.learn(m, 3, pj.Setting("ddim"), num_samples=4, batch_size=4, iterations=1, target=x),
    "sample_posterior": lambda m, x: pj.sample_posterior(m, pj.operators.mask(np.eye(8)), x, particles=2, nfe=3),
    "tune": lambda m, x: pj.tune(m, [4], ["ddim"], num_samples=8, candidates=1, gradient_steps=0, target=x),
}
#: Public functions that take a model, and return no numbers of it.
NO_EXIT = {"fit_projection"}


def test_every_public_function_of_a_model_is_here():
    """A new one must be added to ``EXITS``, or said to have no numbers of its own."""
    functions = {name: value for name, value in vars(pj).items() if inspect.isfunction(value) and name in pj.__all__}
    of_a_model = {name for name, fn in functions.items() if "model" in inspect.signature(fn).parameters}
    assert of_a_model == set(EXITS) | NO_EXIT


@pytest.mark.parametrize("name", EXITS)
def test_no_exit_lets_it_pass(name, broken):
    broken = dataclasses.replace(broken, eps_fn=jax.tree_util.Partial(_all_nan))
    with pytest.raises(ValueError, match=r"not finite|cannot meet"):
        EXITS[name](broken, np.asarray(broken.data[:2]))


def test_the_message_names_sampler_budget_and_how_many(broken):
    with pytest.raises(pj.NotFinite, match=r"samples of ddim, .*3 evaluations: 1 of 3 are not finite .*check=False"):
        pj.generate(broken, "ddim", nfe=3, n=3)
    images = pj.generate(broken, "ddim", nfe=3, n=3, check=False)
    assert [bool(np.isfinite(image).all()) for image in images] == [True, False, True]


def test_a_measurement_that_pulls_too_hard_is_named():
    """A network without signal at t = 1 has a steep x_0; more evaluations only give its gradient more steps to grow."""
    model = pj.from_function(lambda x, t: 0.5 * x, pj.sde.VPSDE(), (4, 4, 1), predicts="eps")
    condition = {"operator": pj.operators.downsample(2), "measurement": np.zeros((2, 2, 2, 1), np.float32)}
    with pytest.raises(pj.NotFinite, match=r"2 of 2 are not finite .* smaller weight.*sigma_interval.*'conjugate'"):
        pj.generate(model, "ddim", nfe=80, n=2, **condition)
    assert np.isfinite(pj.generate(model, "ddim", nfe=80, n=2, weight=1e-3, **condition)).all()


def test_no_file_is_written_of_it(broken, tmp_path):
    for form in ("png", "npz"):
        with pytest.raises(pj.NotFinite, match="1 of 3"):
            write_samples(prepare(broken, "ddim", nfe=3), tmp_path / form, 3, form=form)
        assert {file.name for file in (tmp_path / form).iterdir()} == {"about.json"}


def test_a_cell_that_is_not_finite_says_so_and_is_never_the_best(digits_model):
    def cell(sampler, distance, bad=0):
        return evaluate.Cell(sampler, 5, 0, 8, 5.0, distance, 1.0, None, {}, bad)

    rows = evaluate.summary([cell("good", 2.0), cell("bad", float("inf"), 3)])
    assert [(row["distance"], row["not_finite"]) for row in rows] == [(2.0, 0), (None, 3)]
    text = evaluate.markdown(rows, None)
    assert "**2 ± 0**" in text and "| `bad` | not finite (3 of 8) |" in text and "inf" not in text
    assert "inf" not in evaluate.markdown(rows[1:], None) and "**" not in evaluate.markdown(rows[1:], None)
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_a_network_that_overflows_says_so():
    model = pj.load("mnist")
    params = jax.tree.map(np.asarray, model.eps_fn.state)
    huge = jax.tree.map(lambda leaf: np.full_like(leaf, 1e30), params)
    bad = dataclasses.replace(model, eps_fn=dataclasses.replace(model.eps_fn, state=huge))
    with pytest.raises(pj.NotFinite, match="1 of 1 are not finite"):
        pj.generate(bad, "euler", nfe=3, n=1)


def test_weights_that_are_not_finite_make_no_network():
    model = pj.load("mnist")
    stored, params = build.model.open_network("mnist", "")
    leaf_path, tree = [], params
    while isinstance(tree, dict):
        leaf_path.append(next(iter(tree)))
        parent, tree = tree, tree[leaf_path[-1]]
    parent[leaf_path[-1]] = np.where(np.arange(tree.size).reshape(tree.shape) == 0, np.nan, tree)
    with pytest.raises(ValueError, match=rf"weights '{'/'.join(map(str, leaf_path))}': 1 of \d+ values are not finite"):
        build.network_model(stored, params)
    assert model.image_shape == (32, 32, 1)


ARRAYS = {
    "known": lambda m, x: pj.generate(m, "ddim", nfe=3, n=2, known=x, mask=np.ones((8, 8))),
    "measurement": lambda m, x: pj.generate(
        m, "ddim", nfe=3, n=2, operator=pj.operators.downsample(2), measurement=x[:, ::2, ::2]
    ),
    "log_likelihood": lambda m, x: pj.log_likelihood(m, x),
    "encode": lambda m, x: pj.encode(m, x),
    "target": lambda m, x: pj.tune(m, [4], ["ddim"], target=x),
    "statistics": lambda m, x: pj.metrics.statistics(x),
    "normalise": lambda m, x: pj.normalise(x),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ARRAYS)
def test_no_entrance_lets_it_pass(name, value, digits_model):
    images = np.array(digits_model.data[:2])
    images[1, 4, 4] = value
    with pytest.raises(ValueError, match=r"not finite|NaN or infinite"):
        ARRAYS[name](digits_model, images)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, jnp.bfloat16])
def test_counts_are_of_entries(rng, dtype):
    a, b = (np.asarray(rng.standard_normal((5, 3, 2)), dtype) for _ in range(2))
    assert checks.count_not_finite([a, b]) == 0
    a[1, 0, 0], a[1, 2, 1], b[3, 0, 0] = np.nan, np.inf, -np.inf
    b[1, 0, 0] = np.nan
    assert checks.count_not_finite([a, b]) == 2
    big = np.full((2, 1000), np.finfo(np.float32).max)  # whose sum is beyond float32, and finite
    assert checks.count_not_finite([big]) == 0


def test_the_command_line_ends_with_one_line(digits_model, tmp_path, monkeypatch):
    monkeypatch.setattr(digits_model.eps_fn.__class__, "__call__", lambda self, z, t: _all_nan(z, t))
    config = build.override(build.load_config("digits"), {"sampling.num_samples": 4, "sampler.nfe": 3})
    pj.clear_programs()
    for name, extra in {"sample": {}, "files": {"sampling.save": "png"}}.items():
        with pytest.raises(ValueError, match=r"4 of 4 are not finite"):
            modes.run("sample", build.override(config, extra), tmp_path / name, Console(quiet=True))
    assert not list(tmp_path.rglob("*.png"))
    pj.clear_programs()
