"""The README's Python runs as it stands, and the table of samplers has every one with its cost."""

import re
from pathlib import Path

import jax
import pytest

import psld_jax as pj
from psld_jax.sampling.adaptive import SOLVERS

ROOT = Path(__file__).parent.parent
README, SAMPLERS = ((ROOT / name).read_text() for name in ("README.md", "docs/samplers.md"))


@pytest.mark.slow
def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    with jax.enable_x64(False):
        for block in code:
            exec(block, names)
    assert names["images"].shape == (16, 32, 32, 1)
    assert names["table"].nfe == 50 and names["z"].x.shape == (4, 32, 32, 1)


def test_every_sampler_is_in_the_table_with_its_cost():
    rows = re.findall(r"^\| (`[a-z`_, 0-9]+) \|.*\| ([0-9, ]+|by tolerance) \|$", SAMPLERS, re.MULTILINE)
    costs = {}
    for names, numbers in rows:
        names = re.findall(r"`(\w+)`", names)
        numbers = [int(n) for n in re.findall(r"\d+", numbers)] or [None]
        costs.update(zip(names, numbers * len(names) if len(numbers) == 1 else numbers, strict=True))
    adaptive = {name for name, cost in costs.items() if cost is None}
    assert adaptive == set(SOLVERS)
    expected = {name: pj.integrators.get(name).nfe_per_step for name in pj.integrators.available()}
    assert {name: cost for name, cost in costs.items() if cost is not None} == expected
