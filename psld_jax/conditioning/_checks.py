"""Checks of conditions: whether they belong together and fit a model. Each raises a ``ValueError`` of one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_known, check_number
from psld_jax._runtime.errors import check_choice, shown
from psld_jax.build import Classifier, Model
from psld_jax.conditioning.momentum import check_momentum
from psld_jax.conditioning.weights import RULES, as_rescale, check_interval, schedule_of

Array = Any

_WHOLE = (0.0, 1.0)


def check_pairs(s: Any) -> None:
    """Check that conditions ``s`` have both of two fields that belong together.

    Raises:
      ValueError: for one without the other, or two that exclude each other.
    """
    for pair in (("known", "mask"), ("operator", "measurement")):
        given = [name for name in pair if getattr(s, name) is not None]
        if len(given) == 1:
            raise ValueError(f"{pair[0]} and {pair[1]} belong together; only {given[0]} was given")
    if s.label is None and s.classifier is not None:
        raise ValueError("a classifier guides towards a label: give label=...")
    if s.classifier is not None and s.negative is not None:
        raise ValueError("classifier and negative are two ways of guidance; give one of them")


def check_guidance(s: Any) -> None:
    """Check the numbers of guidance of conditions ``s``, and that there is something for them to act on.

    Raises:
      ValueError: for a number or name out of range, or one that would have no effect.
    """
    check_number("guidance", s.guidance, 0)
    check_interval(s.interval)
    schedule_of(s.guidance_schedule)
    check_choice("guidance_rule", s.guidance_rule, RULES)
    as_rescale(s.guidance_rescale)
    check_momentum(s.momentum, s.momentum_decay)
    if s.sigma_interval is not None and tuple(s.interval) != _WHOLE:
        raise ValueError("interval and sigma_interval say the same thing, in time and in noise levels; give one")
    if s.negative is not None and s.guidance == 1:
        raise ValueError("negative without guidance has no effect: give guidance=..., e.g. 2.0")
    options = {
        "interval": tuple(s.interval) != _WHOLE,
        "sigma_interval": s.sigma_interval is not None,
        "guidance_schedule": s.guidance_schedule != "constant",
        "guidance_rule": s.guidance_rule != "cfg",
        "guidance_rescale": s.guidance_rescale != 0,
    }
    used = [name for name, given in options.items() if given]
    guided = s.label is not None or s.negative is not None
    if used and not guided and not s.by_gradient:
        what = "posterior='conjugate' has its weight in the table" if s.integrated else "there is no guidance"
        raise ValueError(f"{used[0]} has no effect, since {what}: give label, negative, or an operator with 'pigdm'")
    if s.guidance_rule == "cfg++":
        if len(used) > 1:
            other = next(name for name in used if name != "guidance_rule")
            raise ValueError(f"guidance_rule='cfg++' has weights of its own: leave {other} out")
        scales = {"guidance": s.guidance if guided else 0.0}
        if s.by_gradient:
            scales["null_weight" if s.integrated else "weight"] = s.null_weight if s.integrated else s.weight or 0.0
        for name, scale in scales.items():
            if scale > 1:
                raise ValueError(f"{name}={shown(scale)} must be at most 1 with guidance_rule='cfg++'")


def check_used(s: Any) -> None:
    """Check that there is something for the numbers and names of conditions ``s`` to act on.

    Raises:
      ValueError: for one that differs from its default and would have no effect.
    """
    of_measurement = ("t_start", "weight", "noise_std", "posterior")
    needs = [(name, s.operator is not None, "operator=... and measurement=...") for name in of_measurement]
    guided = s.label is not None or s.negative is not None
    needs += [
        ("guidance", guided, "label=... or negative=... (weight=... is of a measurement)"),
        ("fresh", s.known is not None, "known=... and mask=..."),
        ("momentum_decay", s.momentum != 0, "momentum=..."),
    ]
    defaults = {field.name: field.default for field in dataclasses.fields(s)}
    for name, met, what in needs:
        value = getattr(s, name)
        if not met and value != defaults[name]:
            raise ValueError(f"{name}={shown(value)} has no effect by itself: give {what}")


def check_clip(s: Any) -> None:
    """Check how conditions ``s`` clip predicted images.

    Raises:
      ValueError: for a number or name out of range, or one that would have no effect.
    """
    check_choice("clip_noise", s.clip_noise, ("new", "old"))
    if s.clip is not None:
        check_number("clip", s.clip, 0, strict=True)
        if s.clip_percentile is not None:
            check_number("clip_percentile", s.clip_percentile, 0, 100, strict=True)
    elif s.clip_percentile is not None or s.clip_noise != "new":
        raise ValueError("clip_percentile and clip_noise have no effect without clip=..., e.g. 1.0")


def check_negative(negative: Any, model: Model, labelled: bool) -> None:
    """Check that a worse model has the same images, diffusion and prediction as ``model``.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(negative, Model):
        raise ValueError(f"negative={shown(negative)} must be a model, or the name of one (psld_jax.load)")
    for name in ("prediction", "data_std"):
        own, other = getattr(model.sde, name, None), getattr(negative.sde, name, None)
        if repr(negative.sde) != repr(model.sde) or own != other:
            raise ValueError(
                f"negative is of {negative.sde!r} ({name}={other}), the model of {model.sde!r} ({name}={own}): "
                "both must predict the same thing"
            )
    if negative.image_shape != model.image_shape:
        raise ValueError(f"negative is of images {negative.image_shape}, the model of {model.image_shape}")
    if getattr(negative.eps_fn, "needs_labels", False) and not labelled:
        raise ValueError("negative was only trained with labels: give label=...")


def check_classifier(classifier: Any, model: Model) -> None:
    """Check that a classifier belongs to the diffusion and the images of ``model``.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(classifier, Classifier):
        raise ValueError(f"{type(classifier).__name__} is no classifier; psld_jax.load('mnist_clf') is one")
    # The diffusion alone: a classifier sees states as they are, and no preconditioning.
    if repr(classifier.sde) != repr(model.sde):
        raise ValueError(f"the classifier is of {classifier.sde!r}, the model of {model.sde!r}")
    if classifier.image_shape != model.image_shape:
        raise ValueError(f"the classifier is of images {classifier.image_shape}, the model {model.image_shape}")


def check_labels(label: Any, n_classes: int) -> None:
    """Check one label, or labels ``[n]``, against the number of classes.

    Raises:
      ValueError: for labels that are no whole numbers, or out of range.
    """
    check_known("label", label)
    try:
        labels = np.asarray(label)
    except ValueError:
        raise ValueError("label must be an integer, or integers [n], and these are lists of lists") from None
    if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        raise ValueError(f"label must be an integer, or integers [n], got {shown(label)}")
    if labels.min() < 0 or labels.max() >= n_classes:
        wrong = labels[(labels < 0) | (labels >= n_classes)].flat[0]
        raise ValueError(f"label={wrong} must lie in 0 to {n_classes - 1}")
