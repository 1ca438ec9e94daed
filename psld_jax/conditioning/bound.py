"""Conditions that were checked for one model: what a program takes of them, and what they cost."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from psld_jax import scores
from psld_jax.build import Classifier, Model
from psld_jax.conditioning._modes import projection_of
from psld_jax.conditioning.conjugate import Pull, first_guess, pull_law
from psld_jax.conditioning.inpainting import Known, known_law
from psld_jax.conditioning.momentum import pull_with_momentum, with_momentum
from psld_jax.conditioning.weights import Weight, renoised, weight_of
from psld_jax.integrators.base import Integrator
from psld_jax.integrators.tableau import Tableau

if TYPE_CHECKING:
    from psld_jax.conditioning.steering import Steering

Array = Any

#: The weight of an integrated measurement, unless one is given (docs/results.md).
_WEIGHT = 4.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions as data of a program, so that others of the same kind do not compile again.

    Attributes:
      guides: guidance, to be bound to a network one around the other.
      known: the law of known pixels, or ``None``.
      pull: that of measurements, or ``None``.
    """

    guides: tuple[Any, ...] = ()
    known: Known | None = None
    pull: Pull | None = None

    def eps_fn(self, eps_fn: Any, own: dict[str, Array]) -> Any:
        """Return the ``eps_fn`` of the conditional law for samples with these arrays.

        ``own`` is from :meth:`Bound.arrays`; labels ``[n]``, measurements ``[n, ...]``.
        """
        for guide in self.guides:
            eps_fn = guide.bind(eps_fn, own)
        return eps_fn

    def known_of(self, own: dict[str, Array]) -> Known | None:
        """Return the known pixels of samples with these arrays.

        ``own`` is from :meth:`Bound.arrays`; images and masks ``[n, H, W, C]``, of masks also 1 for C.
        """
        return None if self.known is None else self.known.of(own["known"], own["mask"])

    def pull_of(self, own: dict[str, Array]) -> Pull | None:
        """Return the pull of measurements on samples with these arrays, ``own["pinv"]`` of them ``[n, H, W, C]``."""
        return None if self.pull is None else self.pull.of(own["pinv"])


class Evaluations(NamedTuple):
    """The evaluations that one sample costs.

    Attributes:
      forward: evaluations of the network, and of a worse one that it is guided away from; they count as the NFE.
      backward: of these, evaluations that also run backward.
      classifier: passes of a classifier, each forward and backward. Where a measurement runs backward too, its gradient
        goes through them, which takes about one more for each.
    """

    forward: int
    backward: int
    classifier: int


@dataclasses.dataclass(frozen=True)
class Bound:
    """Checked conditions for one model; :meth:`psld_jax.Steering.bind` makes it."""

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
        """Return what samples number ``indices [n]`` have of their own: labels, measurements, known pixels, masks."""
        s = self.steering
        values = {"labels": s.label, "measurement": s.measurement, "known": s.known}
        own = {name: _take(np.atleast_1d(value), indices) for name, value in values.items() if value is not None}
        if s.integrated:
            own["pinv"] = _take(self._pinv, indices)
        return own if s.mask is None else {**own, "mask": _take(s.mask, indices)}

    @functools.cached_property
    def _pinv(self) -> np.ndarray:
        """Return ``H^+ y`` of all measurements."""
        operator: Any = self.steering.operator
        return np.asarray(operator.pinv(self.steering.measurement))

    def start(self, indices: Array) -> np.ndarray:
        """Return the images ``[n, H, W, C]`` that samples number ``indices [n]`` start from, if they start late."""
        return _take(self._first_guess, indices)

    @functools.cached_property
    def _first_guess(self) -> np.ndarray:
        s, data_std = self.steering, self.model.sde.data_std or 1.0
        return np.asarray(first_guess(s.operator, self._pinv, s.noise_std, data_std))

    def conditions(self, table: Tableau | None, integrator: Integrator | None = None) -> Conditions:
        """Return what a program needs of these conditions, without the arrays that samples have of their own.

        ``table`` is that of ``integrator``, ``None`` for an adaptive solver, which has no known pixels.

        Raises:
          ValueError: for a measurement that is to be integrated by a sampler that cannot.
        """
        s, sde, eps_fn, guides = self.steering, self.model.sde, self.model.eps_fn, []
        one = self.arrays(np.zeros(1, int))
        mixing, adding = self._mixing(table), self._adding(s.guidance, table)
        rescale = s.guidance_rescale
        if self.classifier is not None:
            options = {"scale": adding, "rescale": rescale}
            guides.append(scores.classifier_guided(eps_fn, self.classifier.logits_fn, sde, one["labels"], **options))
        elif isinstance(s.negative, Model):
            guides.append(scores.autoguided(eps_fn, s.negative.eps_fn, mixing, rescale=rescale))
        elif s.label is not None:
            guides.append(scores.classifier_free(eps_fn, one["labels"], mixing, rescale=rescale))
        if s.operator is not None and s.by_gradient:
            options = {"noise_std": s.noise_std, "rescale": rescale, "method": s.posterior}
            if s.integrated:
                seen = projection_of(s.operator, self.model.image_shape)
                options |= {"method": "pigdm", "outside": seen}
            weight = self._adding(self._measurement_weight, table)
            guides.append(scores.posterior_guided(eps_fn, sde, s.operator, one["measurement"], scale=weight, **options))
        if s.clip is not None:
            if s.clip_noise == "old" and table is None:
                raise ValueError("clip_noise='old' is defined for the steps of a table: take sampler='ddim'")
            kept = table if s.clip_noise == "old" else None
            guides.append(scores.clipped(eps_fn, sde, s.clip, s.clip_percentile, kept))
        known = None if s.known is None or table is None else known_law(sde, table, fresh=s.fresh)
        pull = None
        if s.integrated:
            if table is None or integrator is None:
                raise ValueError(
                    "posterior='conjugate' needs a sampler with a table in data prediction: sampler='auto'"
                )
            weight = _WEIGHT if s.weight is None else s.weight
            pull = pull_law(sde, integrator, table, s.operator, self.model.image_shape, s.noise_std, weight)
            pull = pull_with_momentum(pull, table, s.momentum, s.momentum_decay)
        return Conditions(tuple(guides), known, pull)

    def about(self) -> dict[str, Any]:
        """Describe the conditions for a report, with a check sum in place of arrays."""
        values = {field.name: getattr(self.steering, field.name) for field in dataclasses.fields(self.steering)}
        return {name: _describe(value) for name, value in values.items() if value is not None}

    def running(self, table: Tableau) -> Tableau:
        """Return the table that is run in place of ``table``: the same, or with momentum.

        Raises:
          ValueError: for a table that momentum does not go with.
        """
        return with_momentum(table, self.steering.momentum, self.steering.momentum_decay)

    def evaluations(self, table: Tableau) -> Evaluations:
        """Count the evaluations of a sample: guidance takes two where it acts if it mixes, else a backward pass.

        Raises:
          ValueError: for a table that ``guidance_rule="cfg++"`` or momentum does not go with.
        """
        s, acts = self.steering, np.zeros(table.nfe, bool)
        self.running(table)
        if self._mixes:
            acts = self._mixing(table).acts(table.tau)
        pulled = acts & False
        if s.by_gradient:
            weight = self._adding(self._measurement_weight, table)
            pulled = weight.acts(table.tau) if weight.limited else ~pulled
        asked = 0
        if self.classifier is not None:
            weight = self._adding(s.guidance, table)
            asked = int(weight.acts(table.tau).sum()) if weight.limited else table.nfe
        return Evaluations(table.nfe + int(acts.sum()), int((pulled * (1 + acts)).sum()), asked)

    @property
    def evaluations_at_once(self) -> int:
        """Largest number of evaluations that one time takes. It counts where an adaptive solver chooses the times."""
        return 2 if self._mixes and self.steering.guidance != 1 else 1

    @property
    def _mixes(self) -> bool:
        s = self.steering
        return s.negative is not None or (s.label is not None and self.classifier is None)

    @property
    def _measurement_weight(self) -> float:
        s = self.steering
        if s.integrated:
            return s.null_weight
        return 1.0 if s.weight is None else s.weight

    def _mixing(self, table: Tableau | None) -> Weight:
        """Return the weight of two predictions that are mixed."""
        return self._weight(self.steering.guidance, 1.0, table)

    def _adding(self, scale: float, table: Tableau | None) -> Weight:
        """Return the weight of a gradient that is added."""
        return self._weight(scale, 0.0, table)

    def _weight(self, scale: float, neutral: float, table: Tableau | None) -> Weight:
        s = self.steering
        if s.guidance_rule == "cfg":
            return weight_of(scale, neutral, interval=s.interval, schedule=s.guidance_schedule, table=table)
        if table is None:
            raise ValueError("guidance_rule='cfg++' is defined for steps of DDIM: take sampler='ddim'")
        return renoised(self.model.sde, table, scale, neutral)


def _take(values: Array, indices: Array) -> np.ndarray:
    """Take entries for samples number ``indices``; beyond the last (in a filled-up batch) from the start again."""
    values = np.asarray(values)
    return values[np.asarray(indices) % len(values)]


def _describe(value: Any) -> Any:
    if isinstance(value, (np.ndarray, jax.Array)) and np.ndim(value):
        return f"array {np.shape(value)} {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
    if isinstance(value, Classifier | Model):
        return value.config.model.checkpoint
    return value if isinstance(value, (str, int, float, tuple, list)) else getattr(value, "__qualname__", repr(value))
