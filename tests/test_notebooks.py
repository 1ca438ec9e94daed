"""The notebooks: executed, in order, without errors, small, and with nothing in them that a library should have.

``make notebooks`` executes them in place. The slow test runs each afresh, as on a new machine.
"""

import ast
import configparser
import datetime
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT_S = 180

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_they_are_numbered_and_listed():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, 9)]
    listed = re.findall(r"\((\w+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]


@every_notebook
def test_it_was_executed_from_top_to_bottom_without_errors_or_warnings(path):
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    stamps = [cell["metadata"]["execution"] for cell in code]
    start, end = stamps[0]["iopub.execute_input"], stamps[-1]["shell.execute_reply"]
    seconds = (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()
    assert 0 < seconds < LIMIT_S


@every_notebook
def test_it_defines_nothing_that_belongs_into_the_library(path):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [
        node.name for cell in cells(path) for node in ast.walk(ast.parse(source(cell))) if isinstance(node, definitions)
    ]
    assert found == (["adams_bashforth"] if path.name.startswith("07") else [])


@every_notebook
def test_what_it_imports_and_calls_of_the_library_is_there(path):
    """Fast, so that a name that moves is seen before the notebooks are executed again."""
    tree = ast.parse("\n".join(source(cell) for cell in cells(path)))
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "psld_jax" in ast.unparse(node):
            exec(ast.unparse(node), names)
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for chain in sorted(chain for chain in chains if re.fullmatch(r"[\w.]+", chain)):
        found, *parts = chain.split(".")
        if not inspect.ismodule(names.get(found)):
            continue
        found = names[found]
        for part in parts:
            assert hasattr(found, part), chain
            found = getattr(found, part)
            if not inspect.ismodule(found):
                break


def imported(code):
    """The packages that some code imports, by the names that they are installed by."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.module if isinstance(node, ast.ImportFrom) else a.name for node in nodes for a in node.names}
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    return {{"PIL": "pillow", "IPython": "ipykernel"}.get(top, top) for top in tops}


def test_the_extra_installs_what_they_import():
    """Also what the tests import that a notebook runs: pytest was missing where the tests' extra was not installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["notebooks"]
    installed = set(re.findall(r"^[\w-]+", lines, re.MULTILINE))
    codes = [source(cell) for path in NOTEBOOKS for cell in cells(path)]
    run = set(re.findall(r"\btest_\w+\.py", "\n".join(codes)))
    assert len(run) == 2
    codes += [(ROOT / "tests" / name).read_text() for name in (*run, "conftest.py", "closed_forms.py")]
    assert set().union(*map(imported, codes)) <= {*installed, "psld_jax", "closed_forms", "benchmarks"}


@every_notebook
def test_it_is_small_and_tells_nothing_of_the_machine(path):
    assert path.stat().st_size < 1.5e6
    notebook = json.loads(path.read_text())
    texts = [source(cell) for cell in notebook["cells"]]
    for cell in cells(path):
        for output in cell["outputs"]:
            texts += ["".join(output.get("text", "")), *("".join(output.get("data", {}).get("text/plain", "")),)]
            texts.append("".join(output.get("data", {}).get("text/markdown", "")))
    assert not re.findall(r"/(?:work|home|tmp|root|Users)\b[\w/.-]*|\x1b\[|\r", "\n".join(texts))


@every_notebook
def test_what_its_text_shows_is_there(path):
    shown = [name for cell in cells(path, "markdown") for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", source(cell))]
    for name in shown:
        assert (path.parent / name).stat().st_size < 1e6


@pytest.mark.slow
@every_notebook
def test_it_runs_afresh_within_three_minutes(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path / "notebooks")}})
    start = datetime.datetime.now()
    client.execute()
    assert (datetime.datetime.now() - start).total_seconds() < LIMIT_S
