"""The script for accelerators: it ends in time, writes down what fails, and runs as a whole on a CPU."""

import io
import json
import threading
import time

import jax
import pytest
from rich.console import Console

from benchmarks import accelerator, accelerator_cases


def fail():
    raise RuntimeError("no such | device\nand a long story")


@pytest.fixture
def found(tmp_path):
    return accelerator.Report(tmp_path, {"minutes": 1})


def run(cases, found, minutes=1.0, started=None):
    printed = io.StringIO()
    started = time.monotonic() if started is None else started
    accelerator.run(iter(cases), found, minutes, Console(file=printed, width=10_000), started)
    return printed.getvalue()


def test_a_case_that_fails_is_written_down_and_the_next_goes_on(found, tmp_path):
    cases = [
        accelerator.Case("agreement", {"what": "network"}, fail),
        accelerator.Case("agreement", {"what": "loss"}, lambda: {"difference": 0.5, "tolerance": 0.1, "equal": False}),
        accelerator.Case("training", {"network": "cifar10"}, lambda: {"steps_per_second": 2.0}),
    ]
    assert "a long story" in run(cases, found)  # the whole of it is for whoever looks
    assert found.errors == 2
    groups = json.loads((tmp_path / "accelerator.json").read_text())["groups"]
    (failed, differs), (trained,) = groups["agreement"]["rows"], groups["training"]["rows"]
    assert failed["error"] == "RuntimeError: no such | device" and failed["case"] == {"what": "network"}
    assert differs["equal"] is False and trained["steps_per_second"] == 2.0
    page = (tmp_path / "accelerator.md").read_text()
    assert "RuntimeError: no such \\| device" in page and "## Steps of training" in page
    assert "## MNIST" not in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows[:4]} == {rows[0].count("|")}


def test_no_case_begins_after_the_share_of_its_group(found):
    """Half of the minutes have gone: the agreement comes too late, the steps of training do not."""
    begun = []
    cases = [
        accelerator.Case(group, {"of": group}, lambda group=group: begun.append(group) or {})
        for group in accelerator.SHARES
    ]
    run(cases, found, minutes=10, started=time.monotonic() - 5 * 60)
    assert begun == ["throughput", "training", "compilation", "mnist"]
    assert "skipped" in found.content["groups"]["agreement"]["rows"][0]


def test_what_runs_when_the_minutes_are_over_is_written_down(found, tmp_path):
    found.begin(accelerator.Case("throughput", {"network": "cifar10"}, dict))
    found.cut_off()
    (row,) = json.loads((tmp_path / "accelerator.json").read_text())["groups"]["throughput"]["rows"]
    assert row == {"case": {"network": "cifar10"}, "error": "cut off: the minutes were over"}
    found.cut_off()  # nothing was written twice


def test_the_process_ends_with_its_minutes(tmp_path, monkeypatch):
    """A case that would not end by itself is ended; here the end of the process lets it go on."""
    ended, statuses = threading.Event(), []

    def end(status):
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(accelerator.os, "_exit", end)
    case = accelerator.Case("agreement", {"what": "endless"}, lambda: {"ended": ended.wait(30)})
    monkeypatch.setattr(accelerator, "cases", lambda options: iter([case]))
    begun = time.monotonic()
    accelerator.main(["--minutes", "0.05", "--output", str(tmp_path)])
    assert statuses == [3] and time.monotonic() - begun < 25
    row, _ = json.loads((tmp_path / "accelerator.json").read_text())["groups"]["agreement"]["rows"]
    assert row == {"case": {"what": "endless"}, "error": "cut off: the minutes were over"}


def test_results_that_differ_are_not_equal(monkeypatch):
    """The CPU's results come first; the second call stands for another device."""
    values = iter([[1.0, -4.0], [1.0, -4.0 + 1e-3]])
    row = accelerator_cases._compared(lambda: next(values), "network", "highest")
    assert row == {"difference": pytest.approx(1e-3 / 4), "tolerance": 1e-4, "equal": False}


def test_every_kind_of_case_has_a_tolerance_and_all_cases_have_names(tmp_path):
    options = accelerator_cases.Options(tmp_path, 1, 10, False)
    every = list(accelerator.cases(options))
    assert {case.group for case in every} == set(accelerator.SHARES)
    named = [(case.group, *case.about.values()) for case in every]
    assert len(set(named)) == len(named)
    for case in every:
        if case.group == "agreement":
            what = {"network": "network", "loss": "loss"}.get(case.about["what"], "sampler")
            assert (what, case.about["precision"]) in accelerator_cases.TOLERANCES


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--minutes", "0"], "--minutes 0.0 must be a number above 0"),
        (["--rounds", "0"], "rounds=0 must be an integer >= 1"),
        (["--only", "trainig"], "--only trainig is no group"),
    ],
)
def test_bad_arguments_end_with_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        accelerator.main([*arguments, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_on_a_cpu_has_no_errors(tmp_path):
    before = jax.config.values["jax_disable_most_optimizations"]
    try:
        with jax.enable_x64(False):
            arguments = ["--small", "--rounds", "1", "--samples", "70", "--minutes", "60", "--output", str(tmp_path)]
            found = accelerator.main(arguments)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    rows = {name: group["rows"] for name, group in found.content["groups"].items()}
    assert all(rows.values())
    failed = [row for of_group in rows.values() for row in of_group if "error" in row and "torch" not in str(row)]
    assert not failed
    assert all(row["equal"] for row in rows["agreement"])
    assert rows["compilation"][0]["kept_seconds"] < rows["compilation"][0]["first_seconds"]
    assert rows["mnist"][0]["nfe"] <= 5 and rows["mnist"][0]["distance"] > 0
    assert "## Compilation, first and kept" in (tmp_path / "accelerator.md").read_text()
