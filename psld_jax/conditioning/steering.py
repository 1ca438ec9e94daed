"""What samples are to be like: a class, known pixels, a measurement; one object that any sampler takes."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psld_jax import build, scores
from psld_jax._runtime.checks import as_pixels, check_flag, check_measurement, check_number
from psld_jax._runtime.errors import check_choice, check_counts
from psld_jax.build import Classifier, Model
from psld_jax.conditioning._modes import modes_of
from psld_jax.conditioning.conjugate import Pull, first_guess, pull_law
from psld_jax.conditioning.guidance import POSTERIORS
from psld_jax.conditioning.inpainting import Known, as_mask, known_law
from psld_jax.integrators.base import Integrator
from psld_jax.integrators.tableau import Tableau

Array = Any

#: What takes a measurement into account; the last one in the table itself, without a backward evaluation.
METHODS = (*POSTERIORS, "conjugate")
#: The weight of an integrated measurement, unless one is given (docs/results.md).
_WEIGHT = 4.0


@dataclasses.dataclass(frozen=True)
class Steering:
    """Conditions on the samples of a model; they can be combined. Image ``i`` takes entry ``i`` of what has many.

    Attributes:
      label: class, or one class a sample ``[n]``; ``None`` for none.
      guidance: scale of the guidance towards it: 1 is Bayes' rule, more makes samples more typical.
      classifier: of noisy states of the model's diffusion, or the name of one (``psld_jax.load``); ``None`` if the
        model itself takes labels (classifier-free guidance).
      interval: times between which classifier-free guidance acts; elsewhere the label counts, but not the scale, and
        one evaluation is enough (Kynkaanniemi et al., 2024).
      known, mask: images ``[n, H, W, C]``, and a mask (1 known, 0 to be found), ``[n, H, W, C]`` or
        1 for n or C, or ``[H, W]``; images in [-1, 1], or uint8.
      fresh: see :func:`psld_jax.known_pixels`.
      resample, jump: see :func:`psld_jax.tabulate`.
      operator, measurement: a linear function of images, each by itself, and what it gave, ``[n, ...]``.
      noise_std: of the measurement; 0, an exact one, is for ``"conjugate"``.
      posterior: ``"pigdm"`` or ``"dps"``, see :func:`psld_jax.scores.posterior_guided`, or ``"conjugate"``, see
        :func:`psld_jax.measurement_pull`, for samplers in data prediction and operators with a pseudo-inverse.
      weight: of the measurement: 1 is the formula, and what ``None`` means for ``"pigdm"`` and ``"dps"``; for
        ``"conjugate"`` it means 4, which was closest to exact posteriors.
      t_start: where to start, at most 1: below it from the pseudo-inverse of the measurement, regularised by its noise,
        with the noise of that time.
    """

    label: int | Array | None = None
    guidance: float = 1.0
    classifier: Classifier | str | None = None
    interval: tuple[float, float] = (0.0, 1.0)
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
    t_start: float = 1.0

    @property
    def integrated(self) -> bool:
        """Whether a measurement is part of the table."""
        return self.operator is not None and self.posterior == "conjugate"

    def bind(self, model: Model) -> Bound:
        """These conditions for a model, once checked.

        Raises:
          ValueError: for a label out of range, a classifier of another diffusion, a mask or a measurement that does not
            fit, an operator that is not linear; and for one of two that belong together.
        """
        _check_pairs(self)
        check_counts(resample=self.resample, jump=self.jump)
        check_flag("fresh", self.fresh)
        if self.weight is not None:
            check_number("weight", self.weight, 0)
        check_number("t_start", self.t_start, 0, 1, strict=True)
        if self.operator is None and (self.t_start, self.weight) != (1, None):
            raise ValueError("t_start and weight are of a measurement: give operator=... and measurement=...")
        checked = self
        if self.known is not None:
            known = as_pixels("known images", self.known, model.image_shape)
            checked = dataclasses.replace(checked, known=known, mask=as_mask(self.mask, known.shape))
        if self.operator is not None:
            check_choice("posterior", self.posterior, METHODS)
            check_number("noise_std", self.noise_std, 0, strict=self.posterior != "conjugate")
            measurement = check_measurement("measurement", self.measurement)
            _check_operator(self.operator, measurement, model.image_shape)
            if self.integrated or self.t_start < 1:
                modes_of(self.operator, model.image_shape)
            checked = dataclasses.replace(checked, measurement=measurement)
        if self.label is None:
            return Bound(checked, model, None)
        check_number("guidance", self.guidance, 0)
        if np.shape(self.interval) != (2,) or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"interval={self.interval} must be two times 0 <= low < high <= 1")
        classifier = build.load(self.classifier) if isinstance(self.classifier, str) else self.classifier
        if classifier is not None:
            _check_classifier(classifier, model)
        elif not model.n_classes:
            raise ValueError("the model takes no labels: give a classifier of its diffusion, e.g. 'mnist_clf'")
        _check_labels(self.label, model.n_classes if classifier is None else classifier.n_classes)
        return Bound(checked, model, classifier)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions as data of a program, so that other ones of the same kind do not compile again.

    Attributes:
      guides: guidance, to be bound to a network one around the other.
      known: the law of known pixels, or ``None``.
      pull: that of measurements, or ``None``.
    """

    guides: tuple[Any, ...] = ()
    known: Known | None = None
    pull: Pull | None = None

    def eps_fn(self, eps_fn: Any, own: dict[str, Array]) -> Any:
        """The ``eps_fn`` of the conditional law for samples with these arrays.

        ``own`` is from :meth:`Bound.arrays`; labels ``[n]``, measurements ``[n, ...]``.
        """
        for guide in self.guides:
            eps_fn = guide.bind(eps_fn, own)
        return eps_fn

    def known_of(self, own: dict[str, Array]) -> Known | None:
        """The known pixels of samples with these arrays.

        ``own`` is from :meth:`Bound.arrays`; images and masks ``[n, H, W, C]``, of masks also 1 for C.
        """
        return None if self.known is None else self.known.of(own["known"], own["mask"])

    def pull_of(self, own: dict[str, Array]) -> Pull | None:
        """The pull of measurements on samples with these arrays, ``own["pinv"]`` of them ``[n, H, W, C]``."""
        return None if self.pull is None else self.pull.of(own["pinv"])


@dataclasses.dataclass(frozen=True)
class Bound:
    """Checked conditions for one model; :meth:`Steering.bind` makes it."""

    steering: Steering
    model: Model
    classifier: Classifier | None

    def check(self, n: int) -> None:
        """Raise a ``ValueError`` if there are neither one nor ``n`` labels, images or measurements."""
        s = self.steering
        for name, value in (("label", s.label), ("known", s.known), ("measurement", s.measurement)):
            count = 1 if value is None else np.atleast_1d(value).shape[0]
            if count not in (1, n):
                raise ValueError(f"{name} holds {count} entries for {n} samples; give 1 or {n}")

    def arrays(self, indices: Array) -> dict[str, Array]:
        """What samples number ``indices [n]`` have of their own: labels, measurements, known pixels, masks."""
        s = self.steering
        values = {"labels": s.label, "measurement": s.measurement, "known": s.known}
        own = {name: _take(np.atleast_1d(value), indices) for name, value in values.items() if value is not None}
        if s.integrated:
            own["pinv"] = _take(self._pinv, indices)
        return own if s.mask is None else {**own, "mask": _take(s.mask, indices)}

    @functools.cached_property
    def _pinv(self) -> np.ndarray:
        """``H^+ y`` of all measurements."""
        operator: Any = self.steering.operator
        return np.asarray(operator.pinv(self.steering.measurement))

    def start(self, indices: Array) -> np.ndarray:
        """The images ``[n, H, W, C]`` that samples number ``indices [n]`` start from, if they start late."""
        return _take(self._first_guess, indices)

    @functools.cached_property
    def _first_guess(self) -> np.ndarray:
        s, data_std = self.steering, self.model.sde.data_std or 1.0
        return np.asarray(first_guess(s.operator, self._pinv, s.noise_std, data_std))

    def conditions(self, table: Tableau | None, integrator: Integrator | None = None) -> Conditions:
        """What a program needs of these conditions, without the arrays that samples have of their own.

        ``table`` is that of ``integrator``, ``None`` for an adaptive solver, which has no known pixels.

        Raises:
          ValueError: for a measurement that is to be integrated by a sampler that cannot.
        """
        s, sde, eps_fn, guides = self.steering, self.model.sde, self.model.eps_fn, []
        one = self.arrays(np.zeros(1, int))
        if s.label is not None and self.classifier is not None:
            guides.append(scores.classifier_guided(eps_fn, self.classifier.logits_fn, sde, one["labels"], s.guidance))
        elif s.label is not None:
            guides.append(scores.classifier_free(eps_fn, one["labels"], s.guidance, s.interval))
        if s.operator is not None and not s.integrated:
            weight = 1.0 if s.weight is None else s.weight
            options = {"noise_std": s.noise_std, "method": s.posterior, "scale": weight}
            guides.append(scores.posterior_guided(eps_fn, sde, s.operator, one["measurement"], **options))
        known = None if s.known is None or table is None else known_law(sde, table, fresh=s.fresh)
        pull = None
        if s.integrated:
            if table is None or integrator is None:
                raise ValueError(
                    "posterior='conjugate' needs a sampler with a table in data prediction: sampler='auto'"
                )
            weight = _WEIGHT if s.weight is None else s.weight
            pull = pull_law(sde, integrator, table, s.operator, self.model.image_shape, s.noise_std, weight)
        return Conditions(tuple(guides), known, pull)

    def about(self) -> dict[str, Any]:
        """The conditions for a report; of arrays only a check sum."""
        values = {field.name: getattr(self.steering, field.name) for field in dataclasses.fields(self.steering)}
        return {name: _describe(value) for name, value in values.items() if value is not None}

    def evaluations(self, table: Tableau) -> int:
        """Network evaluations of a sample: classifier-free guidance takes two where it acts."""
        s = self.steering
        if s.label is None or self.classifier is not None or s.guidance == 1:
            return table.nfe
        low, high = s.interval
        return table.nfe + int(np.sum((table.tau >= low) & (table.tau <= high)))


def _take(values: Array, indices: Array) -> np.ndarray:
    """Entries for samples number ``indices``; beyond the last one (a batch that is filled up) from the start again."""
    values = np.asarray(values)
    return values[np.asarray(indices) % len(values)]


def _describe(value: Any) -> Any:
    if isinstance(value, (np.ndarray, jax.Array)) and np.ndim(value):
        return f"array {np.shape(value)} {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
    if isinstance(value, Classifier):
        return value.config.model.checkpoint
    return value if isinstance(value, (str, int, float, tuple, list)) else getattr(value, "__qualname__", repr(value))


def _check_pairs(s: Steering) -> None:
    for pair in (("known", "mask"), ("operator", "measurement")):
        given = [name for name in pair if getattr(s, name) is not None]
        if len(given) == 1:
            raise ValueError(f"{pair[0]} and {pair[1]} belong together; only {given[0]} was given")
    if s.label is None and s.classifier is not None:
        raise ValueError("a classifier guides towards a label: give label=...")


def _check_classifier(classifier: Any, model: Model) -> None:
    if not isinstance(classifier, Classifier):
        raise ValueError(f"{type(classifier).__name__} is no classifier; psld_jax.load('mnist_clf') is one")
    # The diffusion alone: a classifier sees states as they are, and no preconditioning.
    if repr(classifier.sde) != repr(model.sde):
        raise ValueError(f"the classifier is of {classifier.sde!r}, the model of {model.sde!r}")
    if classifier.image_shape != model.image_shape:
        raise ValueError(f"the classifier is of images {classifier.image_shape}, the model {model.image_shape}")


def _check_labels(label: Any, n_classes: int) -> None:
    labels = np.asarray(label)
    if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        raise ValueError(f"label must be an integer, or integers [n], got {label!r}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"label={label!r} must lie in 0 to {n_classes - 1}")


def _check_operator(operator: Callable[[Array], Array], measurement: np.ndarray, image_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1, *image_shape)).astype(np.float32)
    out = jax.eval_shape(operator, jax.ShapeDtypeStruct(a.shape, a.dtype))
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape[1:] != measurement.shape[1:]:
        shape = getattr(out, "shape", out)
        raise ValueError(f"operator gives {shape} for one image, the measurement has shape {measurement.shape}")
    parts, whole = np.asarray(operator(a)) + 2 * np.asarray(operator(b)), np.asarray(operator(a + 2 * b))
    if not np.allclose(parts, whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max()):
        raise ValueError("operator must be linear: A(a + 2 b) is not A(a) + 2 A(b)")
