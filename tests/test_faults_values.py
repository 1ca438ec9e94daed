"""Values that cannot be what is meant, fields that contradict what is stored, and arguments of wrong kinds."""

import inspect
import re
import warnings

import jax
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import build, main
from psld_jax._runtime import checks

HALF = np.repeat([[1, 0]], 4, axis=0).repeat(2, axis=0).repeat(4, axis=1)


def inpaint(model, known, mask=HALF):
    return pj.generate(model, "ddim", nfe=3, n=2, known=known, mask=mask)


TAKERS = {
    "known": inpaint,
    "encode": lambda m, x: pj.encode(m, x, rtol=1e-2, atol=1e-2)[0],
    "log_likelihood": lambda m, x: pj.log_likelihood(m, x, draws=1, rtol=1e-2, atol=1e-2).nats,
    "target": lambda m, x: pj.tune(m, [4], ["ddim"], num_samples=8, candidates=1, gradient_steps=0, target=x),
}


@pytest.mark.parametrize("name", TAKERS)
def test_levels_of_255_are_refused_with_what_to_call(name, digits_model):
    levels = np.asarray(digits_model.data[:2]) * 127.5 + 127.5
    with pytest.raises(ValueError, match=r"lie in 0 to 255, not in \[-1, 1\]: psld_jax.normalise"):
        TAKERS[name](digits_model, levels)
    with pytest.raises(ValueError, match=r"dtype|levels"):
        TAKERS[name](digits_model, levels.astype(int))


TRACED = TAKERS | {
    "normalise": lambda m, x: pj.normalise(x),
    "dequantize": lambda m, x: pj.dequantize(x),
    "t_end": lambda m, x: pj.generate(m, "ddim", nfe=3, n=2, t_end=x[0, 0, 0, 0]),
    "measurement": lambda m, x: pj.generate(
        m, "ddim", nfe=3, n=2, operator=pj.operators.downsample(2), measurement=x[:, ::2, ::2]
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_jax_traces_is_refused_with_what_may_be_traced(name, digits_model):
    with pytest.raises(ValueError, match="here JAX traces them .*call this outside of it"):
        jax.jit(lambda x: TRACED[name](digits_model, x))(digits_model.data[:2])


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("unipc", {"order": True}),
        ("unipc", {"order": np.array([2])}),
        ("unipc", {"order": 1.5}),
        ("sa_solver", {"corrector": False}),
        ("sa_solver", {"rule": "authors"}),
        ("sa_solver", {"lower_order_final": 2}),
        ("dpm_solver_pp_3m", {"lower_order_final": 1}),
        ("unipc", {"lower_order_final": "yes"}),
        ("deis", {"lower_order_final": None}),
        ("restart", {"base": 3}),
        ("restart", {"base": ("ipndm", 3)}),
        ("restart", {"intervals": 3}),
        ("conjugate", {"B": np.eye(3)}),
        ("ddim", {"sigmas": "edm"}),
        ("ddim", {"sigmas": [[1], [2, 3]]}),
        ("ddim", {"grid": ["a", "b"]}),
    ],
    ids=str,
)
def test_hyper_parameters_and_times_of_wrong_kinds_are_one_line(name, hyper, digits_model):
    with pytest.raises(ValueError, match=rf"^{next(iter(hyper))}\b[^\n]* must be [^\n]*$"):
        pj.generate(digits_model, name, nfe=19, n=2, **hyper)


def test_an_interval_that_is_a_number_is_shown(digits_model):
    with pytest.raises(ValueError, match="intervals holds 3; each is"):
        pj.generate(digits_model, "restart", nfe=19, n=2, intervals=(3,))


def test_whole_numbers_and_lists_will_do_for_orders_and_bases(digits_model):
    sde, grid = digits_model.sde, np.array([1.0, 0.4, 0.1, 0.01])

    def table(name, **hyper):
        return pj.tabulate(pj.integrators.get(name, **hyper), sde, grid).rows()

    for name, one, other in (
        ("unipc", {"order": 2}, {"order": np.float64(2.0)}),
        ("restart", {"base": ("ipndm", ("order", 3))}, {"base": ["ipndm", ["order", 3.0]]}),
        ("restart", {"intervals": ((0.1, 1.0, 2, 1),)}, {"intervals": [[0.1, 1.0, 2.0, 1]]}),
    ):
        jax.tree.map(np.testing.assert_array_equal, table(name, **one), table(name, **other))


def test_uint8_is_understood_where_it_is_safe(digits_model):
    levels = np.round(np.asarray(digits_model.data[:2]) * 127.5 + 127.5).astype(np.uint8)
    images = levels / np.float32(127.5) - 1
    np.testing.assert_array_equal(inpaint(digits_model, levels), inpaint(digits_model, images))
    with pytest.raises(ValueError, match="psld_jax.dequantize"):
        pj.log_likelihood(digits_model, levels)
    with pytest.raises(ValueError, match="measurement is uint8"):
        pj.generate(
            digits_model, "ddim", nfe=3, n=2, operator=pj.operators.downsample(2), measurement=levels[:, :4, :4]
        )


def test_a_range_of_0_to_1_is_doubted(digits_model):
    with pytest.warns(UserWarning, match="normalise"):
        inpaint(digits_model, (np.asarray(digits_model.data[:2]) + 1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inpaint(digits_model, np.asarray(digits_model.data[:2]))


def test_normalise(rng):
    levels = rng.integers(0, 256, (3, 2, 2, 1), np.uint8)
    np.testing.assert_allclose(pj.normalise(levels), levels / 127.5 - 1, rtol=0, atol=1e-7)  # float32
    np.testing.assert_allclose(pj.normalise(levels / 255, high=1), levels / 127.5 - 1, rtol=0, atol=1e-7)
    for bad in ({"high": 1}, {"low": 1.0, "high": 1.0}, {"low": np.nan}):
        with pytest.raises(ValueError, match=r"low"):
            pj.normalise(levels, **bad)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8, 1), (2, 8, 8, 1)])
def test_masks_of_every_shape_are_one(shape, digits_model):
    mask = (
        np.broadcast_to(HALF.reshape(8, 8, 1), (8, 8, 1))
        .reshape((1, 8, 8, 1))
        .repeat(shape[0] if len(shape) == 4 else 1, 0)
    )
    given = mask[0, ..., 0] if len(shape) == 2 else mask[0] if len(shape) == 3 else mask
    assert given.shape == shape
    known = np.asarray(digits_model.data[:2])
    np.testing.assert_array_equal(inpaint(digits_model, known, given), inpaint(digits_model, known))
    for wrong in (np.ones((4, 8)), np.full((8, 8), 0.5), "mask", [[1, 0], [1]]):
        with pytest.raises(ValueError, match="mask"):
            inpaint(digits_model, known, wrong)


@pytest.mark.parametrize("override", [{"sde.gamma": 1.0}, {"sde.nu": 4.0}, {"model.nf": 32}, {"model.data_std": 0.0}])
def test_a_stored_network_is_not_contradicted(override):
    (name,) = override
    with pytest.raises(ValueError, match=rf"config.{name}=.* contradicts mnist, which was trained with"):
        pj.load("mnist", override)
    if build.load_config("default")[name.split(".")[0]][name.split(".")[1]] != override[name]:
        config = build.override(build.load_config("saved"), {"model.checkpoint": "mnist", **override})
        with pytest.raises(ValueError, match=rf"config.{name}=.* contradicts mnist"):
            build.build_model(config)


def test_fields_of_sections_inside_are_not_contradicted_either():
    stored = build.override(build.load_config("default"), {"model.name": "edm"})
    build.model._check_told(stored, {"model.edm.image_size": (32, 64), "model.edm.sigma_data": 0.5}, "here")
    with pytest.raises(
        ValueError, match=r"config.model.edm.sigma_data=1.0 contradicts here, which was trained with 0.5"
    ):
        build.model._check_told(stored, {"model.edm.sigma_data": 1.0}, "here")


class Pixels:
    """A data set of one grey level."""

    def __init__(self, image):
        self.image = image

    def __len__(self):
        return 4

    def gather(self, numbers):
        return np.full((len(numbers), 8, 8, 1), self.image), None


@pytest.mark.parametrize(
    ("fields", "image", "told"),
    [
        ({"model.data_std": 0.8}, np.uint8(0), ""),  # of size 1
        ({"model.data_std": 0.4}, np.uint8(0), r"config.model.data_std=0.4 is far from .* of the data, 1 over"),
        ({"model.data_std": 0.8}, np.float32(0.1), r"config.model.data_std=0.8 .* 0.1 over the first 4 images"),
        ({"model.data_std": 0.15}, np.float32(0.1), ""),
        ({}, np.float32(0.1), ""),
        ({"model.name": "edm"}, np.float32(0.6), ""),
        ({"model.name": "edm", "model.edm.sigma_data": 2.0}, np.float32(0.6), "config.model.edm.sigma_data=2 is far"),
        ({"model.name": "edm", "model.edm.precondition": "vp"}, np.float32(0.01), ""),
    ],
)
def test_a_data_std_far_from_the_data_s_is_one_line(fields, image, told):
    config = build.override(build.load_config("default"), fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build.warn_of_data_std(config, Pixels(image))
    assert len(caught) == bool(told)
    if told:
        assert re.search(told, str(caught[0].message)) and "\n" not in str(caught[0].message)


def test_float_images_are_taken_as_they_are():
    assert build.to_images(Pixels(np.float32(0.25)), np.arange(2)).max() == 0.25
    assert build.to_images(Pixels(np.uint8(255)), np.arange(2)).min() == 1


def test_the_last_of_a_field_that_is_set_twice_counts():
    argv = [
        "main",
        "--config",
        "a.py",
        "--config.model.ch_mult=(1,2)",
        "--mode",
        "sample",
        "--config.model.ch_mult=(1,4)",
    ]
    assert main._last_of_each(argv) == ["main", "--config", "a.py", "--mode", "sample", "--config.model.ch_mult=(1,4)"]
    spaced = ["main", "--config.seed", "1", "--workdir", "x", "--config.seed", "2"]
    assert main._last_of_each(spaced) == ["main", "--workdir", "x", "--config.seed", "2"]


# Arguments by kind, and values that are of another: walked for every public function that has one of these.
WRONG = {
    "seed": [None, "3", 1.5, -1, 2**32, 2**64, True, [0]],
    "nfe": [None, "10", 0, -3, 2.5, True],
    "n": [None, "4", 0, -1, 1.5, True],
    "batch_size": [None, "4", 0, 1.5],
    "t_end": ["0.1", 0.0, -1.0, 1.0, 2.0, np.nan, True],
    "rtol": ["1e-3", 0.0, -1.0, np.nan, np.inf],
    "atol": ["1e-3", 0.0, -1.0, np.nan, np.inf],
    "rho": ["7", 0.0, -1.0, np.nan],
    "denoise": ["yes", 2, None],
    "check": ["yes", 2, None],
    "max_steps": [None, "4", 0, 1.5],
    "grid": ["none", (1.0,), (0.5, 1.0), (1.0, np.nan), 3],
    "draws": [None, "4", 0, 1.5],
    "divergence": ["none", 3],
    "solver": ["none", 3],
    "num_samples": [None, "128", 7, 8.5],
    "candidates": [None, "2", 0, 1.5],
    "gradient_steps": [None, "2", -1, 1.5],
}
CALLS = {
    "generate": lambda m, **k: pj.generate(
        m, **{"sampler": "rk45" if {"rtol", "atol", "max_steps"} & set(k) else "ddim", "n": 1, "nfe": 3, **k}
    ),
    "generate_states": lambda m, **k: pj.generate_states(m, **{"sampler": "ddim", "n": 1, "nfe": 3, **k}),
    "encode": lambda m, **k: pj.encode(m, m.data[:1], **k),
    "decode": lambda m, **k: pj.decode(m, m.sde.state(*[m.data[:1]] * 2), **k),
    "log_likelihood": lambda m, **k: pj.log_likelihood(m, m.data[:1], **k),
    "tune": lambda m, **k: pj.tune(m, **{"nfe": [4], "samplers": ["ddim"], **k}),
}
THROUGH = {
    "generate": (
        "nfe",
        "grid",
        "t_end",
        "rho",
        "denoise",
        "rtol",
        "atol",
        "max_steps",
        "seed",
        "n",
        "batch_size",
        "check",
    )
}


def _cases():
    for name, call in CALLS.items():
        own = set(inspect.signature(getattr(pj, name)).parameters) & set(WRONG)
        for argument in sorted(own | set(THROUGH.get(name, ()))):
            if (name, argument) == ("tune", "nfe"):
                continue  # many budgets, see below
            for value in WRONG[argument]:
                if (name, argument, value) == ("log_likelihood", "t_end", 1.0) or (
                    argument == "t_end" and value is None
                ):
                    continue
                yield pytest.param(call, argument, value, id=f"{name}-{argument}={value!r}")


@pytest.mark.parametrize(("call", "argument", "value"), list(_cases()))
def test_wrong_kinds_are_one_line(call, argument, value, digits_model):
    with pytest.raises(ValueError) as error:
        call(digits_model, **{argument: value})
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    assert not any(word in text for word in ("Traceback", "0x", "allow_pickle"))


@pytest.mark.parametrize("nfe", [["4"], [0], [2.5], 4, None, "4", [1]])
def test_budgets_of_the_tuner(nfe, digits_model):
    with pytest.raises(ValueError, match="nfe"):
        pj.tune(digits_model, nfe, ["ddim"])


def test_states_of_wrong_kinds(digits_model):
    sde, x = digits_model.sde, np.asarray(digits_model.data[:1])
    table = pj.Setting("ddim").table(sde, 3)
    for state in (x, (x,), [x, x], (x, x[:, :4]), (x, x.astype(int)), None):
        with pytest.raises(ValueError, match=r"state|blocks|leaves"):
            pj.sample(digits_model.eps_fn, table, state, jax.random.key(0))
        with pytest.raises(ValueError, match=r"state|blocks|leaves"):
            pj.interpolate(sde, state, (x, x), [0.5])


def test_check_number_says_its_bounds():
    for value in ("1", None, np.nan, True, -1):
        with pytest.raises(ValueError, match=r"x=.* must be a finite number > 0 and <= 2"):
            checks.check_number("x", value, 0, 2, strict=True)
    assert checks.check_number("x", np.float32(1.5), 0, 2) == 1.5
