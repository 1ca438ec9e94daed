"""The laboratory of equal networks: its configurations, what it makes of cells, and its smallest run."""

import json
import math

import jax
import numpy as np
import pytest

from benchmarks import laboratory, laboratory_networks, laboratory_table
from psld_jax import build, integrators, metrics
from psld_jax.evaluation.evaluate import Cell


@pytest.mark.parametrize("name", laboratory_networks.NETWORKS)
def test_every_network_is_the_same_but_for_its_channels(name):
    own = {key: 0.5 if value is None else value for key, value in laboratory_networks.NETWORKS[name].items()}
    config = build.override(build.load_config("default"), laboratory_networks.COMMON | own | {"model.nf": 8})
    loss = build.build_loss(config)
    t = loss.times(np.array([0.01, 0.5, 1.0]))
    assert np.isfinite(loss.coefficients(t).target).all()
    assert len(laboratory_networks.usable(loss.sde, laboratory_networks.SAMPLERS)) >= 10
    common = set(laboratory_networks.COMMON) - set(own)
    assert all(build.configuration._value(config, key) == laboratory_networks.COMMON[key] for key in common)


def test_samplers_and_orderings_have_names_that_exist():
    assert len(set(laboratory_networks.SAMPLERS)) == len(laboratory_networks.SAMPLERS)
    for name in set(laboratory_networks.SAMPLERS) - {"learned"}:
        assert integrators.get(name).name == name
    for ordering in laboratory_table.ORDERINGS:
        for network, sampler in (ordering.better, ordering.worse):
            assert network in laboratory_networks.NETWORKS and sampler in laboratory_networks.SAMPLERS
        assert set(ordering.budgets) <= set(laboratory_networks.BUDGETS)


@pytest.mark.parametrize(
    "better, worse, expected",
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], "holds"),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 0.9], "does not hold"),
        ([1.0, 2.0, 1.0], [1.1, 1.0, 2.0], "not told apart"),
        ([1.0], [2.0], "not told apart"),  # one pair has no error
        ([1.0, 1.0], [math.inf, 3.0], "holds"),
        ([math.inf, 1.0], [3.0, 3.0], "does not hold"),
        ([math.inf, 1.0], [math.inf, 3.0], "not told apart"),
        ([], [1.0], "not run"),
    ],
)
def test_verdicts(better, worse, expected):
    sides = ({(seed, 0): value for seed, value in enumerate(values)} for values in (better, worse))
    assert laboratory_table.verdict(*sides)[0] == expected


def test_samples_of_one_network_do_not_count_as_networks():
    """Two networks that disagree are not told apart, however many seeds of samples each has."""
    better = {(network, seed): 1.0 + 0.001 * seed for network in (0, 1) for seed in range(50)}
    worse = {(network, seed): 2.0 if network else 1.1 for network, seed in better}
    assert laboratory_table.verdict(better, worse)[0] == "not told apart"


def cell(sampler, budget, seed, distance, classifier):
    bad = 0 if math.isfinite(distance) else 3
    others = {"classifier": classifier} if math.isfinite(distance) else {}
    return Cell(sampler, budget, seed, 100, budget, distance, 1.0, None, others, bad)


def rows_of(values, network="psld", seed=0, budget=50):
    """Rows of a network: by sampler, its distances in pixels; those of the classifier are ten times as large."""
    return [
        {"network": network, "seed": seed, "cell": cell(name, budget, number, value, 10 * value)}
        for name, of_name in values.items()
        for number, value in enumerate(of_name)
    ]


REAL = [{"what": laboratory_table.AS_MANY, "images": 100, "pixels": 0.5, "classifier": 0.25}]


def test_the_best_sampler_is_the_one_that_is_best_on_average_and_always_finite():
    rows = rows_of({"ddim": (1.0, 5.0, 5.2), "reduced_oba": (2.0, 3.0, 3.0), "sscs": (math.inf, 1.0, 1.0)})
    rows += rows_of({"ddim": (2.0,), "reduced_oba": (3.0,)}, budget=20) + rows_of({"sscs": (math.inf,)}, budget=5)
    rows += rows_of({"learned": (0.1,)}, budget=20)  # judged in any case, beside what was chosen
    cells = [row["cell"] for row in rows]
    assert laboratory_table.chosen(cells) == [("ddim", 20), ("reduced_oba", 50)]


def test_finals_are_averaged_over_networks():
    """Two seeds of samples of one network are one value; which samplers were chosen is said of each network."""
    finals = rows_of({"ddim": (1.0, 3.0)}) + rows_of({"reduced_oba": (4.0, 4.0)}, seed=1)
    (found,) = laboratory_table.best(finals, "pixels")
    assert found["distance"] == pytest.approx(3) and found["spread"] == pytest.approx(1)
    assert found["samplers"] == ["ddim", "reduced_oba"]
    (alone,) = laboratory_table.best(finals[:2], "classifier")
    assert alone["distance"] == pytest.approx(20) and alone["spread"] == pytest.approx(10)
    assert not list(laboratory_table.best(rows_of({"ddim": (1.0, math.inf)}), "pixels"))
    both = {
        row["network"]: row["distance"]
        for row in laboratory_table.best(finals + rows_of({"learned": (0.5,)}), "pixels")
    }
    assert both == {"psld": pytest.approx(3), "psld, learned": pytest.approx(0.5)}


def test_the_page_has_every_sampler_the_finals_and_what_is_not_finite():
    rows = rows_of({"ddim": (1.0, 5.0, 5.2), "reduced_oba": (2.0, 3.0, 3.0), "sscs": (math.inf, 1.0, 1.0)})
    by_sampler = {row["sampler"]: row for row in laboratory_table.summary(rows, "pixels")}
    assert by_sampler["reduced_oba"]["distance"] == pytest.approx(8 / 3)
    assert by_sampler["sscs"]["distance"] is None and by_sampler["sscs"]["not_finite"] == 3
    other = {**REAL[0], "images": 5000, "classifier": 7.0}  # as many as other rows have
    page = laboratory_table.markdown(laboratory_table.Found({"samples": 100}, [other, *REAL], rows, rows[:3]))
    assert "not finite (3 of 300)" in page and "As many real images: 0.25 ± 0" in page
    assert "| ROBA beats SSCS | 50 | holds | - |" in page and "| ROBA beats EM | 50 | not run | - |" in page
    assert "| `psld` | 50 | 37.3 ± 19 | `ddim` |" in page


@pytest.mark.parametrize("budgets, drawn", [((10,), False), ((10, 50), True)])
def test_the_papers_figure_is_drawn_where_curves_can_be_compared(tmp_path, budgets, drawn):
    rows = [
        {"network": "psld", "seed": 0, "cell": cell(name, budget, seed, 1.0 + seed, 2.0)}
        for name in ("euler_maruyama", "reduced_oba", "unipc")
        for budget in budgets
        for seed in (0, 1)
    ]
    laboratory_table.write(tmp_path, laboratory_table.Found({}, REAL, rows))
    assert (tmp_path / "psld.png").exists()
    assert (tmp_path / "psld_paper.png").exists() == drawn


def test_panels_of_the_paper_have_samplers_that_exist():
    for names in laboratory_table.PANELS.values():
        assert set(names) <= set(laboratory_networks.SAMPLERS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["mnist"], "mnist needs --path"),
        (["digits", "--image-size", "14"], "the digits are embedded"),
        (["digits", "--networks", "pslt"], "Did you mean 'psld'?"),
        (["digits", "--samplers", "dddim"], "Did you mean 'ddim'?"),
        (["digits", "--learn-samples", "100"], "learn-samples=100 must be a multiple of 64"),
        (["digits", "--samples", "1"], "samples=1 must be an integer >= 2"),
        (["digits", "--final-samples", "1"], "final_samples=1 must be an integer >= 2"),
        (["digits", "--nfe", "0"], "nfe[0]=0 must be an integer >= 1"),
    ],
)
def test_bad_arguments_end_with_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        laboratory.main([*arguments, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 14])
def test_a_judge_of_small_images_is_kept_and_opened(size, rng, tmp_path):
    from flax import nnx

    net = metrics.ImageClassifier(10, image_size=size, rngs=nnx.Rngs(0))
    net.save(tmp_path / "judge.npz")
    opened, images = metrics.ImageClassifier.open(tmp_path / "judge.npz"), np.float32(rng.random((2, size, size, 1)))
    assert net.features(images).shape == (2, 64)
    np.testing.assert_array_equal(opened(images), net(images))


@pytest.mark.slow
def test_the_smallest_laboratory_goes_on_where_it_was(tmp_path, capsys):
    with jax.enable_x64(False):
        laboratory.main(["digits", "--small", "--output", str(tmp_path)])
        printed = capsys.readouterr().out
        assert "hours are left on this machine" in printed and "psld-0: 10 NFE, reduced_oba" in printed
        content = json.loads((tmp_path / "laboratory.json").read_text())
        assert [row["steps"] for row in content["networks"]] == [100]
        assert {row["what"] for row in content["real"]} == {"training images, as many", "held out"}
        table = content["tables"]["classifier"]
        assert len(table) == 8 and all(row["distance"] > content["real"][0]["classifier"] for row in table)
        assert all(row["num_samples"] == 500 and row["seeds"] == 2 for row in table)
        for name in ("laboratory.md", "psld.png", "best.png", "judge.npz", "psld-0/tuned.json"):
            assert (tmp_path / name).is_file()
        cells = (tmp_path / "psld-0" / "cells.jsonl").read_text()
        assert len(cells.splitlines()) == 1 + 4 * 2 * 2
        finals = (tmp_path / "psld-0" / "finals.jsonl").read_text()
        assert len(finals.splitlines()) == 1 + 2 * 2 * 2  # the best sampler of two budgets, and what was learned
        names = [(row["network"], row["budget"]) for row in content["best"]["held out"]]
        assert names == [("psld", 5), ("psld", 10), ("psld, learned", 5), ("psld, learned", 10)]
        # The last cell is lost, and done again; nothing else is.
        (tmp_path / "psld-0" / "cells.jsonl").write_text(cells[: cells.rindex("\n", 0, -1) + 1])
        laboratory.main(["digits", "--small", "--output", str(tmp_path)])
        assert "training 0, tuning 0, learning 0" in capsys.readouterr().out
        again = json.loads((tmp_path / "laboratory.json").read_text())["tables"]["classifier"]
        assert [row["distance"] for row in again] == [row["distance"] for row in table]
