"""Integrators of one's own: what is wrong with one is said on the host, before samples are drawn with it."""

from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax.integrators import Stage, base, register

ONE, TWO, THREE = (np.eye(k) for k in (1, 2, 3))
SDE = pj.sde.PSLD()


@pytest.fixture(autouse=True)
def registry():
    """The integrators that there are, for as long as the test lasts."""
    assert base.available()
    with mock.patch.dict(base._REGISTRY.entries):
        yield


def euler(sde, t, s, *, gain=1.0):
    """Euler's step of the probability-flow ODE."""
    h, n = sde.probability_flow(t)
    return [Stage(A=np.eye(sde.num_blocks) - gain * (t - s) * h, B=((s - t) * n,), tau=t)]


def made(stages):
    register("mine", order=1)(lambda sde, t, s: stages(t))
    return pj.tabulate(pj.integrators.get("mine"), SDE, [1.0, 0.5, 0.1])


WRONG = [
    (lambda t: None, "'mine' must return a list of Stage, and returned None"),
    (lambda t: Stage(TWO, (TWO,), tau=t), "'mine' must return a list of Stage, and returned Stage"),
    (lambda t: [TWO], "'mine' must return a list of Stage"),
    (lambda t: [], "'mine' must evaluate the network at least once per step"),
    (lambda t: [Stage(TWO, R=TWO)], "'mine' must evaluate the network at least once per step"),
    (lambda t: [Stage(THREE, (TWO,), tau=t)], r"B of a stage has shape \(2, 2\), and A \(3, 3\)"),
    (lambda t: [Stage(1.0, (1.0,), tau=t)], r"A of a stage has shape \(\)"),
    (lambda t: [Stage(TWO, (None,), tau=t)], r"B of a stage has shape \(\)"),
    (lambda t: [Stage(TWO, (TWO,), R=1.0, tau=t)], r"R of a stage has shape \(\)"),
    (lambda t: [Stage(TWO, (TWO,), U=ONE, tau=t)], r"U of a stage has shape \(1, 1\)"),
    (lambda t: [Stage(TWO, TWO, tau=t)], "B=an array.* must be a tuple of matrices"),
    (lambda t: [Stage(TWO, (TWO * 1j,), tau=t)], "B of a stage is complex128: compute it with numpy in float64"),
    (lambda t: [Stage(TWO, (jnp.eye(2, dtype="float32"),), tau=t)], "B of a stage is float32"),
    (lambda t: [Stage(TWO, (TWO,), tau="t")], "tau='t' must be a finite number"),
    (lambda t: [Stage(THREE, (THREE,), tau=t)], "a stage has matrices of 3 blocks, and the diffusion has 2"),
    (lambda t: [Stage(TWO, (TWO * (np.nan if t == 0.5 else 1),), tau=t)], "coefficients B of 'mine' .*t=0.5, number 2"),
    (lambda t: [Stage(TWO, (TWO,), tau=t + 0.1)], r"'mine' evaluates the network at t=1.1, outside of \[1e-09, 1\]"),
    (lambda t: [Stage(TWO, (TWO,), tau=0.0)], "'mine' evaluates the network at t=0, outside"),
]


@pytest.mark.parametrize(("stages", "message"), WRONG)
def test_stages_that_make_no_table_are_named(stages, message):
    with pytest.raises(ValueError, match=message) as error:
        made(stages)
    assert "\n" not in str(error.value)


def test_a_method_for_one_number_of_blocks_is_refused_where_it_does_not_fit():
    table = made(lambda t: [Stage(TWO, [TWO], tau=t)])  # B may be a list
    assert table.nfe == 3
    with pytest.raises(ValueError, match="matrices of 2 blocks, and the diffusion has 1"):
        pj.tabulate(pj.integrators.get("mine"), pj.sde.VPSDE(), [1.0, 0.5])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (3, {}, "name=3 of integrator must be a text"),
        (" ", {}, "name=' ' of integrator"),
        ("auto", {}, "called 'auto'"),
        ("roba", {}, "the name 'roba' is that of 'reduced_oba'"),
        ("mine", {"aliases": ("DDIM",)}, "the name 'DDIM' is that of 'ddim'"),
        ("mine", {"order": "1"}, "order='1' of 'mine' must be a count"),
        ("mine", {"order": 0}, "order=0 of 'mine' must be a count"),
    ],
)
def test_names_and_orders_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        register(name, **{"order": 1} | options)(euler)
    assert pj.integrators.get("ROBA").name == "reduced_oba"


def test_a_cell_of_a_notebook_can_run_again():
    def cell(factor, module="__main__"):
        def mine(sde, t, s):
            return euler(sde, t, s, gain=factor)

        mine.__module__ = module
        return mine

    grid = pj.grids.uniform(2)
    for factor in (1.0, 2.0):  # the second is the one that counts, also where another sampler is built on it
        register("mine", order=1, aliases=("MINE",))(cell(factor))
        first = pj.tabulate(pj.integrators.get("mine"), SDE, grid).A[0]
        np.testing.assert_array_equal(first, euler(SDE, grid[0], grid[1], gain=factor)[0].A)
        again = pj.integrators.get("restart", base="mine").stages(SDE, grid[0], grid[1])
        np.testing.assert_array_equal(again[0].A, first)
    for module in ("another", "__main__"):
        other = cell(3.0, module)
        other.__qualname__ = "other"
        with pytest.raises(ValueError, match="'mine' is registered twice"):
            register("mine", order=1)(other)
