"""Arguments of wrong kinds: every argument of every public function is refused in one line, before any work."""

import inspect

import jax
import numpy as np
import pytest

import psld_jax as pj

NAN = float("nan")
IMAGES = np.zeros((2, 8, 8, 1), np.float32)
COUNTS = (None, "3", 0, -1, 2.5, NAN, True, [3])
NUMBERS = (None, "1", NAN, float("inf"), True, [1.0])
POSITIVE = (*NUMBERS, 0.0, -1.0)
TIMES = ("0.1", NAN, 0.0, -1.0, 2.0, 1e-12, True, [0.1])
FLAGS = (None, "yes", 2)
SEEDS = (None, "3", 1.5, -1, 2**32, 2**64, True, [0])
WORDS = (None, "none of these", 3, ["rk45"])
ARRAYS = (None, "x", 3, IMAGES[:, :4], IMAGES[0], np.full_like(IMAGES, NAN), IMAGES + 200, [[1], [1, 2]])
SDES = (None, "psld", 3)

#: Wrong values of an argument, by its name; by function and name, where a name means several things.
WRONG = {
    "seed": SEEDS,
    "n": COUNTS,
    "n_steps": COUNTS,
    "batch_size": COUNTS,
    "draws": COUNTS,
    "first": (None, "3", 1.5, -1),
    "max_steps": COUNTS,
    "fine": COUNTS,
    "candidates": COUNTS,
    "num_samples": COUNTS,
    "gradient_steps": (None, "3", -1, 2.5, True),
    "resample": COUNTS,
    "jump": COUNTS,
    "n_classes": (None, "3", -1, 2.5, True),
    "t_end": TIMES,
    "t_start": TIMES[:5],
    "rtol": POSITIVE,
    "atol": POSITIVE,
    "growth": POSITIVE,
    "low": NUMBERS,
    "high": NUMBERS,
    "check": FLAGS,
    "fresh": FLAGS,
    "analytic_start": FLAGS,
    "channels_first": FLAGS,
    "return_trajectory": FLAGS,
    "remat": FLAGS,
    "denoise": (None, "yes", 2),
    "solver": WORDS,
    "history": COUNTS,
    "iterations": COUNTS,
    "jacobian_batches": (None, "3", -1, 2.5, True),
    "consistent": FLAGS,
    "error": WORDS,
    "distance": (*NUMBERS, -1.0),
    "soft": (*NUMBERS, -1.0, 2.0),
    "free": (None, "tau", (), (3,), ("none of these",)),
    "steps": (None, "0", 3, (-1,), (2.5,), (99,)),
    "start": ("ddim", 3, (), (3,)),
    "learn": (None, "none of these", 3),
    "learning": ("x", {"nonsense": 1}, {"iterations": 0}, {"free": ()}),
    "learn.nfe": COUNTS,
    "path": (None, 3, "", "none of these.json", "\0"),
    "divergence": WORDS,
    "step_control": WORDS,
    "time": WORDS,
    "sampler": WORDS,
    "samplers": (None, "ddim", (), (3,), ("none of these",)),
    "nfe": (None, "4", 4, (), ("4",), (0,), (2.5,)),
    "images": ARRAYS,
    "target": ARRAYS[1:],
    "x": ARRAYS,
    "mask": (None, "left", IMAGES + 0.5, np.ones((3, 3))),
    "levels": (None, "x", IMAGES, np.full((2, 4, 4, 1), 300), [[1], [1, 2]]),
    "z": (None, "x", 3, (), (IMAGES,), (IMAGES, IMAGES[:, :4]), (IMAGES.astype(int), IMAGES.astype(int))),
    "z_T": (None, "x", 3, (), (IMAGES,), (IMAGES, IMAGES[:, :4]), (IMAGES.astype(int), IMAGES.astype(int))),
    "a": (None, IMAGES, (IMAGES[:1],), (IMAGES, IMAGES)),
    "b": (None, IMAGES, (IMAGES[:1],), (IMAGES, IMAGES)),
    "weights": (None, "x", (NAN,), ("a",), 0.5, [[0.5]]),
    "sde": SDES,
    "integrator": (None, "ddim", 3),
    "table": (None, "ddim", 3),
    "grid": (None, "none", 3, (1.0,), (0.5, 1.0), (1.0, NAN), (1.0, 0.5, 1e-12), (x for x in (1.0, 0.5)), (1, "x")),
    "jacobian": (None, "x", np.ones((3, 3)), np.full((2, 2), NAN)),
    "model": (None, "digits", 3),
    "times": ("x", (2.0,), (NAN,), (0.0,), ()),
    "features": ("pixels", 3),
    "image_shape": ((8, 8), "x", 3, (8, 8, 0), (8, 8, 1.5), (8, NAN, 1)),
    "name": (None, 3, "", "none of these", "\0"),
    "overrides": ("x", [1], {"nonsense": 1}, {3: 1}, {"sampler.nfe": "x"}),
    "key": (None, 3, "x", np.zeros(3)),
    "indices": (None, "x", (-1,), (0.5,), 3),
    "noise": (IMAGES, (IMAGES,), "x"),
    "known": (IMAGES, "x", 3),
    "pull": (IMAGES, "x", 3),
    "operator": (None, "x", 3, lambda images: images),
    "measurement": (*ARRAYS, IMAGES),
    "noise_std": (*NUMBERS, -1.0),
    "weight": (*NUMBERS, -1.0),
    "particles": COUNTS,
    "posterior": WORDS,
    "threshold": (*NUMBERS, -1.0, 2.0),
    "sample_posterior.nfe": (*COUNTS, 1),
    "data_std": POSITIVE,
    "predict": (None, "x", 3),
    "denoiser": (None, "x", 3),
    "eps_fn": (None, "x", 3),
    "progress": (None, "x", 3),
    "report": (None, "x", 3),
    "log": (3,),
    # Of any shape and any range that is named, and dim or bright as one likes.
    "normalise.images": (None, "x", np.full_like(IMAGES, NAN), IMAGES - 300, [[1], [1, 2]]),
    "sample.key": (3, "x", np.zeros(3)),
}
#: Arguments that are the user's own, taken as they are.
AS_THEY_ARE = {"options", "used"}  # used: see tests/test_citation.py


def _table(model):
    return pj.Setting("ddim").table(model.sde, 3)


#: A call of each public function that works, quick enough for a wrong value that slips through.
CALLS = {
    "citation": lambda m: {},
    "clear_programs": lambda m: {},
    "decode": lambda m: {"model": m, "z": m.sde.state(IMAGES, IMAGES), "rtol": 1e-2, "atol": 1e-2},
    "dequantize": lambda m: {"levels": np.zeros((2, 4, 4, 1), np.uint8)},
    "encode": lambda m: {"model": m, "images": IMAGES, "rtol": 1e-2, "atol": 1e-2},
    "fit_projection": lambda m: {"model": m, "images": IMAGES},
    "from_denoiser": lambda m: {"denoiser": lambda x, s: x, "sde": pj.sde.EDM(), "image_shape": (8, 8, 1)},
    "from_function": lambda m: {"predict": lambda x, t: x, "sde": pj.sde.VPSDE(), "image_shape": (8, 8, 1)},
    "generate": lambda m: {"model": m, "sampler": "ddim", "nfe": 3, "n": 2},
    "generate_states": lambda m: {"model": m, "sampler": "ddim", "nfe": 3, "n": 2},
    "gits_grid": lambda m: {"model": m, "n_steps": 3, "n": 2, "fine": 6},
    "interpolate": lambda m: {
        "sde": m.sde,
        "a": m.sde.state(IMAGES[:1] + 1, IMAGES[:1]),
        "b": m.sde.state(IMAGES[:1], IMAGES[:1] + 1),
        "weights": (0.5,),
    },
    "known_pixels": lambda m: {"sde": m.sde, "table": _table(m), "x": IMAGES, "mask": np.ones((8, 8))},
    "learn": lambda m: {
        "model": m,
        "nfe": 3,
        "start": pj.Setting("ddim"),
        "num_samples": 4,
        "batch_size": 4,
        "iterations": 1,
        "history": 1,
    },
    "load_solver": lambda m: {"path": "none.json"},
    "load": lambda m: {"name": "digits", "overrides": {}},
    "log_likelihood": lambda m: {"model": m, "images": IMAGES, "draws": 1, "rtol": 1e-2, "atol": 1e-2},
    "measurement_pull": lambda m: {
        "sde": m.sde,
        "integrator": pj.integrators.get("exponential_multistep", order=1),
        "table": pj.Setting("exponential_multistep", hyper={"order": 1}).table(m.sde, 3),
        "operator": pj.operators.downsample(2),
        "measurement": IMAGES[:, ::2, ::2],
        "image_shape": (8, 8, 1),
    },
    "normalise": lambda m: {"images": np.zeros((2, 4, 4, 1), np.uint8)},
    "sample": lambda m: {
        "eps_fn": m.eps_fn,
        "table": _table(m),
        "z_T": m.sde.state(IMAGES, IMAGES),
        "key": jax.random.key(0),
    },
    "sample_posterior": lambda m: {
        "model": m,
        "operator": pj.operators.downsample(2),
        "measurement": IMAGES[:, ::2, ::2],
        "particles": 2,
        "nfe": 3,
    },
    "sample_keys": lambda m: {"key": jax.random.key(0), "indices": np.arange(2)},
    "sample_ode": lambda m: {
        "eps_fn": m.eps_fn,
        "sde": m.sde,
        "z_T": m.sde.state(IMAGES, IMAGES),
        "rtol": 1e-2,
        "atol": 1e-2,
    },
    "stability": lambda m: {
        "integrator": pj.integrators.get("ddim"),
        "sde": m.sde,
        "grid": pj.grids.quadratic(3),
        "jacobian": np.eye(2),
    },
    "stepper": lambda m: {"table": _table(m)},
    "tabulate": lambda m: {"integrator": pj.integrators.get("ddim"), "sde": m.sde, "grid": pj.grids.quadratic(3)},
    "tune": lambda m: {
        "model": m,
        "nfe": (4,),
        "samplers": ("ddim",),
        "num_samples": 8,
        "candidates": 1,
        "gradient_steps": 0,
        "learn": "table",
    },
}
FUNCTIONS = {name: value for name, value in vars(pj).items() if name in pj.__all__ and inspect.isfunction(value)}


def _cases():
    for name, function in FUNCTIONS.items():
        for argument in inspect.signature(function).parameters:
            for value in WRONG.get(f"{name}.{argument}", WRONG.get(argument, ())):
                yield pytest.param(name, argument, value, id=f"{name}-{argument}-{_shown(value)}")


def _shown(value):
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    return type(value).__name__ + str(value)[:12].replace("\0", "0")


def test_every_argument_of_every_public_function_is_here():
    """A new function needs a call, and a new argument wrong values, or to be said to be the user's own."""
    assert set(FUNCTIONS) == set(CALLS)
    arguments = {name for function in FUNCTIONS.values() for name in inspect.signature(function).parameters}
    assert arguments <= set(WRONG) | AS_THEY_ARE and not set(WRONG) & AS_THEY_ARE


@pytest.mark.parametrize(("name", "argument", "value"), list(_cases()))
def test_a_wrong_value_is_one_line(name, argument, value, digits_model):
    arguments = CALLS[name](digits_model) | {argument: value}
    with pytest.raises(ValueError) as caught:
        FUNCTIONS[name](**arguments)
    told = str(caught.value)
    assert told and "\n" not in told and len(told) < 600 and " at 0x" not in told
