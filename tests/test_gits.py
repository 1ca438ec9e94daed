"""Grids by dynamic programming: the cheapest way is found, and samples gain by it."""

import itertools

import numpy as np
import pytest

import psld_jax as pj
from psld_jax.tuning.gits import candidates, cheapest, step_errors


def test_dynamic_programming_finds_what_trying_all_ways_finds(rng):
    size, growth = 8, 1.3
    costs = np.where(np.triu(np.ones((size, size)), 1) == 1, rng.uniform(size=(size, size)), np.inf)

    def price(way):
        return sum(growth**k * costs[a, b] for k, (a, b) in enumerate(itertools.pairwise(way)))

    for n_steps in (1, 2, 4, size - 1):
        ways = [(0, *middle, size - 1) for middle in itertools.combinations(range(1, size - 1), n_steps - 1)]
        assert price(cheapest(costs, n_steps, growth)) == pytest.approx(min(map(price, ways)))
    with pytest.raises(ValueError, match="n_steps=8 is more than the 7 steps"):
        cheapest(costs, 8)
    with pytest.raises(ValueError, match="n_steps=0"):
        cheapest(costs, 0)


@pytest.mark.parametrize("name", ["psld", "edm", "flow"])
def test_candidates_go_from_noise_to_the_end_of_the_path(name):
    sde = pj.sde.get(name)
    times = pj.grids.validate(candidates(sde, 30))
    assert (len(times), times[0], times[-1]) == (31, 1.0, sde.t_end)
    # Equal steps of sigma^(1/7) between the ends.
    assert np.ptp(np.diff(sde.sigma(times[1:-1]) ** (1 / 7))) < 1e-9


@pytest.mark.slow
def test_a_grid_that_was_chosen_is_better():
    """Five steps of Euler in sigma on the digits, EDM's path, against the grid of Karras et al."""
    model = pj.load("digits", {"sde.name": "edm", "data.num_points": 100, "model.bandwidth": 0.2})
    times = candidates(model.sde, 24)
    costs = step_errors(model, times, n=16)
    assert np.isinf(costs[np.tril_indices(len(times))]).all()
    # Steps that are closer to the next time miss it by less.
    assert costs[12, 13] < costs[12, 16] < costs[12, 20]
    chosen = times[cheapest(costs, 5)]
    options = {"n": 64, "seed": 1, "batch_size": 64}
    exact = pj.generate(model, "predictor_corrector", nfe=61, order=3, grid="edm", **options)
    errors = [
        np.mean((pj.generate(model, "euler_edm", nfe=6, grid=grid, **options) - exact) ** 2) for grid in (chosen, "edm")
    ]
    assert errors[0] < 0.8 * errors[1]
    np.testing.assert_allclose(pj.gits_grid(model, 5, n=16, fine=24), chosen)
