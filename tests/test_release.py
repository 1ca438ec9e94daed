"""What is installed: every package and every file of the tree, under the name and version that it says it has."""

import configparser
import fnmatch
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import psld_jax as pj
from psld_jax import build, main

ROOT = Path(__file__).parent.parent
#: Packages that are folders beside the others in a checkout.
BESIDE = {"psld_jax.configs": "configs", "psld_jax.convert": "convert"}


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def folder(package):
    return ROOT / BESIDE.get(package, package.replace(".", "/"))


def packages(settings):
    return settings["options"]["packages"].split()


def shipped(settings):
    """Files that a wheel should hold, by their path in it."""
    listed = packages(settings)
    found = {}
    for package in listed:
        inner = [folder(other) for other in listed if other.startswith(f"{package}.")]
        for path in folder(package).rglob("*"):
            ours = path.is_file() and not any(part in path.parents for part in inner)
            if ours and not {"__pycache__", ".ruff_cache"} & set(path.parts):
                found[str(Path(package.replace(".", "/")) / path.relative_to(folder(package)))] = path
    return found


def test_every_folder_of_modules_is_a_package_that_is_installed(settings):
    in_tree = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "psld_jax").rglob("*.py")}
    assert sorted(in_tree | set(BESIDE)) == sorted(packages(settings))
    assert len(packages(settings)) == len(set(packages(settings)))


def test_every_file_that_is_no_module_is_installed(settings):
    data = {name: value.replace(",", " ").split() for name, value in settings["options.package_data"].items()}
    left_out = []
    for path, file in shipped(settings).items():
        package = max((p for p in packages(settings) if path.startswith(p.replace(".", "/") + "/")), key=len)
        within = str(file.relative_to(folder(package)))
        matched = any(fnmatch.fnmatch(within, pattern) for pattern in data.get(package, ()))
        if not (file.suffix == ".py" and "/" not in within) and not matched:
            left_out.append(path)
    assert left_out == []
    assert "psld_jax/_runtime/winograd.cc" in shipped(settings) and "psld_jax/py.typed" in shipped(settings)


def test_the_version_stands_in_one_place(settings):
    assert settings["metadata"]["version"] == "attr: psld_jax._version.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", pj.__version__)
    assert f"## [{pj.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version {pj.__version__}" in pj.citation()


@pytest.mark.parametrize("name", ["digits", "pj:digits", "configs/digits.py"])
def test_a_configuration_is_found_by_name_or_as_a_file(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert build.find_config(name).resolve() == ROOT / "configs" / "digits.py"
    assert build.load_config(name).to_json() == build.load_config("digits").to_json()
    argv = ["psld-jax", "--config", name, f"--config={name}", "--config.seed=1", "--mode", "sample"]
    parsed = main._with_paths(argv)
    assert Path(parsed[2]).resolve() == ROOT / "configs" / "digits.py"
    assert parsed[3:] == [f"--config={parsed[2]}", *argv[4:]]
    assert main._with_paths(["psld-jax", "--config=digits:own"])[1].endswith("/configs/digits.py:own")


def test_a_file_of_ones_own_with_the_name_of_one_that_ships_is_ones_own(tmp_path, monkeypatch):
    (tmp_path / "digits.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert build.find_config("digits.py") == Path("digits.py")
    assert build.find_config("digits") != Path("digits.py")


@pytest.mark.slow
def test_the_wheel_and_the_sdist_hold_all_of_it_and_the_wheel_runs_anywhere(settings, tmp_path):
    """Built from a copy; the wheel is unpacked and run from an empty directory, in place of this checkout."""
    pytest.importorskip("build")
    copy = tmp_path / "copy"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        if re.match(r"(psld_jax|configs|convert)/|[^/]+$", name) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr + built.stdout:
        pytest.skip("no package index to take setuptools from")
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]

    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    assert pj.__version__ in wheel.name and pj.__version__ in sdist.name
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        assert {path for path in shipped(settings) if path not in held} == set()
        entry = next(name for name in held if name.endswith("entry_points.txt"))
        assert "psld-jax = psld_jax.__main__:main" in archive.read(entry).decode()
        archive.extractall(tmp_path / "site")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(file.relative_to(ROOT)) for file in shipped(settings).values()} - inside == set()

    empty = tmp_path / "empty"
    empty.mkdir()
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from psld_jax.__main__ import main; main()"
    options = ["--config", "digits", "--mode", "sample", "--workdir", "out", "--config.sampling.num_samples=2"]
    options += ["--config.sampler.nfe=5", "--config.data.num_points=50"]
    done = subprocess.run([sys.executable, "-c", start, *options], cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (empty / "out" / "samples.png").is_file()
    assert str(tmp_path / "site") in (empty / "out" / "report.json").read_text()  # the command: not the checkout
