"""A sampler as one file: the samples of the library, and clear words for everything else."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

import psld_jax as pj
from psld_jax import build, modes
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.program import Program, save_program

# The same operations, compiled once more: XLA may join them in another way, which rounds float32 differently. JAX 0.12
# differs by up to 4e-6 in 5 evaluations with its full optimisation, and without it not at all.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def file(digits_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "sampler.npz"
    save_program(prepare(digits_model, "ancestral", nfe=4), path, batch_size=5)
    return path


def test_a_program_draws_what_the_library_draws(digits_model, file):
    program = Program(file)
    assert (program.batch_size, program.image_shape, program.about["nfe"]) == (5, [8, 8, 1], 4)
    images = program(12, seed=7)
    expected = pj.generate(digits_model, "ancestral", nfe=4, n=12, seed=7, batch_size=5)
    np.testing.assert_allclose(images, expected, atol=ROUNDING)
    assert np.abs(images - program(12, seed=8)).max() > 0.1
    np.testing.assert_array_equal(program(2.0, seed=np.int64(7)), images[:2])
    for seed in (-1, 0.5, "seven"):
        with pytest.raises(ValueError, match=f"seed={seed!r} must be an integer"):
            program(2, seed=seed)


def test_a_program_by_the_command_line(tmp_path):
    config: ConfigDict = build.load_config("digits")
    config = build.override(config, {"sampler.nfe": 5, "sampling.batch_size": 3, "program.platforms": ("cpu", "tpu")})
    modes.run("program", config, tmp_path, Console(quiet=True))
    program = Program(tmp_path / "sampler.npz")
    assert program.about["platforms"] == ["cpu", "tpu"]
    assert program(3).shape == (3, 8, 8, 1)


def test_a_program_takes_the_solver_that_was_learned_for_its_network(digits_model, file):
    expected = pj.generate(digits_model, nfe=5, n=5, seed=3, batch_size=5)
    np.testing.assert_allclose(Program(file)(5, seed=3, sampler="auto", nfe=5), expected, atol=ROUNDING)
    with pytest.raises(ValueError, match="table=3 must be a table"):
        Program(file)(5, table=3)


def test_a_budget_beyond_a_program_is_refused_before_its_table_is_made(file, monkeypatch):
    program = Program(file)
    monkeypatch.setattr("psld_jax.sampling.program.prepare", lambda *_, **__: pytest.fail("a table is made"))
    with pytest.raises(ValueError, match="nfe=1025 is more than the 1024 evaluations"):
        program(2, sampler="ddim", nfe=1025)


def test_the_command_line_refuses_such_a_budget_first(tmp_path, monkeypatch):
    monkeypatch.setattr("psld_jax.modes.export.prepared", lambda *_: pytest.fail("a table is made"))
    config = build.override(build.load_config("digits"), {"sampler.nfe": 100_000})
    with pytest.raises(ValueError, match="nfe=100000 is more than the 1024 evaluations"):
        modes.run("program", config, tmp_path / "w", Console(quiet=True))


def test_what_is_no_program_is_named(digits_model, file, tmp_path):
    with pytest.raises(ValueError, match="a sampler with a table and without conditions"):
        save_program(prepare(digits_model, "rk45"), tmp_path / "none.npz")
    with pytest.raises(ValueError, match="batch_size=0"):
        save_program(prepare(digits_model, nfe=4), tmp_path / "none.npz", batch_size=0)
    assert not list(tmp_path.iterdir())
    damaged, other = tmp_path / "damaged.npz", tmp_path / "other.npz"
    damaged.write_bytes(file.read_bytes()[:-1000])
    np.savez(other, images=np.zeros(3))
    for path in (damaged, other, tmp_path / "missing.npz"):
        with pytest.raises(ValueError, match="holds no program of a sampler"):
            Program(path)
    save_program(prepare(digits_model, nfe=4), tmp_path / "cuda.npz", platforms=("cuda",))
    with pytest.raises(ValueError, match="is for cuda, not cpu"):
        Program(tmp_path / "cuda.npz")
