"""Samplers against the original's runs with its recorded draws."""

import functools

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax.integrators.baselines import euler_stage

LOADED = {name: golden_data.load(f"sampler_{name}") for name in ("em_sde", "sscs_sde", "bb_ode")}


def runs(*names):
    return [pytest.param(name, run, id=f"{name}-{run['prefix']}") for name in names for run in LOADED[name][0]["runs"]]


def relative(ours, reference):
    return np.abs(np.concatenate([np.asarray(b) for b in ours], axis=1) - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize(("name", "run"), runs("em_sde", "sscs_sde"))
def test_stochastic_samplers_replay_the_original(name, run):
    arrays, p = LOADED[name][1], run["prefix"]
    sde = golden_data.build_sde(run["sde"])
    eps = golden_data.eps_fn(run["eps_fn"], sde)
    grid = pj.grids.get(run["stride_type"])(run["n_discrete_steps_passed"], t_end=run["eval_eps"])
    np.testing.assert_allclose(grid, 1 - arrays[p + "ts"], atol=1e-12)
    varying = run["sde"]["beta_min"] != run["sde"]["beta_max"]
    # SSCS of the original is wrong for a varying beta; the named option reproduces it.
    hyper = {"beta_rule": "original"} if name == "sscs_sde" and varying else {}
    integrator = pj.integrators.get("euler_maruyama" if name == "em_sde" else "sscs", **hyper)
    table = pj.tabulate(integrator, sde, grid, denoise=run["denoise"])
    assert table.nfe == run["score_calls"]
    draws = np.stack([arrays[f"{p}draw_{i:03d}"] for i in range(table.num_draws)])
    noise = golden_data.state(sde, draws, axis=2)
    run_once = functools.partial(
        pj.sample, table=table, z_T=golden_data.state(sde, arrays[p + "init"]), noise=noise, return_trajectory=True
    )
    z, steps = run_once(eps), len(grid) - 1
    before = [np.asarray(leaf[steps]) for leaf in z]
    # 1e-5, unless the run amplifies float32 rounding of the network's output beyond it (nu = 0 does: its states
    # grow to 860 and fall back to 85). Half an ulp, 6e-8, tells by how much; the others reach 5.5e-6, whose last digit
    # depends on how XLA divides sums among threads.
    rounded = run_once(golden_data.eps_fn(run["eps_fn"], sde, ulp=6e-8))
    sensitivity = relative([leaf[steps] for leaf in rounded], np.concatenate(before, axis=1))
    bound = max(1e-5, 2 * sensitivity)
    assert bound < 1.2e-5 or run["sde"].get("nu") == 0.0
    assert relative(before, arrays[p + "states"][steps - 1]) < bound
    if run["denoise"]:
        # The original denoises at a float32 time, t = 1 - float32(1 - t_end).
        time = float(1 - np.float32(1 - run["eval_eps"]))
        stage = euler_stage(sde, time, run["eval_eps"], stochastic=True)
        out = eps(sde.state(*map(jnp.asarray, before)), time)
        after = [
            sum(stage.A[i, j] * before[j] + stage.B[0][i, j] * np.asarray(out[j]) for j in range(sde.num_blocks))
            for i in range(sde.num_blocks)
        ]
        assert relative(after, arrays[p + "final"]) < bound
        # The exact time differs by up to 2e-6 of 1e-3; only the run above turns that into more than 1e-5.
        assert relative([leaf[-1] for leaf in z], arrays[p + "final"]) < bound


def test_sscs_is_right_for_a_varying_beta_by_default():
    (_, run) = next(
        r.values for r in runs("sscs_sde") if r.values[1]["sde"]["beta_min"] != r.values[1]["sde"]["beta_max"]
    )
    sde = golden_data.build_sde(run["sde"])
    stages = pj.integrators.get("sscs").stages(sde, 0.9, 0.5)
    original = pj.integrators.get("sscs", beta_rule="original").stages(sde, 0.9, 0.5)
    np.testing.assert_array_equal(stages[0].A, original[0].A)
    # Each half-step of the reversed process keeps the stationary law over its own interval; so the trace of the
    # flow is that of the forward transition over the same interval.
    for stage, (t, s) in zip((stages[0], stages[-1]), ((0.9, 0.7), (0.7, 0.5)), strict=True):
        np.testing.assert_allclose(np.trace(stage.A), np.trace(sde.transition(t, s)), rtol=1e-12)
    assert abs(np.trace(original[-1].A) - np.trace(sde.transition(0.7, 0.5))) > 1e-3


def ode_runs():
    """All runs of the adaptive solver; those that need programs of their own (each a second or two) are slow."""
    for case in runs("bb_ode"):
        _, run = case.values
        usual = run["denoise"] and run["sampler_opts"]["solver"] == "RK45" and run["sde"].get("name") != "vpsde"
        small = LOADED["bb_ode"][1][run["prefix"] + "init"].shape == (4, 2, 4, 4)
        yield pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] * (not usual or not small))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), [*ode_runs()])
def test_adaptive_ode_agrees_with_the_original_within_its_tolerance(name, run):
    arrays, p, opts = LOADED[name][1], run["prefix"], run["sampler_opts"]
    sde = golden_data.build_sde(run["sde"])
    eps = golden_data.eps_fn(run["eps_fn"], sde)
    solve = functools.partial(
        pj.sample_ode,
        eps,
        sde,
        golden_data.state(sde, arrays[p + "init"]),
        t_end=run["eval_eps"],
        denoise=run["denoise"],
    )
    # 1e-6: eps rounds its input and output to float32, which a tighter controller would chase.
    exact, _ = solve(solver="dopri8", rtol=1e-6, atol=1e-6, step_control="batch")
    exact = np.concatenate([np.asarray(leaf) for leaf in exact], axis=1)
    # A tolerance bounds the error of one step. How far that takes the solution depends on the problem; the
    # original's own error against the tight solution is the measure, and ours may be at most a few times it.
    theirs = np.abs(arrays[p + "final"] - exact).max()
    tolerance = max(opts["rtol"] * np.abs(exact).max(), opts["atol"])
    assert theirs < 1000 * tolerance
    # Control by sample lets the error of the hardest pixels count for less than the norm over the whole batch
    # does, hence a tolerance ten times tighter for the same solution.
    for control, tighter in (("batch", 1.0), ("sample", 0.1)):
        z, nfe = solve(
            solver=opts["solver"].lower(),
            rtol=tighter * opts["rtol"],
            atol=tighter * opts["atol"],
            step_control=control,
        )
        ours = np.abs(np.concatenate([np.asarray(leaf) for leaf in z], axis=1) - exact).max()
        assert ours < max(10 * theirs, 100 * tolerance)
        if control == "batch":
            # Another step controller (diffrax's) on the same pair of methods: the cost is of the same size.
            assert np.all(np.abs(np.log(np.asarray(nfe) / run["nfe_attribute"])) < np.log(1.6))
