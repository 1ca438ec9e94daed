"""The parts of a configuration: diffusion, network options, data, loss, optimiser, options of a sampler."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import optax
from flax import nnx

from psld_jax import integrators
from psld_jax._runtime.errors import check_choice
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.data import Dataset, open_dataset
from psld_jax.integrators.baselines import LAST_STEPS
from psld_jax.models import NCSNppConfig, abstract, families
from psld_jax.models.structure import image_shape, image_size
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.scores.family import told as told_by
from psld_jax.sde import CLD, LinearSDE, OneBlock, named
from psld_jax.training import losses, optim

TRAINABLE = ("ncsnpp", "ncsnpp_clf", *families.available())


def build_sde(config: Any) -> LinearSDE:
    """Build the SDE that ``config.sde`` describes, for what the network in ``config.model`` predicts.

    That is preconditioned if ``config.model.data_std`` is positive; for a network with a section of its own, what its
    options say.

    Raises:
      ValueError: for an unknown name, values out of range, or a network that is trained for another kind of diffusion.
    """
    name, m = config.sde.name, config.model
    check_choice("config.sde.name", name, named.available())
    given = {key: config.sde[key] for key in named.parameters(name) if config.sde[key] is not None}
    sde = named.get(name, **given)
    if m.name not in families.available():
        return sde if m.data_std == 0 else sde.preconditioned(m.data_std)
    if not isinstance(sde, OneBlock) or m.data_std:
        raise ValueError(
            f"config.model.name={m.name!r} needs a path of one block and config.model.data_std=0, not {sde!r} with "
            f"config.model.data_std={m.data_std}"
        )
    return sde.predicting(network_options(config).predicts)


def network_options(config: Any) -> Any:
    """Return the options of the network in ``config.model``: of NCSN++, or those in the section of its family.

    Raises:
      ValueError: for values out of range.
    """
    m = config.model
    if m.name not in families.available():
        return NCSNppConfig(**{field.name: m[field.name] for field in dataclasses.fields(NCSNppConfig)})
    known = [field.name for field in dataclasses.fields(families.get(m.name).options)]
    shared = {name: m[name] for name in families.SHARED if name in known}
    return families.options(m.name, {**m[m.name], **shared})


def network_images(config: Any) -> tuple[int, int, int]:
    """Return ``(H, W, C)`` of the images that the network in ``config.model`` takes.

    Raises:
      ValueError: for values out of range, or channels that the blocks of the diffusion do not divide.
    """
    m, blocks = config.model, build_sde(config).num_blocks
    if m.name in families.available():
        return network_options(config).image_shape
    if m.in_ch % blocks:
        raise ValueError(f"config.model.in_ch={m.in_ch} must be divisible by the {blocks} blocks of {config.sde.name}")
    return (*image_shape(m.image_size), m.in_ch // blocks)


def abstract_network(config: Any) -> Any:
    """Make the network that ``config.model`` describes with shapes in place of arrays. Nothing is allocated."""
    m, options = config.model, network_options(config)
    if m.name in families.available():
        return families.abstract(m.name, options)
    return abstract(options, m.n_classes if m.name == "ncsnpp_clf" else None)


def check_weights(config: Any, params: Any, what: str) -> Any:
    """Return :func:`abstract_network` if ``params``, a nested dict, are its arrays by name and shape.

    Raises:
      ValueError: if they are not; ``what`` they are begins the message.
    """
    network = abstract_network(config)
    expected = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(network))}
    given = {path: np.shape(array) for path, array in checkpoint.flatten(params).items()}
    if given != expected:
        wrong = sorted(path for path in {*given, *expected} if given.get(path) != expected.get(path))
        listed = ", ".join(f"{path} {given.get(path)} for {expected.get(path)}" for path in wrong[:5])
        raise ValueError(f"{what} do not fit the configuration in {len(wrong)} arrays: {listed}")
    return network


def build_data(config: Any, split: str) -> Dataset:
    """Open the ``"train"`` or ``"test"`` split of ``config.data``, as the network in ``config.model`` takes it.

    Raises:
      ValueError: for data that cannot be read or do not fit the network.
    """
    if config.model.name not in TRAINABLE:
        raise ValueError(
            f"config.model.name={config.model.name!r} cannot be trained; it must be one of {TRAINABLE}. "
            "A configuration that has a network is e.g. --config mnist, with --config.data.name=digits for the digits"
        )
    c, m = config.data, config.model
    classes = m.n_classes if m.name == "ncsnpp_clf" else m.num_labels
    *size, channels = network_images(config)
    data = open_dataset(
        c.name,
        c.path,
        split,
        image_size=image_size(size),
        fit=c.fit,
        center_crop=c.center_crop,
        channels=channels,
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
    """Open the test split, or the images set aside by ``config.data.holdout``; ``None`` if neither is wanted."""
    return build_data(config, "test") if config.train.eval_every and config.train.eval_images else None


def build_loss(config: Any) -> losses.ScoreLoss | losses.ClassifierLoss:
    """Build the loss that ``config.train`` asks for.

    Raises:
      ValueError: for an unknown choice, or an objective whose score ``config.sde`` does not mean.
    """
    c, m, sde = config.train, config.model, build_sde(config)
    if m.name == "ncsnpp_clf":
        return losses.ClassifierLoss(sde, objective=c.objective, reduce_mean=c.reduce_mean)
    if isinstance(sde, CLD) and c.objective != sde.objective:
        raise ValueError(
            f"config.train.objective={c.objective!r} must be {sde.objective!r}, as config.sde.objective is: samplers "
            "scale what the network predicts by that covariance"
        )
    options = network_options(config)
    choices = {"objective": c.objective, "weighting": c.weighting, "norm": c.norm, "reduce_mean": c.reduce_mean}
    choices |= {"noise": c.noise, "log_sigma": (c.noise_mean, c.noise_std)}
    if m.name not in families.available():
        return losses.ScoreLoss(sde, m.in_ch, options.returned_ch, **choices)
    channels, weight = options.image_shape[-1], getattr(options, "level_weight", None)
    assert isinstance(sde, OneBlock)  # as build_sde says
    told = functools.partial(told_by, options.clock, sde)
    return losses.ScoreLoss(sde, channels, channels, **choices, told=told, level_weight=weight)


def build_optimizer(config: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build the optimiser that ``config.train`` asks for, and its learning rate."""
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


def sampler_hyper(config: Any, name: str) -> dict[str, Any]:
    """Return the hyper-parameters in ``config.sampler.hyper`` that ``name`` has: none if it is adaptive or ``"auto"``.

    What is ``None`` there is not set: the sampler has a default of its own.
    """
    if name == "auto" or name in SOLVERS:
        return {}
    known = integrators.get(name).hyper
    return {key: value for key, value in config.sampler.hyper.items() if key in known and value is not None}


def sampler_options(config: Any) -> dict[str, Any]:
    """Return what ``config`` says of the sampler, as keyword arguments of :func:`psld_jax.generate_states`."""
    c = config.sampler
    options = {name: c[name] for name in ("nfe", "grid", "rho", "rtol", "atol", "max_steps")}
    options |= {name: tuple(c[name]) for name in ("sigmas", "timesteps") if c[name]}
    options |= {"solver": c.solver} if c.solver else {}
    options |= {"t_end": c.t_end or None, "t_start": c.t_start or None, "denoise": last_step(config)}
    return {"sampler": c.name, "seed": config.seed, **options, **sampler_hyper(config, c.name)}


def last_step(config: Any) -> bool | str:
    """Return the argument ``denoise`` of samplers: how samples get from the end of a grid to the data.

    Raises:
      ValueError: for an unknown ``config.sampler.last_step``.
    """
    c = config.sampler
    check_choice("config.sampler.last_step", c.last_step, ("auto", *LAST_STEPS))
    return c.denoise and (True if c.last_step == "auto" else c.last_step)
