"""Models: a diffusion and what predicts its noise, from a configuration, a directory or a function of your own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import assets, blocks, scores
from psld_jax._runtime.checks import check_array
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_choice, check_kind, unknown
from psld_jax._runtime.journal import fingerprint
from psld_jax.build.configuration import from_dict, load_config, override
from psld_jax.build.parts import build_sde, check_weights, network_options
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.models import families
from psld_jax.models.structure import image_shape
from psld_jax.sampling.settings import Tuned, read_tuned
from psld_jax.sde import LinearSDE

MODELS = ("mixture", "ncsnpp", "ncsnpp_clf", *families.available(), "saved")
# Where a network is, and which of its weights are taken.
_OF_THE_PLACE = ("model.name", "model.checkpoint", "model.weights")
# No array of these networks depends on the size of images, and their originals run at others too.
_CONVOLUTIONAL = ("model.edm.image_size", "model.unet2d.sample_size")
# Fields that do not belong to the stored weights: a network may be run in another precision.
_RUN_TIME = ("model.dtype", "model.dropout", *_CONVOLUTIONAL)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model: the network as ``eps_fn``, its diffusion, and what belongs to them.

    Attributes:
      sde: the diffusion.
      eps_fn: ``eps_fn(z, t)``: a state, leaves ``[n, H, W, C]``, and a scalar time to a state like it.
      config: the configuration, complete and locked.
      image_shape: ``(H, W, C)``.
      data: the data set, float32 ``[m, H, W, C]`` in [-1, 1], where the exact law is known, else ``None``.
      tuned: what ``sampler="auto"`` chooses from.
      n_classes: 0 unless the network takes labels.
    """

    sde: LinearSDE
    eps_fn: Callable[..., Any]
    config: Any
    image_shape: tuple[int, ...]
    data: np.ndarray | None = None
    tuned: tuple[Tuned, ...] = ()
    n_classes: int = 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen digits that tell weights, or the data of an exact score, from others; "" if there are no arrays."""
        # What follows from the diffusion is computed, and differs between machines in the last bits.
        parts = jax.tree.leaves(blocks.as_pytree(self.eps_fn), is_leaf=lambda leaf: isinstance(leaf, TimeFunction))
        return fingerprint(leaf for leaf in parts if isinstance(leaf, (jax.Array, np.ndarray)))

    def denoise(self, z: Any, t: Any) -> jax.Array:
        """Predict ``E[x_0 | z_t = z]``, ``[n, H, W, C]`` in the dtype of ``z``: one evaluation of the network.

        Args:
          z: state of the diffusion at ``t``, a tuple of K arrays ``[n, H, W, C]``; for one block the array will do.
          t: the time, a number in (0, 1]; ``sde.time(sigma)`` is that of a noise level.

        Raises:
          ValueError: for a state of another number of blocks or of integers, several times, or a known time outside of
            (0, 1].
        """
        state = z if isinstance(z, tuple) else (z,)
        if len(state) != self.sde.num_blocks:
            raise ValueError(f"z has {len(state)} blocks, {self.sde!r} has {self.sde.num_blocks}")
        state = self.sde.state(*map(jnp.asarray, state))
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in state):
            raise ValueError(f"z holds {state[0].dtype}, not floating-point numbers: data are in [-1, 1]")
        t = t[0] if jnp.shape(t) == (1,) else t
        if jnp.shape(t):
            raise ValueError(f"t has shape {jnp.shape(t)}, and must be one number: all samples are at the same time")
        matrices = self.sde.denoiser_at(t, state[0].dtype)
        out = self.eps_fn(state, jnp.asarray(t, state[0].dtype))
        return blocks.apply(matrices, (*state, *out))[0]


def check_model(model: Any) -> None:
    """Raise a ``ValueError`` unless ``model`` is a :class:`Model`."""
    check_kind("model", model, Model, "a model: psld_jax.load opens one, from_function and from_denoiser make one")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of noisy states, for guidance by a label.

    Attributes:
      sde: the diffusion of the states.
      logits_fn: ``logits_fn(z, t)``: a state, leaves ``[n, H, W, C]``, and a scalar time to ``[n, n_classes]``.
      config: the configuration, complete and locked.
      image_shape: ``(H, W, C)``.
      n_classes: how many.
    """

    sde: LinearSDE
    logits_fn: Callable[..., Any]
    config: Any
    image_shape: tuple[int, ...]
    n_classes: int


def build_model(config: Any) -> Model | Classifier:
    """Make the model that ``config`` describes: the exact score of its data, or a network with its weights.

    Raises:
      ValueError: for unknown names, values out of range, or weights that are missing or do not fit.
    """
    name = config.model.name
    check_choice("config.model.name", name, MODELS)
    return _mixture_model(config) if name == "mixture" else _saved_model(config)


def _mixture_model(config: Any) -> Model:
    if config.data.name != "digits":
        raise unknown("config.data.name", config.data.name, ("digits",))
    sde = build_sde(config)
    data, _ = assets.digits()
    n = config.data.num_points
    if not 0 <= n <= len(data):
        raise ValueError(f"config.data.num_points={n} must lie in 0 (all) to {len(data)}")
    data = np.asarray(data[: n or None])
    eps_fn = scores.mixture(data, config.model.bandwidth, sde)
    return Model(sde, eps_fn, config, data.shape[1:], data, _tuned(config, sde, assets.DIGITS_SAMPLERS))


def _saved_model(config: Any) -> Model | Classifier:
    """Open the network in ``config.model.checkpoint``. A configuration that describes a network must agree with it."""
    m = config.model
    if not m.checkpoint:
        raise ValueError(f"config.model.name={m.name!r} needs weights: give a directory in config.model.checkpoint")
    stored, params = open_network(m.checkpoint, m.weights)
    own = _network_fields(config)
    if m.name != "saved":
        differences = [
            f"{name} is {own[name]!r}, stored is {value!r}"
            for name, value in _network_fields(stored).items()
            if own[name] not in (value, None) and name not in _RUN_TIME
        ]
        if differences:
            raise ValueError(
                f"the configuration disagrees with {m.checkpoint}: {'; '.join(differences)}. "
                "config.model.name='saved' takes what is stored"
            )
    else:
        default = _network_fields(load_config("default"))
        told = {name: value for name, value in own.items() if value != default.get(name)}
        _check_told(stored, told, m.checkpoint)
        own = told
    merged = config.copy_and_resolve_references()
    with merged.unlocked():
        merged.model, merged.sde = stored.model, stored.sde
        merged.model.dtype = m.dtype
    return network_model(override(merged, {name: own[name] for name in _CONVOLUTIONAL if name in own}), params)


def _network_fields(config: Any) -> dict[str, Any]:
    """Return the fields of network and diffusion by dotted name, those of inner sections too."""
    return checkpoint.flatten({section: config[section].to_dict() for section in ("model", "sde")}, separator=".")


def _check_told(stored: Any, told: dict[str, Any], place: str) -> None:
    """Raise a ``ValueError`` for a field of network or diffusion that was set to something else than is stored."""
    trained = _network_fields(stored)
    for name, value in told.items():
        if name not in (*_RUN_TIME, *_OF_THE_PLACE) and name in trained and trained[name] != value:
            raise ValueError(
                f"config.{name}={value!r} contradicts {place}, which was trained with {trained[name]!r}: a network "
                "runs as it was trained. Leave the field out"
            )


def open_network(directory: str, weights: str, overrides: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Open configuration and arrays of a saved network, or one that ships; the configuration says where they are from.

    A checkpoint of another library is converted into the user's cache; ``overrides`` are what it cannot tell.

    Raises:
      ValueError: for the digits, and for what holds no network.
    """
    if directory == "digits" and not Path(directory).exists():
        raise ValueError("'digits' is an exact score without weights, and no network; --config digits samples it")
    place = _place(directory)
    if directory not in assets.NETWORKS:
        cache = importlib.import_module("psld_jax.convert.cache")  # which imports this module, to write configurations
        if cache.is_foreign(place):
            place = cache.converted(place, overrides or {}, weights)
            directory = str(place)
    latest = checkpoint.latest_training(place)
    if latest is None:
        stored, params = checkpoint.read_converted(place, weights or None)
    else:
        stored, params = checkpoint.read_training(latest, weights or None)
    return override(from_dict(stored), {"model.checkpoint": directory, "model.weights": weights}), params


def network_model(config: Any, params: dict[str, Any]) -> Model | Classifier:
    """Make the network that ``config.model`` describes with the arrays ``params``, a nested dict.

    Raises:
      ValueError: if the arrays are not those of that network, by name and shape.
    """
    abstract = check_weights(config, params, "the weights")
    for path, array in checkpoint.flatten(params).items():
        check_array(f"weights {path!r}", array)
    sde = build_sde(config)
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, jax.device_put(params))  # jnp.asarray compiles a program for each shape
    net, m = nnx.merge(graph, state), config.model
    shape = (*image_shape(m.image_size), m.in_ch // sde.num_blocks)
    if m.name == "ncsnpp_clf":
        return Classifier(sde, scores.classifier(net), config, shape, m.n_classes)
    samplers = _place(m.checkpoint) / "samplers.json" if m.checkpoint else None  # a network in training has no place
    tuned = _tuned(config, sde, samplers)
    if m.name in families.available():
        options = network_options(config)
        score = scores.family(net, sde, options)
        return Model(sde, score, config, options.image_shape, tuned=tuned, n_classes=options.n_classes)
    return Model(sde, scores.network(net, sde), config, shape, tuned=tuned, n_classes=m.num_labels)


def _place(name: str) -> Path:
    """Return the directory of a saved network, or of one that ships."""
    return assets.network(name) if name in assets.NETWORKS else Path(name)


def tuned_for(config: Any, sde: LinearSDE) -> str:
    """Identify what tuned samplers belong to: another diffusion, or exact score, needs others."""
    exact = config.model.name == "mixture"
    return f"{sde!r}, " + (f"bandwidth={config.model.bandwidth}" if exact else f"data_std={sde.data_std}")


def _tuned(config: Any, sde: LinearSDE, place: Path | None) -> tuple[Tuned, ...]:
    """Read the tuned samplers in ``config.sampler.tuned``, else those in ``place`` if they are for this model."""
    chosen, wanted = config.sampler.tuned, tuned_for(config, sde)
    source = Path(chosen) if chosen else place
    if source is None or not (chosen or source.is_file()):
        return ()
    belongs_to, rows = read_tuned(source)
    if belongs_to == wanted:
        return rows
    if chosen:
        raise _not_tuned_for("config.sampler.tuned", chosen, belongs_to, wanted)
    return ()


def tuned_rows(model: Model, path: str) -> tuple[Tuned, ...]:
    """Read the settings of every sampler in ``config.evaluate.tuned``; none if it is empty.

    Raises:
      ValueError: if it is no such file, or of another model.
    """
    if not path:
        return ()
    (belongs_to, rows), wanted = read_tuned(Path(path), "rows"), tuned_for(model.config, model.sde)
    if belongs_to != wanted:
        raise _not_tuned_for("config.evaluate.tuned", path, belongs_to, wanted)
    return rows


def _not_tuned_for(field: str, value: str, belongs_to: str, wanted: str) -> ValueError:
    return ValueError(f"{field}={value!r} was tuned for {belongs_to}; this model is {wanted}")


def load(name: str | os.PathLike[str], overrides: dict[str, Any] | None = None) -> Any:
    """Open a model that ships with the package, or one that you have trained or converted.

    ``load("mnist")`` is a network trained on MNIST, ``load("mnist_clf")`` its noise-conditional classifier,
    ``load("emoji")`` a network of emoji in colour with labels, ``load("digits")`` a small embedded data set with its
    exact score, ``load(DIR)`` a saved network, and ``load(FILE)`` a checkpoint of another library that ``python -m
    convert`` reads: it is converted into the user's cache, once.

    Args:
      name: one of these names, a directory that the converter or ``--mode export`` wrote, the work directory of a
        training run (its latest checkpoint), or a file or directory of another library.
      overrides: fields of the configuration to replace: ``load("digits", {"sde.gamma": 0.25, "sde.nu": 4.25})``,
        ``load(DIR, {"model.weights": "online", "model.dtype": "bfloat16"})``. Of another library's file also what it
        cannot tell.

    Returns:
      A :class:`Model`, or a :class:`Classifier` if that is what the directory holds.

    Raises:
      ValueError: for an unknown name or field (with the nearest known one), a value out of range, or a directory that
        holds no model.
    """
    check_kind("name", name, (str, os.PathLike), "text, or a path")
    check_kind("overrides", overrides, (dict, type(None)), "a dictionary, {'sampler.nfe': 10}")
    if isinstance(name, os.PathLike):  # what is there is meant, also if a model that ships has its name
        name = os.path.join(".", name) if Path(name).exists() else os.fspath(name)
    if not str(name).strip() or "\0" in str(name):
        raise ValueError(f"name={str(name)!r} must be a model that ships, or a path; '.' is the current directory")
    if name == "digits":
        return build_model(override(load_config("digits"), overrides or {}))
    if name not in assets.NETWORKS and not Path(name).exists():
        raise unknown("model", str(name), ("digits", *assets.NETWORKS, "a directory or checkpoint with a model"))
    overrides = overrides or {}
    stored, params = open_network(str(name), overrides.get("model.weights", ""), overrides)
    overrides = {key: value for key, value in overrides.items() if key != "model.checkpoint"}
    config = override(stored, overrides)
    _check_told(stored, overrides, str(name))
    return network_model(config, params)
