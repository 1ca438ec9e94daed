"""The only reader of configurations: turns a ConfigDict into objects."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from psld_jax import assets, integrators, scores
from psld_jax.errors import unknown
from psld_jax.sde import PSLD, VPSDE, LinearSDE

_HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Model:
    """What a sampler needs: the diffusion, ``eps_fn``, the configuration, and the image shape ``(H, W, C)``.

    ``data`` holds the data set (float32 NHWC in [-1, 1]) where the exact law is known, else ``None``.
    """

    sde: LinearSDE
    eps_fn: Callable[..., Any]
    config: Any
    image_shape: tuple[int, ...]
    data: np.ndarray | None = None


def config_directory() -> Path:
    """Where the configurations are: beside the package in a checkout, inside it when installed."""
    inside = _HERE / "configs"
    return inside if inside.is_dir() else _HERE.parent / "configs"


def load_config(name: str) -> Any:
    """The configuration of that name (``"digits"``) or path; ``ValueError`` lists the names if unknown."""
    path = Path(name) if name.endswith(".py") else config_directory() / f"{name}.py"
    if not path.is_file():
        known = [p.stem for p in config_directory().glob("*.py")]
        raise unknown("config", name, known)
    spec = importlib.util.spec_from_file_location(f"psld_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def fields(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every field of a configuration, sections included."""
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ConfigDict):
            names += fields(value, f"{prefix}{key}.")
    return names


def override(config: Any, values: dict[str, Any]) -> Any:
    """A locked copy of ``config`` with the given fields (dotted names) replaced.

    Raises:
      ValueError: for an unknown field (with the nearest known one), or a value of the wrong type.
    """
    config = config.copy_and_resolve_references()
    for name, value in values.items():
        if name not in fields(config):
            raise unknown("config field", name, fields(config))
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise ValueError(f"config.{name}={value!r} has the wrong type: {error}") from None
    return config.lock()


def check_overrides(argv: list[str]) -> None:
    """Raise a ``ValueError`` for the first ``--config.FIELD`` of a command line that does not exist."""
    arguments = dict(re.findall(r"^--?(config[\w.]*)=?(.*)$", "\n".join(argv), re.MULTILINE))
    position = [i for i, argument in enumerate(argv) if argument in ("--config", "-config")]
    path = arguments.pop("config", "") or (argv[position[-1] + 1] if position and position[-1] + 1 < len(argv) else "")
    known = fields(load_config(path))
    for name in arguments:
        if name.removeprefix("config.") not in known:
            raise unknown("config field", name.removeprefix("config."), known)


def build_sde(config: Any) -> LinearSDE:
    """The SDE that ``config.sde`` describes."""
    c = config.sde
    if c.name == "psld":
        return PSLD(c.gamma, c.nu, c.beta_min, c.beta_max, c.kappa, c.decomposition, c.jitter)
    if c.name == "vpsde":
        return VPSDE(c.beta_min, c.beta_max, c.jitter)
    raise unknown("config.sde.name", c.name, ("psld", "vpsde"))


def build_model(config: Any) -> Model:
    """The model that ``config.model`` and ``config.data`` describe."""
    if config.model.name != "mixture":
        raise unknown("config.model.name", config.model.name, ("mixture",))
    if config.data.name != "digits":
        raise unknown("config.data.name", config.data.name, ("digits",))
    sde = build_sde(config)
    data, _ = assets.digits()
    n = config.data.num_points
    if not 0 <= n <= len(data):
        raise ValueError(f"config.data.num_points={n} must lie in 0 (all) to {len(data)}")
    data = np.asarray(data[: n or None])
    eps_fn = scores.mixture(data, config.model.bandwidth, sde)
    return Model(sde, eps_fn, config, data.shape[1:], data)


def sampler_hyper(config: Any, name: str) -> dict[str, Any]:
    """The hyper-parameters in ``config.sampler.hyper`` that integrator ``name`` has."""
    known = integrators.get(name).hyper
    return {key: value for key, value in config.sampler.hyper.items() if key in known}


def load(name: str, overrides: dict[str, Any] | None = None) -> Model:
    """Open a model: ``load("digits")`` is the embedded data set with its exact score.

    ``overrides`` replaces fields of the configuration: ``load("digits", {"sde.gamma": 0.25, "sde.nu": 4.25})``.

    Raises:
      ValueError: for an unknown name or field (with the nearest known one), or a value out of range.
    """
    if name != "digits":
        raise unknown("model", name, ("digits",))
    return build_model(override(load_config(name), overrides or {}))
