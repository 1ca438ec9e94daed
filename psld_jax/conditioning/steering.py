"""Conditions on samples (a class, known pixels, a measurement) in one object that any sampler takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from psld_jax import build
from psld_jax._runtime.checks import as_pixels, check_flag, check_measurement, check_noise, check_number
from psld_jax._runtime.errors import check_choice, check_counts
from psld_jax.build import Classifier, Model
from psld_jax.conditioning import _checks, _operators
from psld_jax.conditioning._modes import modes_of
from psld_jax.conditioning.bound import Bound
from psld_jax.conditioning.inpainting import as_mask
from psld_jax.conditioning.measurements import POSTERIORS
from psld_jax.conditioning.weights import Schedule, interval_of_sigmas

Array = Any

#: What takes a measurement into account; the last one in the table itself, without a backward evaluation.
METHODS = (*POSTERIORS, "conjugate")


@dataclasses.dataclass(frozen=True)
class Steering:
    """Conditions on the samples of a model. They can be combined, and image ``i`` takes entry ``i`` of what has many.

    Attributes:
      label: class, or one class a sample ``[n]``; ``None`` for none.
      guidance: scale of the guidance towards it: 1 is Bayes' rule, more makes samples more typical.
      classifier: of noisy states of the model's diffusion, or the name of one (``psld_jax.load``); ``None`` if the
        model itself takes labels (classifier-free guidance).
      negative: a worse model of the same diffusion, or its name, from which ``guidance`` leads away; both are told the
        label. See :func:`psld_jax.scores.autoguided`.
      interval: times between which guidance acts (Kynkaanniemi et al., 2024). Elsewhere predictions that are mixed have
        the scale 1, which takes one evaluation; classifier and measurement are not asked, and nothing runs backward.
      sigma_interval: the same in noise levels ``sde.sigma(t)``, instead of ``interval``.
      guidance_schedule: ``"constant"``, ``"linear"``, ``"cosine"``, or a function of times ``[m]``; it multiplies what
        guidance has above 1, and the whole scale of a classifier or a measurement
        (:func:`psld_jax.scores.weight_of`).
      guidance_rule: ``"cfg"``, or ``"cfg++"``: the guided estimate of the data with the noise of the prediction without
        guidance, for one block and ``sampler="ddim"``; scales are at most 1
        (:func:`psld_jax.conditioning.weights.renoised`).
      guidance_rescale: part of the standard deviation that guidance leaves as it was at scale 1
        (:func:`psld_jax.conditioning.weights.rescaled`).
      clip: bound of the predicted image at every evaluation, 1 for images in [-1, 1]; ``None`` for none. See
        :func:`psld_jax.scores.clipped`; it comes after guidance.
      clip_percentile: dynamic thresholding at that percentile, where it is above ``clip``.
      clip_noise: the noise of a clipped step: ``"new"``, so that image and noise add up to the state, or ``"old"``,
        that from before the clip, as DDIM of diffusers has it, for one block and one-step samplers.
      momentum, momentum_decay: see :func:`psld_jax.conditioning.momentum.with_momentum`; with or without guidance.
      known, mask: images ``[n, H, W, C]``, and a mask (1 known, 0 to be found), ``[n, H, W, C]`` or
        1 for n or C, or ``[H, W]``; images in [-1, 1], or uint8.
      fresh: see :func:`psld_jax.known_pixels`.
      resample, jump: see :func:`psld_jax.tabulate`.
      operator, measurement: a function of images, each by itself, and what it gave, ``[n, ...]``; linear, or for
        ``"dps"`` any that has a derivative.
      noise_std: of the measurement; 0, an exact one, is for ``"conjugate"`` without ``null_weight``.
      posterior: ``"pigdm"`` or ``"dps"``, see :func:`psld_jax.scores.posterior_guided`, or ``"conjugate"``, see
        :func:`psld_jax.measurement_pull`, for samplers in data prediction and operators with a pseudo-inverse.
      weight: of the measurement: 1 is the formula, and what ``None`` means for ``"pigdm"`` and ``"dps"``; for
        ``"conjugate"`` it means 4, which was closest to exact posteriors.
      null_weight: with ``"conjugate"``, of PiGDM's gradient on what the operator does not see: the network knows how
        that depends on what is seen. It takes backward evaluations; 0 takes none.
      t_start: where to start, at most 1: below it from the pseudo-inverse of the measurement, regularised by its noise,
        with the noise of that time.
    """

    label: int | Array | None = None
    guidance: float = 1.0
    classifier: Classifier | str | None = None
    negative: Model | str | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    sigma_interval: tuple[float, float] | None = None
    guidance_schedule: Schedule = "constant"
    guidance_rule: str = "cfg"
    guidance_rescale: float = 0.0
    clip: float | None = None
    clip_percentile: float | None = None
    clip_noise: str = "new"
    momentum: float = 0.0
    momentum_decay: float = 0.5
    known: Array | None = None
    mask: Array | None = None
    fresh: bool = True
    resample: int = 1
    jump: int = 1
    operator: Callable[[Array], Array] | None = None
    measurement: Array | None = None
    noise_std: float = 0.05
    posterior: str = "pigdm"
    weight: float | None = None
    null_weight: float = 0.0
    t_start: float = 1.0

    @property
    def integrated(self) -> bool:
        """Tells whether a measurement is part of the table."""
        return self.operator is not None and self.posterior == "conjugate"

    @property
    def by_gradient(self) -> bool:
        """Tells whether a measurement acts through the gradient of the network, in part or as a whole."""
        return self.operator is not None and (not self.integrated or self.null_weight > 0)

    def bind(self, model: Model) -> Bound:
        """Check these conditions and bind them to a model.

        Raises:
          ValueError: for a label out of range, a classifier of another diffusion, a mask or a measurement that does not
            fit, an operator that is not linear; and for one of two that belong together.
        """
        _checks.check_pairs(self)
        if self.weight is not None:
            check_number("weight", self.weight, 0)
        check_number("null_weight", self.null_weight, 0)
        _checks.check_guidance(self)
        _checks.check_clip(self)
        check_counts(resample=self.resample, jump=self.jump)
        check_flag("fresh", self.fresh)
        check_number("t_start", self.t_start, 0, 1, strict=True)
        if self.null_weight and not self.integrated:
            raise ValueError(
                "null_weight is of a measurement with posterior='conjugate'; the others have a weight alone"
            )
        check_choice("posterior", self.posterior, METHODS)
        check_noise(self.noise_std, strict=self.by_gradient)
        _checks.check_used(self)
        checked = self
        if self.known is not None:
            known = as_pixels("known images", self.known, model.image_shape)
            checked = dataclasses.replace(checked, known=known, mask=as_mask(self.mask, known.shape))
        if self.operator is not None:
            measurement = check_measurement("measurement", self.measurement)
            late = "t_start below 1 starts from the pseudo-inverse of a linear one: leave t_start out"
            linear = _operators.LINEAR if self.posterior != "dps" else late if self.t_start < 1 else ""
            options = {"linear": linear, "derivative": self.by_gradient}
            _operators.check_operator(self.operator, measurement, model.image_shape, self.noise_std, **options)
            if self.integrated:
                modes_of(self.operator, model.image_shape)
            elif self.t_start < 1:
                modes_of(self.operator, model.image_shape, "t_start below 1", "leave t_start out")
            checked = dataclasses.replace(checked, measurement=measurement)
        if self.sigma_interval is not None:
            checked = dataclasses.replace(checked, interval=interval_of_sigmas(model.sde, self.sigma_interval))
        if self.negative is not None:
            negative = build.load(self.negative) if isinstance(self.negative, str) else self.negative
            _checks.check_negative(negative, model, self.label is not None)
            checked = dataclasses.replace(checked, negative=negative)
        if self.label is None:
            return Bound(checked, model, None)
        classifier = build.load(self.classifier) if isinstance(self.classifier, str) else self.classifier
        if classifier is not None:
            _checks.check_classifier(classifier, model)
        elif getattr(model.eps_fn, "needs_labels", False) and not model.n_classes:
            raise ValueError(
                "the labels of this network are no classes: eps_fn=model.eps_fn.with_labels(labels), by "
                "dataclasses.replace, makes a model that has them, one for each sample of a batch"
            )
        elif not model.n_classes:
            raise ValueError("the model takes no labels: give a classifier of its diffusion, e.g. 'mnist_clf'")
        _checks.check_labels(self.label, model.n_classes if classifier is None else classifier.n_classes)
        return Bound(checked, model, classifier)
