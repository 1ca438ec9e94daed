"""The guide: its Python runs, its commands parse, its links lead somewhere, its numbers were measured; and docstrings.

The site itself is built by ``make docs``; the slow test does so where MkDocs is installed.
"""

import ast
import contextlib
import copy
import dataclasses
import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path
from unittest import mock

import jax
import pytest
from absl import flags
from ml_collections import config_flags
from psld_jax.convert.__main__ import _parser as convert_parser

import psld_jax as pj
from psld_jax import build, convert, main
from psld_jax.data import source
from psld_jax.integrators import base
from psld_jax.sde import named

ROOT = Path(__file__).parent.parent
GUIDE = sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = ROOT / "docs" / "reference"
LINKED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
LINKED += [*GUIDE, *sorted((ROOT / "psld_jax" / "assets").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page_id(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    return [code for language, code in _FENCE.findall(path.read_text()) if language in languages]


# --- what the guide shows -----------------------------------------------------------------------------------


@contextlib.contextmanager
def registries_as_they_were():
    """What a page adds by name is gone after it: other tests run over everything that has a name."""
    with contextlib.ExitStack() as stack:
        for registry in (base._REGISTRY, named._REGISTRY, source.READERS):
            assert registry.names()  # all that is there, before it is kept
            stack.enter_context(mock.patch.dict(registry.entries))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDE if blocks(path, "python")], ids=page_id)
def test_every_python_block_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    names = {}
    with jax.enable_x64(False), registries_as_they_were():
        for code in blocks(path, "python"):
            exec(compile(code, page_id(path), "exec"), names)
    assert set(names) - {"__builtins__"}


def commands(path):
    """The commands of a page as lists of words; one goes on where a line ends in a backslash or within quotes."""
    found, pending = [], ""
    for line in "".join(blocks(path, "", "shell")).replace("\\\n", " ").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue
        found, pending = [*found, words] if words else found, ""
    assert not pending
    return found


def parse(argv):
    """Parse a command line of ``psld_jax.main`` with its own flags, but none of the state of the test's process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=argv)
    for flag in flags.FLAGS.flags_by_module_dict()[main.__name__]:
        if flag.name.partition(".")[0] != "config":
            flags.DEFINE_flag(copy.deepcopy(flag), values)
    assert values(argv) == [argv[0]]
    return values


def check_command(words):
    """Parse a command as the program does that it calls; anything wrong with it raises."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["psld-jax", *_]:
            check_command(["python", "-m", *main._with_paths(["psld_jax.main", *words[1:]])])
        case ["python", "-m", "psld_jax.main", *arguments]:
            values = parse(["main", *arguments])
            assert values.mode == "list" or (values["config"].present and values["workdir"].present)
        case ["python", "-m", "convert" | "psld_jax.convert", *arguments]:
            config = convert_parser().parse_args(arguments).config
            assert config in ("", "auto") or build.find_config(config).is_file()
        case ["python", "-m", "benchmarks" | "pytest", *_]:
            pass
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case _:
            raise AssertionError(f"nobody knows how to check {shlex.join(words)}")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("path", [path for path in GUIDE if blocks(path, "", "shell")], ids=page_id)
def test_every_command_is_understood(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert commands(path)
    for words in commands(path):
        check_command(words)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_every_command_of_the_help_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [shlex.split(line) for line in str(main.__doc__).splitlines() if line.startswith("    ")]
    first = next(words for words in lines if words[0] == "python")
    assert len(lines) == 7
    for words in lines:
        check_command(words if words[0] == "python" else [*first, *words])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_wrong_command_is_seen(monkeypatch):
    monkeypatch.chdir(ROOT)
    good = "python -m psld_jax.main --config configs/digits.py --mode sample --workdir runs/x --config.sampler.nfe=10"
    check_command(good.split())
    for wrong, right in (("nfe=", "nfee="), ("=10", "=ten"), ("digits.py", "digit.py"), ("sample ", "sampel ")):
        with pytest.raises((AttributeError, OSError, flags.Error)):
            check_command(good.replace(wrong, right).split())
    with pytest.raises(AssertionError):
        check_command(["make", "tea"])


@pytest.mark.slow
def test_the_first_command_runs(tmp_path):
    words = [words for words in commands(ROOT / "docs" / "tasks.md") if "sample" in words][0]
    assert words[0] == "psld-jax"
    words = [sys.executable, "-m", "psld_jax.main", *words[1:], f"--workdir={tmp_path}"]
    words += ["--config.sampling.num_samples=2", "--config.sampler.nfe=10", "--config.data.num_points=50"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "samples.png").is_file()


def fields_named(path):
    """What a page names as ``section.field``, but for the original's names in the first column of its tables."""
    text = _FENCE.sub("", path.read_text())
    if path.name == "migration.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    sections = "|".join(name for name, value in build.load_config("default").items() if hasattr(value, "items"))
    return re.findall(rf"`(?:--config\.)?((?:{sections})\.\w+(?:\.\w+)?)", text)


@pytest.mark.parametrize("path", GUIDE, ids=page_id)
def test_every_field_that_is_named_exists(path):
    fields = build.fields(build.load_config("default"))
    attributes = {"sde": (pj.sde, pj.sde.LinearSDE), "model": (pj.load("digits"),)}  # in Python these are objects
    unknown = [name for name in fields_named(path) if name not in fields]
    for name in list(unknown):
        section, _, attribute = name.partition(".")
        if any(hasattr(thing, attribute) for thing in attributes.get(section, ())):
            unknown.remove(name)
    assert unknown == []
    assert path.name != "migration.md" or len(fields_named(path)) > 40


# --- links ----------------------------------------------------------------------------------------------------


def slug(heading):
    """The anchor of a heading, as MkDocs makes it."""
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def prose(path):
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "code", _FENCE.sub("", path.read_text()))


def documented(path):
    """Modules that a page of the reference shows the members of."""
    found = re.findall(r"^::: ([\w.]+)\n(?!    options:\n      members: false)", path.read_text() + "\n", re.MULTILINE)
    return [re.sub(r"^convert\b", "psld_jax.convert", name) for name in found]


def anchors(path):
    found = {slug(title) for title in re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text()), re.MULTILINE)}
    for name in documented(path) if REFERENCE in path.parents else []:
        module = importlib.import_module(name)
        members = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == name}
        found |= {name, *(f"{name}.{key}" for key in members)}
        found |= {
            f"{name}.{key}.{part}" for key, value in members.items() if inspect.isclass(value) for part in vars(value)
        }
    return found


def dead_links(path):
    dead = []
    for target in re.findall(r"\]\(<?([^)\s>]+)", prose(path)):
        if re.match(r"\w+://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        known = place.exists() and (not anchor or (place.suffix == ".md" and anchor in anchors(place)))
        # The site holds docs/ alone; a link out of it would be dead there.
        inside = path not in GUIDE or ROOT / "docs" in place.parents
        if not (known and inside):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", [path for path in LINKED if path.exists()], ids=page_id)
def test_no_link_is_dead(path):
    assert dead_links(path) == []


def test_dead_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title: `x_0`\n[a](#a-title-x_0) [b](#b) [c](none.md) [d](page.md) [e](page.md#f)\n`[g](h)`\n")
    assert dead_links(page) == ["#b", "none.md", "page.md#f"]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [str(path.relative_to(ROOT / "docs")) for path in GUIDE]


# --- numbers ----------------------------------------------------------------------------------------------------


def numbers(text):
    return re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?%?(?!\w)", text)


SOURCES = [(ROOT / name).read_text() for name in ("README.md", "docs/results.md")]


def measured_cells(text):
    """The last cells of the decision table."""
    table = text[text.index("| you have, or need") : text.index("## What to leave alone")]
    return [row.rstrip(" |").rpartition(" | ")[2] for row in table.splitlines()[2:] if row]


def spellings(name):
    """A sampler's name and acronyms; nothing if there is no such sampler."""
    try:
        known = pj.integrators.get(name).name
    except ValueError:
        return ()
    return (known, *pj.integrators.aliases(known))


def unmeasured(cells):
    """Numbers that the results do not have, or not in a line with the sampler that they stand behind."""
    lines = [line for text in SOURCES for line in text.splitlines()]
    rows = [(set(re.findall(r"[\w-]+", line)), numbers(line)) for line in lines]
    everywhere = {number for _, row in rows for number in row}
    missing = [number for cell in cells for number in numbers(cell) if number not in everywhere]
    for name, number in re.findall(r"`?(\w+)`? (\d[\d.,]*\d)", " ; ".join(cells)):
        names = set(spellings(name))
        if names and not any(names & words and number in row for words, row in rows):
            missing.append(f"{name} {number}")
    return missing


def test_the_numbers_of_the_decision_table_were_measured():
    cells = measured_cells((ROOT / "docs" / "samplers.md").read_text())
    assert sum(len(numbers(cell)) for cell in cells) > 30
    assert unmeasured(cells) == []


def test_numbers_that_nobody_measured_are_seen():
    assert unmeasured(["MNIST: 8.461; ROBA 27.3", "`ddim` 27.3"]) == ["8.461", "ddim 27.3"]


# --- docstrings -------------------------------------------------------------------------------------------------

_ARRAY = re.compile(r"\b(Array|ndarray|State)\b")
_SHAPE = re.compile(
    r"\[(?=[^\]]*[a-zA-Z.]|(?:\d+, ?){2})(?:\.{3}|[\w*+/' -]+)(?:, ?[\w*+/' .-]+)*\]"  # not [-1, 1]
    r"|\bscalars?\b|\bshaped\b|\b(?:any|same|equal|its|their|of one|'s) shapes?\b|\bof shape\b",
    re.IGNORECASE,
)
_RAISES = re.compile(r"\bRaises:|(Error|Exit)``")
_CHECKS = re.compile(r"_?check_|choice$|real_number$")


def modules():
    packages = (pj, convert)
    names = {info.name for p in packages for info in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")}
    names |= {p.__name__ for p in packages}
    left_out = re.compile(r"__main__$|^psld_jax\.configs")
    return [importlib.import_module(name) for name in sorted(names) if not left_out.search(name)]


def members(module):
    """Public classes, functions, methods and properties that a module defines: name, object, and class of a method."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value, None
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            wrapped = (
                getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
            )
            mine = inspect.isfunction(wrapped) and wrapped.__module__ == module.__name__
            if mine and (key == "__call__" or not key.startswith(("_", "tree_"))):
                yield f"{name}.{key}", wrapped, value


def raises(function):
    """Whether a function raises, by itself or through one of the checks of arguments."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            if not ast.unparse(node.exc).startswith(("AssertionError", "NotImplementedError")):
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _CHECKS.match(node.func.id):
            return True
    return False


def shortcomings(name, value, owner):
    """What the docstring of one public object leaves unsaid."""
    text = inspect.getdoc(value if owner is None else getattr(owner, name.rpartition(".")[2])) or ""
    if text in ("", "Call self as a function."):
        text = (inspect.getdoc(owner) or "") if name.endswith(".__call__") else ""
    if not text:
        return ["no docstring"]
    found, function = [], value
    if inspect.isclass(value):
        fields = getattr(value, "_fields", None) or [
            f.name for f in getattr(value, "__dataclass_fields__", {}).values()
        ]
        made = re.search(r":(func|meth):", text.partition("\n")[0])  # the function that makes it says what they are
        missing = [field for field in fields if field[0] != "_" and not re.search(rf"\b{field}\b", text)]
        found += [f"says nothing of the fields {missing}"] if missing and not made else []
        own = getattr(value, "__init__", None)
        written = inspect.isfunction(own) and own.__module__ == value.__module__
        function = own if written and not dataclasses.is_dataclass(value) else None
    if function is not None:
        types = " ".join(map(str, function.__annotations__.values()))
        found += ["arrays without shapes"] if _ARRAY.search(types) and not _SHAPE.search(text) else []
        found += ["does not say that it raises"] if raises(function) and not _RAISES.search(text) else []
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_docstrings_say_shapes_fields_and_errors(module):
    assert inspect.getdoc(module), "no docstring"
    found = {name: shortcomings(name, value, owner) for name, value, owner in members(module)}
    assert {name: what for name, what in found.items() if what} == {}


def test_what_is_left_unsaid_is_seen():
    def silent(x: "Array", n: int) -> "Array":  # noqa: F821
        """Something."""
        if n < 0:
            raise ValueError(n)
        return x

    def bare():
        pass

    @dataclasses.dataclass
    class Pair:
        """Two: ``first``."""

        first: int
        second: int

    assert shortcomings("silent", silent, None) == ["arrays without shapes", "does not say that it raises"]
    assert shortcomings("bare", bare, None) == ["no docstring"]
    assert shortcomings("Pair", Pair, None) == ["says nothing of the fields ['second']"]


@pytest.mark.parametrize("name", pj.integrators.available())
def test_integrators_say_their_equation_and_its_source(name):
    text = pj.integrators.describe(name)
    module = inspect.getdoc(sys.modules[pj.integrators.get(name).fn.__module__]) or ""
    assert re.search(r"``[^`]*(<-|=)[^`]*``|Word ``[ABO]+``", text)
    assert re.search(r"\b(19|20)\d\d\b|\bpaper\b", text + module)


def test_every_module_is_in_the_reference():
    shown = [name for path in REFERENCE.glob("*.md") for name in documented(path)]
    assert len(shown) == len(set(shown))
    with_members = {module.__name__ for module in modules() if any(True for _ in members(module))}
    assert with_members - set(shown) == set(), "add ::: NAME to a page of docs/reference"


def test_every_public_name_is_in_the_contents_of_the_reference():
    text = (REFERENCE / "index.md").read_text()
    assert [name for name in pj.__all__ if f"`pj.{name}`" not in text] == []


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for path in tmp_path.rglob("*.html"):
        page = path.read_text()
        assert not re.search(r"<(?:script|img|link)[^>]* (?:src|href)=\"?https?:", page), path
        text = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"arithmatex|\$|\\[a-zA-Z(\[]", text), path
    concepts, fields = (tmp_path / "concepts.html").read_text(), (tmp_path / "reference/configuration.html").read_text()
    assert concepts.count("<math") > 100
    config = build.load_config("default")
    names = [name for name in build.fields(config) if f"{name}." not in " ".join(build.fields(config))]
    assert [name for name in names if f"<code>{name}</code>" not in fields] == []
