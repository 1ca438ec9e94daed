"""Every field of every configuration with values that are wrong: one line, or accepted; never a traceback."""

import io
import itertools
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import train_support
from absl import flags
from ml_collections import ConfigDict
from seeds import generator

import psld_jax as pj
from psld_jax import build, main
from psld_jax._runtime.checks import check_number
from psld_jax.build import _kinds
from psld_jax.modes import _unused, dry_run
from psld_jax.sampling.sampler import Sampler

CONFIGS = sorted(path.stem for path in build.config_directory().glob("*.py"))
#: Wrong kinds, out of range, not finite, huge, empty, a list, none, another word.
WRONG = ("-1", "0", "nan", "1e30", "", "[1,2]", "None", "nonsense", "(0,)", "99999999999999999999")
TINY = train_support.TINY | {"train.steps": 2}
FAMILY = {
    "model.data_std": 0.0,
    "sde.name": "edm",
    "model.edm.image_size": 8,
    "model.edm.channels": 1,
    "model.edm.model_channels": 4,
    "model.edm.channel_mult": (1,),
    "model.edm.num_blocks": 1,
    "model.edm.attn_resolutions": (),
    "model.unet2d.sample_size": (8, 8),
    "model.unet2d.in_channels": 1,
    "model.unet2d.out_channels": 1,
}
#: How each mode is run: what makes it quick, and the sections whose fields it walks.
MODES = {
    "sample": (
        {"sampler.nfe": 4, "sampling.num_samples": 2, "data.num_points": 20},
        ("seed", "sde", "data", "sampler", "sampling"),
    ),
    "bench": ({"bench.samplers": ("ddim",), "bench.nfe": (3,), "bench.num_samples": 4}, ("bench",)),
    "tune": (
        {
            "tune.samplers": ("ddim",),
            "tune.nfe": (4,),
            "tune.num_samples": 8,
            "tune.candidates": 1,
            "tune.gradient_steps": 0,
            "tune.num_targets": 80,
        },
        ("tune",),
    ),
    "evaluate": (
        {
            "evaluate.samplers": ("ddim",),
            "evaluate.nfe": (3,),
            "evaluate.seeds": (0,),
            "evaluate.num_samples": 70,
            "evaluate.num_reference": 80,
        },
        ("evaluate",),
    ),
    "atlas": (
        {
            "atlas.samplers": ("ddim",),
            "atlas.nfe": (3,),
            "atlas.num_samples": 2,
            "atlas.frames": 2,
            "atlas.solver": "rk23",
            "atlas.tolerance": 1e-2,
        },
        ("atlas",),
    ),
    "likelihood": (
        {"likelihood.num_images": 1, "likelihood.draws": 1, "likelihood.rtol": 1e-2, "likelihood.atol": 1e-2},
        ("likelihood",),
    ),
    "interpolate": (
        {"interpolate.num_paths": 1, "interpolate.num_steps": 2, "interpolate.rtol": 1e-2, "interpolate.atol": 1e-2},
        ("interpolate",),
    ),
}


def leaves(name="default"):
    """Every field of a configuration that is no section."""
    config = build.load_config(name)
    return [field for field in build.fields(config) if not isinstance(_at(config, field), ConfigDict)]


def _at(config, field):
    for key in field.split("."):
        config = config[key]
    return config


def command(*arguments):
    """The command line in this process: what it ends with, ``""`` if it runs; anything but one line fails."""
    sys.argv = ["main", *arguments]  # where ml_collections looks for fields
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            main.main(main._parse(sys.argv)[:1])
        except SystemExit as end:
            told = str(end.code)
            assert told.startswith("error: ") and "\n" not in told and len(told) < 700, (arguments, told)
            assert "Traceback" not in told and " at 0x" not in told
            return told
        finally:
            _forget_flags()
    return ""


def _forget_flags():
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for name in ("config", "mode", "workdir", "dry_run"):
        flags.FLAGS[name].unparse()


def arguments(mode, config, fields, *more):
    path = build.config_directory() / f"{config}.py"
    values = [
        f"--config.{name}={value!r}" if isinstance(value, tuple) else f"--config.{name}={value}"
        for name, value in fields.items()
    ]
    return [f"--config={path}", f"--mode={mode}", *values, *more]


@pytest.fixture
def checks_only(monkeypatch):
    """Dry runs check, and compile nothing."""
    monkeypatch.setattr(sys, "argv", ["main"])
    monkeypatch.setattr(main, "_keep_programs", lambda: None)
    monkeypatch.setattr(dry_run, "_memory", lambda *_: None)
    monkeypatch.setattr(Sampler, "lowered", lambda *_: None)
    program = dry_run.training_program

    def not_traced(config, channels):
        program(config, channels)
        return SimpleNamespace(lower=lambda *_: None), ()

    monkeypatch.setattr(dry_run, "training_program", not_traced)


def _mode(field):
    section = field.partition(".")[0]
    return section if section in MODES else "train" if section in ("train", "model") else "sample"


def _walk():
    """Some fields of every configuration with some of the wrong values, others in every version of the list."""
    rng = generator("test_fields_of_every_configuration")
    for name in CONFIGS:
        # The evaluation of the paper's table makes hundreds of tables before it finds that one field is right.
        fields = [f for f in leaves(name) if not (name.startswith("paper_table") and f.startswith("evaluate."))]
        for field in rng.choice(fields, 3, replace=False):
            yield name, str(field), str(rng.choice(WRONG))


@pytest.mark.parametrize(("name", "field", "value"), list(_walk()))
def test_fields_of_every_configuration(name, field, value, checks_only):
    command(*arguments(_mode(field), name, {field: value}, "--dry_run"))


def _tiny():
    rng = generator("test_fields_of_a_network")
    fields = [field for field in leaves() if field.startswith(("train.", "model.", "sde.")) and field != "model.name"]
    for family in ("ncsnpp", "edm", "unet2d"):
        own = [f for f in fields if f.startswith(f"model.{family}.") or (family == "ncsnpp" and f.count(".") == 1)]
        for field in rng.choice(own, 8, replace=False):
            yield family, str(field), str(rng.choice(WRONG))


def _network(family):
    return TINY if family == "ncsnpp" else TINY | FAMILY | {"model.name": family}


@pytest.mark.parametrize(("family", "field", "value"), list(_tiny()))
def test_fields_of_a_network(family, field, value, checks_only):
    command(*arguments("train", "default", _network(family) | {field: value}, "--dry_run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_every_configuration(name, checks_only):
    for field, value in itertools.product(leaves(name), WRONG):
        command(*arguments("export", name, {field: value}, "--dry_run"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ncsnpp", "edm", "unet2d"])
def test_every_field_of_a_network(family, checks_only):
    fields = [f for f in leaves() if f.startswith(("train.", "model.", "sde.", "data.")) or f == "seed"]
    if family != "ncsnpp":
        fields = [field for field in fields if field.startswith(f"model.{family}.")]
    for field, value in itertools.product(fields, WRONG):
        command(*arguments("train", "default", _network(family) | {field: value}, "--dry_run"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_field_of_a_mode(mode, tmp_path, monkeypatch):
    """The modes themselves: what is accepted runs."""
    monkeypatch.setattr(sys, "argv", ["main"])
    monkeypatch.setattr(main, "_keep_programs", lambda: None)
    quick, sections = MODES[mode]
    fields = [field for field in leaves() if field.partition(".")[0] in sections]
    for field, value in itertools.product(fields, WRONG):
        command(*arguments(mode, "digits", {"data.num_points": 20, **quick, field: value}, f"--workdir={tmp_path}"))


# What the check of single fields knows.


def test_every_configuration_that_ships_passes():
    for name in CONFIGS:
        build.check_fields(build.load_config(name))


def test_every_tuple_has_a_kind_and_every_name_is_a_field():
    fields, config = leaves(), build.load_config("default")
    tuples = {field for field in fields if isinstance(_at(config, field), tuple)}
    kinds = {*_kinds._LEAST, *_kinds._OF_NUMBERS, *_kinds._OF_NAMES, *_kinds._TUPLES}
    assert tuples <= kinds
    named = {*kinds, *_kinds._POSITIVE, *_kinds._NOT_NEGATIVE, *_kinds._UNBOUNDED, *_kinds._NOT_EMPTY}
    assert named <= set(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bench.nfe": ("a",)}, r"config\.bench\.nfe=\('a',\) must hold whole numbers >= 1"),
        ({"bench.nfe": ()}, r"config\.bench\.nfe=\(\) must not be empty"),
        ({"bench.nfe": (2**60,)}, r"at most 2\*\*53"),
        ({"evaluate.seeds": (0, -1)}, r"an entry of config\.evaluate\.seeds=-1 must be an integer from 0"),
        ({"steer.interval": (0.0, np.nan)}, r"an entry of config\.steer\.interval=nan must be a finite number"),
        ({"tune.samplers": (1,)}, r"config\.tune\.samplers=\(1,\) must hold names"),
        ({"evaluate.published": (("EM", 50),)}, r"a sampler, its nfe and a distance"),
        ({"sampler.hyper.intervals": ((1.0, 2.0),)}, r"\(sigma_min, sigma_max, steps, repeats\)"),
        ({"steer.noise_std": np.nan}, r"config\.steer\.noise_std=nan must be a finite number >= 0"),
        ({"train.lr": np.inf}, r"config\.train\.lr=inf must be a finite number"),
        ({"seed": 2**32}, r"config\.seed=4294967296 must be an integer from 0 to 2\*\*32 - 1"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        build.check_fields(build.override(build.load_config("default"), fields))
    build.check_fields(build.override(build.load_config("default"), {"model.edm.sigma_max": np.inf}))


@pytest.mark.parametrize("name", ["num_class_embeds", "norm_num_groups", "attention_head_dim", "layers_per_block"])
def test_counts_of_diffusers_networks_are_not_negative(name):
    config = build.override(build.load_config("default"), {"model.name": "unet2d", f"model.unet2d.{name}": -1})
    with pytest.raises(ValueError, match=f"{name}=-1 must be an integer >= "):
        build.network_options(config)


def test_a_wrong_type_is_told_in_our_own_words():
    for fields, message in (
        ({"sampler.nfe": "fifty"}, r"config\.sampler\.nfe='fifty' has the wrong type str: it must be a whole number"),
        ({"sampler.nfe": None}, r"has the wrong type NoneType: it must be a whole number \(int\), such as 20"),
        ({"model.ch_mult": 3}, r"config\.model\.ch_mult=3 has the wrong type int: it must be a tuple, such as \(1, 2"),
        ({"sampler.denoise": "yes"}, r"it must be True or False, such as True"),
        ({"seed": True}, r"config\.seed=True has the wrong type bool: it must be a whole number"),
        ({"train.lr": True}, r"config\.train\.lr=True has the wrong type bool: it must be a number \(float\)"),
        ({"sampler": 3}, r"config\.sampler=3 has the wrong type int: it is a section; set its fields"),
    ):
        with pytest.raises(ValueError, match=message):
            build.override(build.load_config("default"), fields)


@pytest.mark.parametrize("name", ["", " ", "\0", "a\0b"])
def test_an_empty_name_is_no_model(name):
    with pytest.raises(ValueError, match="must be a model that ships, or a path"):
        pj.load(name)


def test_numbers_of_every_library_are_numbers():
    for value in (np.float32(1.5), np.array(1.5), 1.5, np.int64(1)):
        assert check_number("x", value) == float(value)
    for value in (10**400, np.array([1.0]), 1j, np.complex64(1), np.bool_(True), "1"):
        with pytest.raises(ValueError, match="x=.* must be a finite number"):
            check_number("x", value)


# Fields that were set and have no effect.


def test_what_ships_sets_nothing_in_vain():
    names = set(build.fields(build.load_config("default")))
    assert all(set(needs) <= names for needs in _unused.NEEDS.values())
    for config in map(build.load_config, CONFIGS):
        assert [line for mode in _unused.NEEDS for line in _unused.unused(config, mode)] == []


@pytest.mark.parametrize(
    ("mode", "fields", "message"),
    [
        (
            "sample",
            {"steer.guidance": 3.0},
            "guidance=3.0 has no effect: it needs config.steer.labels or negative",
        ),
        ("sample", {"steer.blur": 3.0, "steer.operator": "downsample"}, "needs config.steer.operator='blur'"),
        ("sample", {"sampler.nfe": 50, "sampler.name": "rk45"}, "config.sampler.nfe=50 has no effect"),
        ("sample", {"sampler.nfe": 50, "sampler.sigmas": (1.0, 0.1)}, "config.sampler.nfe=50 has no effect"),
        ("sample", {"sampler.t_start": 0.4, "steer.operator": "blur"}, "config.sampler.t_start=0.4 has no effect"),
        ("sample", {"sampler.t_start": 0.4, "sampler.name": "rk45"}, "config.sampler.t_start=0.4 has no effect"),
        ("sample", {"sampler.rtol": 1e-3, "sampler.name": "ddim"}, "config.sampler.rtol=0.001 has no effect"),
        ("sample", {"sampler.name": "ROBA", "sampler.hyper.eta": 0.5}, "it is none of 'ROBA'"),
        ("evaluate", {"evaluate.inception": "x.pth"}, "needs config.evaluate.features='inception'"),
        ("train", {"train.lr_final": 0.1}, "needs config.train.schedule='cosine'"),
    ],
)
def test_a_field_without_effect_is_told(mode, fields, message):
    lines = _unused.unused(build.override(build.load_config("digits"), fields), mode)
    assert len(lines) == 1 and message in lines[0]
