"""The only reader of configurations: turns a ConfigDict into objects."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from psld_jax import assets, checkpoint, integrators, losses, operators, optim, scores
from psld_jax.data import Dataset, open_dataset
from psld_jax.errors import check_choice, is_count, unknown
from psld_jax.inpainting import check_mask
from psld_jax.models import NCSNpp, NCSNppClassifier, NCSNppConfig, abstract
from psld_jax.sde import LinearSDE, named
from psld_jax.settings import Tuned, read_tuned
from psld_jax.solve import SOLVERS

_HERE = Path(__file__).resolve().parent

MODELS = ("mixture", "ncsnpp", "ncsnpp_clf", "saved")
# Fields of config.model that do not belong to the stored weights: a network may be run in another precision.
_RUN_TIME = ("dtype", "dropout")
TRAINABLE = ("ncsnpp", "ncsnpp_clf")


@dataclasses.dataclass(frozen=True)
class Model:
    """What a sampler needs.

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


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of noisy states.

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
    config, known = config.copy_and_resolve_references(), fields(config)
    for name, value in values.items():
        check_choice("config field", name, known)
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
        check_choice("config field", name.removeprefix("config."), known)


def from_dict(values: dict[str, Any]) -> Any:
    """The default configuration with the values of a configuration that was stored as JSON.

    Raises:
      ValueError: for a field that does not exist (with the nearest that does), or a value of the wrong type.
    """
    flat = checkpoint.flatten(values, separator=".")
    flat = {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}
    return override(load_config("default"), flat)


def build_sde(config: Any) -> LinearSDE:
    """The SDE that ``config.sde`` describes, preconditioned if ``config.model.data_std`` is positive.

    Raises:
      ValueError: for an unknown name, or values out of range.
    """
    name = config.sde.name
    check_choice("config.sde.name", name, named.available())
    sde = named.get(name, **{key: config.sde[key] for key in named.parameters(name)})
    return sde if config.model.data_std == 0 else sde.preconditioned(config.model.data_std)


def network_options(config: Any) -> NCSNppConfig:
    """The options of NCSN++ in ``config.model``."""
    return NCSNppConfig(**{field.name: config.model[field.name] for field in dataclasses.fields(NCSNppConfig)})


def abstract_network(config: Any) -> NCSNpp | NCSNppClassifier:
    """The network that ``config.model`` describes, with shapes in place of arrays: nothing is allocated."""
    return abstract(network_options(config), config.model.n_classes if config.model.name == "ncsnpp_clf" else None)


def build_model(config: Any) -> Model | Classifier:
    """The model that ``config`` describes: the exact score of its data, or a network with its weights.

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
    """The network in ``config.model.checkpoint``; a configuration that describes a network must agree with it."""
    m = config.model
    if not m.checkpoint:
        raise ValueError(f"config.model.name={m.name!r} needs weights: give a directory in config.model.checkpoint")
    stored, params = _open(m.checkpoint, m.weights)
    if m.name != "saved":
        differences = [
            f"{section}.{key} is {config[section][key]!r}, stored is {value!r}"
            for section in ("model", "sde")
            for key, value in stored[section].items()
            if config[section][key] != value and key not in _RUN_TIME
        ]
        if differences:
            raise ValueError(
                f"the configuration disagrees with {m.checkpoint}: {'; '.join(differences)}. "
                "config.model.name='saved' takes what is stored"
            )
    merged = config.copy_and_resolve_references()
    with merged.unlocked():
        merged.model, merged.sde = stored.model, stored.sde
        merged.model.dtype = m.dtype
    return network_model(merged.lock(), params)


def _open(directory: str, weights: str) -> tuple[Any, dict[str, Any]]:
    """Configuration and arrays of a saved network, or of one that ships; the configuration says where they are from."""
    place = _place(directory)
    latest = checkpoint.latest_training(place)
    if latest is None:
        stored, params = checkpoint.read_converted(place, weights or None)
    else:
        stored, params = checkpoint.read_training(latest, weights or None)
    return override(from_dict(stored), {"model.checkpoint": directory, "model.weights": weights}), params


def network_model(config: Any, params: dict[str, Any]) -> Model | Classifier:
    """The network that ``config.model`` describes with the arrays ``params``, a nested dict.

    Raises:
      ValueError: if the arrays are not those of that network, by name and shape.
    """
    sde, net = build_sde(config), abstract_network(config)
    graph, state = nnx.split(net)
    expected = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    given = {path: np.shape(array) for path, array in checkpoint.flatten(params).items()}
    if given != expected:
        wrong = sorted(path for path in {*given, *expected} if given.get(path) != expected.get(path))
        listed = ", ".join(f"{path} {given.get(path)} for {expected.get(path)}" for path in wrong[:5])
        raise ValueError(f"the weights do not fit the configuration in {len(wrong)} arrays: {listed}")
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    net, m = nnx.merge(graph, state), config.model
    shape = (m.image_size, m.image_size, m.in_ch // sde.num_blocks)
    if m.name == "ncsnpp_clf":
        return Classifier(sde, scores.classifier(net), config, shape, m.n_classes)
    samplers = _place(m.checkpoint) / "samplers.json" if m.checkpoint else None  # a network in training has no place
    tuned = _tuned(config, sde, samplers)
    return Model(sde, scores.network(net, sde), config, shape, tuned=tuned, n_classes=m.num_labels)


def _place(name: str) -> Path:
    """The directory of a saved network, or of one that ships."""
    return assets.network(name) if name in assets.NETWORKS else Path(name)


def tuned_for(config: Any, sde: LinearSDE) -> str:
    """What tuned samplers belong to: another diffusion, or exact score, needs others."""
    exact = config.model.name == "mixture"
    return f"{sde!r}, " + (f"bandwidth={config.model.bandwidth}" if exact else f"data_std={sde.data_std}")


def _tuned(config: Any, sde: LinearSDE, place: Path | None) -> tuple[Tuned, ...]:
    """The tuned samplers in ``config.sampler.tuned``; without one, those in ``place`` if they are for this model."""
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
    """The settings of every sampler in ``config.evaluate.tuned``; none if it is empty.

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


def build_data(config: Any, split: str) -> Dataset:
    """The ``"train"`` or ``"test"`` split of the data in ``config.data``, as the network in ``config.model`` takes it.

    Raises:
      ValueError: for data that cannot be read or do not fit the network.
    """
    if config.model.name not in TRAINABLE:
        raise ValueError(f"config.model.name={config.model.name!r} cannot be trained; it must be one of {TRAINABLE}")
    c, m = config.data, config.model
    blocks, classes = build_sde(config).num_blocks, m.n_classes if m.name == "ncsnpp_clf" else m.num_labels
    if m.in_ch % blocks:
        raise ValueError(f"config.model.in_ch={m.in_ch} must be divisible by the {blocks} blocks of {config.sde.name}")
    data = open_dataset(
        c.name,
        c.path,
        split,
        image_size=m.image_size,
        fit=c.fit,
        center_crop=c.center_crop,
        channels=m.in_ch // blocks,
        convert_channels=c.convert_channels,
        on_corrupt=c.on_corrupt,
        holdout=c.holdout,
        num_points=c.num_points if split == "train" else 0,
        labels=classes > 0,
    )
    if classes and (data.class_names is None or len(data.class_names) != classes):
        found = "no labels" if data.class_names is None else f"{len(data.class_names)} classes"
        field = "n_classes" if m.name == "ncsnpp_clf" else "num_labels"
        raise ValueError(f"config.model.{field}={classes}, but {data.describe()} has {found}")
    return data


def build_held_out(config: Any) -> Dataset | None:
    """The test split, or the images set aside by ``config.data.holdout``; ``None`` if neither is wanted."""
    return build_data(config, "test") if config.train.eval_every and config.train.eval_images else None


def build_loss(config: Any) -> losses.ScoreLoss | losses.ClassifierLoss:
    """The loss that ``config.train`` asks for."""
    c, m, sde = config.train, config.model, build_sde(config)
    if m.name == "ncsnpp_clf":
        return losses.ClassifierLoss(sde, objective=c.objective, reduce_mean=c.reduce_mean)
    return losses.ScoreLoss(
        sde,
        m.in_ch,
        m.out_ch if m.progressive != "output_skip" else m.in_ch,
        objective=c.objective,
        weighting=c.weighting,
        norm=c.norm,
        reduce_mean=c.reduce_mean,
    )


def build_optimizer(config: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser that ``config.train`` asks for, and its learning rate."""
    c = config.train
    rate = optim.learning_rate(c.lr, c.warmup, c.schedule, c.steps, c.lr_final)
    transformation = optim.optimizer(
        c.optimizer,
        rate,
        beta_1=c.beta_1,
        beta_2=c.beta_2,
        eps=c.adam_eps,
        weight_decay=c.weight_decay,
        grad_clip=c.grad_clip,
    )
    return transformation, rate


def initial_network(config: Any) -> NCSNpp | NCSNppClassifier:
    """The network that ``config.model`` describes: initial weights from ``config.seed``, then ``config.train.init``.

    Raises:
      ValueError: if the network in ``config.train.init`` has arrays that this one has not, or of another shape.
    """
    options, rngs = network_options(config), nnx.Rngs(params=config.seed)
    if config.model.name == "ncsnpp_clf":
        net = NCSNppClassifier(options, config.model.n_classes, rngs=rngs)
    else:
        net = NCSNpp(options, rngs=rngs)
    if not config.train.init:
        return net
    graph, state = nnx.split(net)
    own = checkpoint.flatten(_text_keys(nnx.to_pure_dict(state)))
    given = checkpoint.flatten(_open(config.train.init, "")[1])
    wrong = [path for path in given if path not in own or own[path].shape != given[path].shape]
    if wrong:
        raise ValueError(f"config.train.init={config.train.init!r} does not fit the network in {', '.join(wrong[:5])}")
    merged = checkpoint.unflatten((path.split("/"), jnp.asarray(given.get(path, array))) for path, array in own.items())
    nnx.replace_by_pure_dict(state, merged)
    return nnx.merge(graph, state)


def _text_keys(tree: Any) -> Any:
    return {str(key): _text_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def sampler_hyper(config: Any, name: str) -> dict[str, Any]:
    """The hyper-parameters in ``config.sampler.hyper`` that ``name`` has: none, if it is adaptive or ``"auto"``."""
    if name == "auto" or name in SOLVERS:
        return {}
    known = integrators.get(name).hyper
    return {key: value for key, value in config.sampler.hyper.items() if key in known}


def sampler_options(config: Any) -> dict[str, Any]:
    """What ``config`` says of the sampler, as keyword arguments of :func:`psld_jax.generate_states`."""
    c = config.sampler
    options = {name: c[name] for name in ("nfe", "grid", "rho", "t_end", "denoise", "rtol", "atol")}
    return {"sampler": c.name, "seed": config.seed, **options, **sampler_hyper(config, c.name)}


def steer_options(config: Any, model: Model) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray | None]:
    """What ``config.steer`` asks for, as fields of :class:`psld_jax.steering.Steering`.

    Returns:
      The fields; the images that known pixels or a measurement are taken from, and what the sampler sees of them as
      images of the same size, float32 ``[n, H, W, C]`` in [-1, 1]; ``None`` if there are none.

    Raises:
      ValueError: for an unknown mask or operator, or without images to take them from.
    """
    c, n = config.steer, config.sampling.num_samples
    options: dict[str, Any] = {}
    if c.labels:
        options["label"] = np.resize(np.asarray(c.labels), n)
        options |= {"guidance": c.guidance, "classifier": c.classifier or None, "interval": tuple(c.interval)}
    elif c.classifier:
        raise ValueError("config.steer.classifier guides towards config.steer.labels, which is empty")
    if not (c.mask or c.operator):
        return options, None, None
    truth = seen = test_images(model, n)
    if len(truth) < n:
        raise ValueError(f"config.sampling.num_samples={n} is more than the {len(truth)} test images")
    if c.mask:
        if c.mask.endswith(".npy"):
            mask = np.load(c.mask, allow_pickle=False)[None, ..., None]
        else:
            mask = operators.half_mask(c.mask, model.image_shape)
        options |= {"known": truth, "mask": mask, "fresh": c.fresh, "resample": c.resample, "jump": c.jump}
        check_mask(mask, truth.shape)
        seen = np.where(mask == 1, truth, 0).astype(np.float32)
    if c.operator:
        operator = operators.by_name(c.operator, factor=c.factor, std=c.blur)
        clean = np.asarray(operator(jnp.asarray(truth)))
        noise = np.random.default_rng(config.seed).standard_normal(clean.shape)
        measurement = (clean + c.noise_std * noise).astype(np.float32)
        options |= {
            "operator": operator,
            "measurement": measurement,
            "noise_std": c.noise_std,
            "posterior": c.posterior,
        }
        repeats = [size // small for size, small in zip(truth.shape[1:3], measurement.shape[1:3], strict=True)]
        seen = measurement.repeat(repeats[0], axis=1).repeat(repeats[1], axis=2)
    return options, truth, seen


def test_images(model: Model, n: int) -> np.ndarray:
    """The first ``n`` test images of ``config.data``, or those that an exact score was made of; fewer, if there are.

    Float32 ``[n, H, W, C]`` in [-1, 1].
    """
    if model.data is not None:
        return model.data[:n]
    data = build_data(model.config, "test")
    return to_images(data, np.arange(min(n, len(data))))


def to_images(data: Dataset, numbers: np.ndarray) -> np.ndarray:
    """Images of a data set, float32 ``[n, H, W, C]`` in [-1, 1], for ``numbers [n]``."""
    return data.gather(numbers)[0] / np.float32(127.5) - 1


def from_function(
    predict: Callable[[Any, Any], Any], sde: LinearSDE, image_shape: tuple[int, int, int], **options: Any
) -> Model:
    """A model of your own network, which :func:`psld_jax.generate`, ``tune`` and all else take.

    Args:
      predict: function of images ``[n, H, W, K C]`` and times ``[n]``, see :func:`psld_jax.scores.function`.
      sde: the diffusion it was trained for, e.g. ``psld_jax.sde.VPSDE(0.1, 20.0)``.
      image_shape: ``(H, W, C)``.
      options: ``predicts``, ``times`` and ``channels_first`` of :func:`psld_jax.scores.function`.

    Raises:
      ValueError: for a shape that is no such triple, or as that function does.
    """
    if len(image_shape) != 3 or not all(is_count(size) for size in image_shape):
        raise ValueError(f"image_shape={image_shape!r} must be (H, W, C), whole numbers of at least 1")
    config = override(load_config("default"), {"model.name": "function"})
    return Model(sde, scores.function(predict, sde, **options), config, tuple(image_shape))


def load(name: str | os.PathLike[str], overrides: dict[str, Any] | None = None) -> Any:
    """Open a model that ships with the package, or one that you have trained or converted.

    ``load("mnist")`` is a network trained on MNIST, ``load("mnist_clf")`` its noise-conditional classifier,
    ``load("digits")`` a small embedded data set with its exact score, ``load(DIR)`` a saved network.

    Args:
      name: one of these names, a directory that the converter or ``--mode export`` wrote, or the work directory of a
        training run (its latest checkpoint).
      overrides: fields of the configuration to replace: ``load("digits", {"sde.gamma": 0.25, "sde.nu": 4.25})``,
        ``load(DIR, {"model.weights": "online", "model.dtype": "bfloat16"})``.

    Returns:
      A :class:`Model`, or a :class:`Classifier` if that is what the directory holds.

    Raises:
      ValueError: for an unknown name or field (with the nearest known one), a value out of range, or a directory that
        holds no model.
    """
    if name == "digits":
        return build_model(override(load_config("digits"), overrides or {}))
    if name not in assets.NETWORKS and not Path(name).is_dir():
        raise unknown("model", str(name), ("digits", *assets.NETWORKS, "a directory with a model"))
    overrides = overrides or {}
    stored, params = _open(str(name), overrides.get("model.weights", ""))
    return network_model(override(stored, overrides), params)
