"""What a terminal shows and a disk holds: one line for what is wrong, whatever the terminal, the mode and the file."""

import io
import itertools
import json
import re
import resource
import sys

import numpy as np
import pytest
from absl import app, flags
from PIL import Image
from psld_jax.convert.__main__ import main as convert
from rich.console import Console

import psld_jax as pj
from psld_jax import build, main, modes
from psld_jax._runtime.errors import check_choice, check_counts, shown, unknown, why
from psld_jax._runtime.journal import Journal, make_directory, read_json, replace
from psld_jax.evaluation import plots
from psld_jax.evaluation.bench import COLUMNS, write_tables
from psld_jax.modes._fields import in_full
from psld_jax.sampling.files import write_samples
from psld_jax.sampling.generate import prepare

CONFIG = str(build.config_directory() / "digits.py")


def ended(*arguments):
    """What the command line ends with."""
    sys.argv = ["main", *arguments]  # where ml_collections looks for fields
    with pytest.raises(SystemExit) as caught:
        main.main(main._parse(sys.argv)[:1])
    return str(caught.value)


@pytest.fixture(autouse=True)
def _flags_as_they_were(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main"])
    yield
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for name in ("config", "mode", "workdir", "dry_run"):
        flags.FLAGS[name].unparse()


# Terminals.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_every_terminal_shows_the_lists(monkeypatch, encoding):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    main.main(main._parse(["main", "--mode=list"])[:1])
    text = content.getvalue().decode(encoding)
    for name in (*pj.integrators.available(), "digits", "mnist", "cifar10"):
        assert name in text
    assert "hyper-parameters" in text  # no column is cut off


def test_help_that_was_asked_for_is_no_failure(capsys):
    app.define_help_flags()
    with pytest.raises(SystemExit) as caught:
        main._parse(["main", "--help"])
    assert caught.value.code == 0 and "--helpfull" in capsys.readouterr().out


def test_the_digits_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = build.override(build.load_config("saved"), {"model.checkpoint": "digits"})
    with pytest.raises(ValueError, match="'digits' is an exact score.*--config digits samples it"):
        build.build_model(config)
    training = build.override(build.load_config("mnist"), {"train.init": "digits", "model.nf": 8})
    with pytest.raises(ValueError, match="config.train.init: 'digits' is an exact score"):
        build.initial_network(training)


def test_files_are_written_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")
    modes.replace(tmp_path / "a.md", "0.5 ± 0.1")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "0.5 ± 0.1"


# Work directories.


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_work_directory_that_cannot_be_is_named_by_every_mode(tmp_path, mode):
    file = tmp_path / "file"
    file.write_text("")
    for workdir in (file, file / "deep" / "er"):
        with pytest.raises(ValueError, match=f"the work directory, .*{re.escape(str(file))} is a file"):
            modes.run(mode, build.load_config("digits"), workdir, Console(quiet=True))
    (tmp_path / "w").mkdir()
    for content in ("", "{", "[1]", "\0"):
        (tmp_path / "w" / "report.json").write_text(content)
        with pytest.raises(ValueError, match=r"report\.json cannot be read: .*; remove it"):
            modes.run(mode, build.load_config("digits"), tmp_path / "w", Console(quiet=True))


@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize("empty", ["--workdir=", "--workdir= ", None])
def test_an_empty_work_directory_is_not_the_current_one(mode, empty):
    arguments = [] if empty is None else [empty]
    message = ended(f"--config={CONFIG}", f"--mode={mode}", *arguments)
    assert message.startswith("error: --workdir must be given, and not empty") and "\n" not in message


def test_other_places_that_are_empty_or_files_are_named(tmp_path, capsys):
    assert convert(["--checkpoint", "x", "--output", ""]) == convert(["--checkpoint", "", "--output", "x"]) == 1
    assert capsys.readouterr().err.count("is empty: it must name a file or directory") == 2
    (tmp_path / "images").write_text("")
    sampler = prepare(pj.load("digits"), "ddim", nfe=2)
    with pytest.raises(ValueError, match="the directory of images, .* is a file"):
        write_samples(sampler, tmp_path / "images", 2)
    with pytest.raises(ValueError, match=r"cannot be made: .*/file is a file"):
        (tmp_path / "file").write_text("")
        make_directory(tmp_path / "file" / "b", "the directory")
    solver = next(row.setting.solver for row in sampler.model.tuned if row.setting.solver is not None)
    with pytest.raises(ValueError, match=r"s\.json cannot be written: .*/missing is no directory"):
        solver.write(tmp_path / "missing" / "s.json")
    for more in ([], ["--to", "torch"]):
        output = str(tmp_path / "file" / "b.safetensors")
        assert convert(["--checkpoint", str(tmp_path / "images"), "--output", output, *more]) == 1
        assert f"cannot be made: {tmp_path / 'file'} is a file" in capsys.readouterr().err


# Flags.


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sampler.nfe=abc", r"--config\.sampler\.nfe='abc' must be a whole number"),
        ("--config.sampler.t_end=x", r"--config\.sampler\.t_end='x' must be a number"),
        ("--config.sampler.nfee=3", r"unknown config field 'sampler\.nfee'\. Did you mean 'sampler\.nfe'\?"),
        ("--config.batchsize=3", r"likelihood\.batch_size, sampling\.batch_size, train\.batch_size"),
        ("--mode=smaple", "sample"),
        ("--nonsense=1", "nonsense"),
        ("--config=", "--config is empty"),
        ("--config=digit", r"unknown config 'digit'\. Did you mean 'digits'\?"),
        ("--config=pj:mnits", r"unknown config 'pj:mnits'\. Did you mean 'mnist'\?"),
        ("--config=nowhere/digits.py", r"no file 'nowhere/digits\.py' here; the configuration that ships is 'digits'"),
        ("--config=digit.py", r"unknown configuration file 'digit\.py'\. Did you mean 'configs/digits\.py'\?"),
    ],
)
def test_flags_that_are_wrong_end_with_one_line(tmp_path, argument, message):
    told = ended(f"--config={CONFIG}", f"--workdir={tmp_path}", argument)
    assert re.search(message, told) and "\n" not in told and told.startswith("error: ")


def test_ctrl_c_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(modes, "run", interrupted)
    assert ended("--config", CONFIG, "--workdir", str(tmp_path / "run")) == "130"
    assert capsys.readouterr().err == "interrupted: the same command goes on from what has been saved\n"


def test_an_unknown_name_of_many_is_told_the_nearest_five():
    known = build.fields(build.load_config("default"))
    for name in ("nfe", "sampler.nef", "model.chmult", "", "zzz", "sampler.hyper.lamm"):
        message = str(unknown("config field", name, known))
        assert message.count(", ") == 4 and len(message) < 400
        with pytest.raises(ValueError, match="The nearest of"):
            build.override(build.load_config("default"), {name: 1})
    assert "The nearest of" not in str(unknown("fit", "zoom", ("exact", "pad")))


@pytest.mark.parametrize(
    ("mode", "overrides", "message"),
    [
        ("sample", {"sampler.nfe": 0}, "config.sampler.nfe=0"),
        ("sample", {"sampler.grid": "foo"}, "'foo' (config.sampler.grid)"),
        ("sample", {"sampler.name": "foo"}, "'foo' (config.sampler.name)"),
        ("sample", {"sampling.num_samples": 0}, "config.sampling.num_samples: n=0"),
        ("sample", {"sampling.save": "gif", "sampler.nfe": 2}, "'gif' (config.sampling.save)"),
        ("sample", {"sde.name": "foo"}, "config.sde.name 'foo'"),
        ("sample", {"sampler.t_end": 2.0}, "config.sampler.t_end=2.0"),
        ("bench", {"bench.samplers": ("foo",)}, "'foo' (config.bench.samplers)"),
        ("likelihood", {"likelihood.rtol": -1.0}, "config.likelihood.rtol=-1.0"),
        ("likelihood", {"likelihood.solver": "foo"}, "'foo' (config.likelihood.solver)"),
        ("interpolate", {"interpolate.rtol": -1.0}, "config.interpolate.rtol=-1.0"),
        ("tune", {"tune.candidates": 0}, "config.tune.candidates=0"),
    ],
)
def test_messages_of_modes_name_fields_with_their_full_path(tmp_path, mode, overrides, message):
    config = build.override(build.load_config("digits"), {"data.num_points": 20, **overrides})
    with pytest.raises(ValueError) as caught:
        modes.run(mode, config, tmp_path, Console(quiet=True))
    assert message in str(caught.value)


def test_full_paths_leave_other_text_as_it_is():
    config = build.load_config("digits")
    for same in (
        "config.sampler.nfe=0 must be 1",
        "it was tuned for PSLD(gamma=0.01, nu=4.01), this is PSLD(gamma=0.5)",
        "use '--config.sampler.nfe=3'",
        "foo=3 is nothing",
        "set t='nfe=3'",
        "unknown config field 'quadratic'",
    ):
        assert in_full(same, config, "sample") == same
    assert in_full("batch_size=0 and fit='pad'", config, "likelihood") == (
        "config.likelihood.batch_size=0 and config.data.fit='pad'"
    )
    assert in_full("batch_size=0", config, "train") == "config.train.batch_size=0"
    # 0.0 is the value of another field, of a network that is not in use.
    assert config.model.edm.sigma_min == 0
    assert in_full("got sigma_min=0.01", config, "sample") == "got config.sde.sigma_min=0.01"
    # Fields of other kinds of networks describe none of what there is.
    assert in_full("where channels=1 is expected", config, "train") == "where channels=1 is expected"
    edm = build.override(config, {"model.name": "edm"})
    assert in_full("channels=1", edm, "train") == "config.model.edm.channels=1"


# Images that were drawn.


@pytest.mark.parametrize("form", ["png", "npz"])
def test_an_image_that_is_not_whole_does_not_count_as_drawn(tmp_path, form):
    sampler = prepare(pj.load("digits", {"data.num_points": 20}), "ddim", nfe=2)
    kwargs = {"batch_size": 4, "form": form}
    assert write_samples(sampler, tmp_path, 8, **kwargs) == 8
    file = sorted(tmp_path.glob(f"*.{form}"))[0]
    content = file.read_bytes()
    drawn = 4 if form == "png" else 8  # a batch, or a file
    for wrong in (b"", content[: len(content) // 2], content[:-1], b"\0" * len(content), b"x"):
        file.write_bytes(wrong)
        assert write_samples(sampler, tmp_path, 8, **kwargs) == drawn
        assert file.read_bytes()[:4] == content[:4]
    assert write_samples(sampler, tmp_path, 8, **kwargs) == 0
    # More of them: the last file of the former run is not full.
    assert write_samples(sampler, tmp_path, 12, **kwargs) == (4 if form == "png" else 12)
    assert write_samples(sampler, tmp_path, 8, **kwargs) == 0
    (tmp_path / "about.json").write_text("")
    with pytest.raises(ValueError, match=r"about\.json cannot be read: it is empty"):
        write_samples(sampler, tmp_path, 8, **kwargs)


def test_a_journal_that_is_of_something_else_is_named(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    for content in ("x\n", "{}\n[1]\n", '{}\n{"a": 1}\n', "\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"evaluation\.jsonl is damaged"):
            Journal(path, {}, "an evaluation")
    path.write_text("")
    Journal(path, {"a": 1}, "an evaluation")
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_log_without_a_place_or_of_other_bytes_is_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    for path, what in (
        (tmp_path, "must be a file"),
        (tmp_path / "none" / "log", "must be a file"),
        (tmp_path / "binary", "binary is damaged"),
    ):
        with pytest.raises(ValueError, match=what) as raised:
            Journal(path, {}, "an evaluation")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "none").exists()


# Words of other libraries.

ADDRESS = re.compile(r"0x[0-9a-f]{4}|allow_pickle")


def test_no_message_has_an_address_or_advice_that_cannot_be_followed(tmp_path):
    values = (lambda: 0, object(), [object()], {}, np.zeros(3), io.BytesIO(), int, "a\nb", "x" * 1000)
    for value in values:
        for check in (
            lambda value: check_choice("name", value, ("a", "b")),
            lambda value: check_choice("name", value, {"a": 1}),
            lambda value: check_counts(n=value),
        ):
            with pytest.raises(ValueError) as caught:
                check(value)
            assert not ADDRESS.search(str(caught.value)) and "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300
        assert not ADDRESS.search(shown(value))
    assert why(KeyError("mu")) == "it has no 'mu'" and why(ValueError()) == "ValueError"


def test_every_file_that_is_read_says_what_is_wrong_in_its_own_words(tmp_path, digits_model):
    objects = np.array([{}, 1], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", mu=objects, sigma=objects, images=objects, about=objects)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"hello")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    Image.new("L", (2, 2)).save(tmp_path / "image.png")

    def mask(path):
        config = build.override(build.load_config("digits"), {"steer.mask": f"{path}.npy"})
        path.with_name(f"{path.name}.npy").write_bytes(path.read_bytes())
        return build.steer_options(config, digits_model)

    readers = (
        lambda path: pj.data.open_dataset("arrays", path),
        lambda path: pj.data.open_dataset("folder", path),
        lambda path: pj.metrics.read_statistics(path, 2),
        lambda path: pj.sampling.program.Program(path),
        lambda path: pj.load("digits", {"sampler.tuned": str(path)}),
        lambda path: pj.load(str(path)),
        read_json,
        mask,
    )
    files = [path for path in sorted(tmp_path.iterdir()) if path.is_file()]
    for reader, path in itertools.product(readers, files):
        with pytest.raises(ValueError) as caught:
            reader(path)
        message = str(caught.value)
        assert path.name in message and not ADDRESS.search(message) and "\n" not in message, (path, message)


@pytest.fixture
def full_disk():
    """No file can grow beyond 64 bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ROW = {"step": 1, "loss": 1.0, "count_by_time": [4], "loss_by_time": [1.0]}
GAUSSIAN = pj.metrics.Gaussian(np.zeros(3), np.eye(3))
WRITERS = {
    "a.txt": lambda path: replace(path, "old" * 50),
    "a.bin": lambda path: replace(path, b"old" * 50),
    "a.png": lambda path: plots.save_losses(path, [ROW], []),
    "a.npz": lambda path: pj.metrics.write_statistics(path, GAUSSIAN),
    "bench.csv": lambda path: write_tables([{name: None for name in COLUMNS}], path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, request, name):
    path = tmp_path / name
    path.write_text("before")
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=f"{name} cannot be written: .*; make room, and give the same command again"):
        WRITERS[name](path)
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == [name]


def test_a_full_disk_ends_a_journal_with_its_name_and_what_is_whole_counts(tmp_path, request):
    path = tmp_path / "log.jsonl"
    journal = Journal(path, {"a": 1}, "a test")
    assert journal.get(["one"], lambda: {"value": 1}) == {"value": 1}
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"log\.jsonl cannot be written"):
        journal.get(["two"], lambda: {"value": "2" * 100})
    assert Journal(path, {"a": 1}, "a test").get(["one"], lambda: {}) == {"value": 1}
