"""The definition of an integrator: a name, hyper-parameters, and a host function that returns stages.

One clock: forward time ``t``, data at 0. One step goes from ``t`` down to ``s``, ``h = t - s > 0``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import is_count, shown, unknown
from psld_jax._runtime.registry import Registry
from psld_jax.sde import PSLD, VPSDE, LinearSDE, ThirdOrder


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a step: an optional network evaluation, then one affine update.

    If ``tau`` is set, the network is evaluated at the current state and time ``tau``, and the prediction
    ``q = U z + V eps`` is pushed on the history. Then ``z <- A z + sum_j B[j] q_{-j} + R xi`` with fresh
    ``xi ~ N(0, I)``; ``R = None`` draws nothing.

    Attributes:
      A: ``[K, K]``.
      B: ``[K, K]`` each; ``B[0]`` multiplies the newest prediction, ``B[1]`` the one before it, ...
      R: ``[K, K]`` or ``None``.
      tau: time of the evaluation, or ``None`` for no evaluation.
      U, V: ``[K, K]``; default: ``q = eps``.

    Raises:
      ValueError: for matrices that are not float64 ``[K, K]``, a ``B`` that is no tuple of them, or a ``tau`` that is
        no number.
    """

    A: np.ndarray
    B: tuple[np.ndarray, ...] = ()
    R: np.ndarray | None = None
    tau: float | None = None
    U: np.ndarray | None = None
    V: np.ndarray | None = None

    def __post_init__(self) -> None:
        # One matrix alone would be taken for its rows.
        if not isinstance(self.B, (tuple, list)):
            raise ValueError(f"B={shown(self.B)} of a stage must be a tuple of matrices, the newest prediction's first")
        shape = np.shape(self.A)
        matrices: list[Any] = [self.A, self.R, self.U, self.V, *self.B]
        for name, matrix in zip(["A", "R", "U", "V", *"B" * len(self.B)], matrices, strict=True):
            if matrix is None and name in ("R", "U", "V"):
                continue
            values = np.asarray(matrix)
            kind = values.dtype
            if values.shape != shape or len(shape) != 2 or shape[0] != shape[1]:
                raise ValueError(f"{name} of a stage has shape {values.shape}, and A {shape}: all must be [K, K]")
            if kind.kind not in "iu" and kind != np.float64:
                raise ValueError(f"{name} of a stage is {kind}: compute it with numpy in float64, to keep its digits")
        if self.tau is not None:
            check_number("tau", self.tau)

    def at(self, tau: float) -> Stage:
        """Put a fresh evaluation of the network at time ``tau`` before this stage."""
        return dataclasses.replace(self, tau=tau)


#: "Efficient Integrators for Diffusion Generative Models".
PAPER = "Pandey et al., 2024"

#: Times of earlier steps that a multistep method is given.
MAX_PAST = 4

StepFn = Callable[..., Sequence[Stage]]
#: From the diffusion, the end of the grid, the place and the hyper-parameters to :meth:`Integrator.approach`.
LastFn = Callable[..., tuple[float, list[Stage]]]


class Place(NamedTuple):
    """The place of a step in a run: number ``step``, from 0, of ``num_steps``, the denoising step included."""

    step: int = 0
    num_steps: int = 1


_ALONE = Place()


def _straight(sde: LinearSDE, t: float, place: Place, hyper: dict[str, Any]) -> tuple[float, list[Stage]]:
    return t, []


# A matrix among the hyper-parameters fixes K, and so may the method: there is an SDE to probe with for each small K.
_PROBES: tuple[LinearSDE, ...] = (
    PSLD(),
    VPSDE(),
    ThirdOrder(),
    LinearSDE(-np.eye(4), 2 * np.eye(4), beta_min=8.0, beta_max=8.0),
)


@dataclasses.dataclass(frozen=True)
class Integrator:
    """A sampler as data. Create it with :func:`get`.

    Attributes:
      name: canonical name.
      order: stated order of convergence of the global error (weak order for stochastic methods).
      hyper: the hyper-parameters, complete with defaults.
      multistep: whether a step depends on the times of the steps before it.
      fn: the host function; :meth:`stages` calls it.
      placed: whether a step depends on its place in the run.
      nfe_once: network evaluations of a run beyond those of its steps.
      ode: whether its steps solve the ODE, though noise is added between them: then so does the denoising step.
    """

    name: str
    order: int
    hyper: dict[str, Any]
    multistep: bool
    fn: StepFn = dataclasses.field(repr=False)
    placed: bool = False
    nfe_once: int = 0
    ode: bool = False
    _before_last: LastFn = dataclasses.field(default=_straight, repr=False)

    def approach(self, sde: LinearSDE, t: float, place: Place) -> tuple[float, list[Stage]]:
        """Return the time from which the denoising step after a grid to ``t`` starts, and the stages that lead there.

        Methods that add noise before every step add it before this one too, and so start from a later time.
        """
        return self._before_last(sde, t, place, self.hyper)

    def stages(
        self, sde: LinearSDE, t: float, s: float, past: Sequence[float] = (), place: Place = _ALONE
    ) -> list[Stage]:
        """Return the stages of one step from ``t`` to ``s``, float64.

        ``past`` holds the times at which the steps before this one began, the latest first, at most ``MAX_PAST``; only
        a multistep method looks at it, and starts with a lower order where there are too few. ``place`` is for methods
        that share something out over all steps, or take the last ones in another way.

        Raises:
          ValueError: if the method does not apply to ``sde`` (splitting needs K = 2), or a hyper-parameter is
            out of range.
        """
        extra = [*([tuple(past)] if self.multistep else []), *([place] if self.placed else [])]
        stages = self.fn(sde, t, s, *extra, **self.hyper)
        if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, Stage) for stage in stages):
            raise ValueError(f"integrator {self.name!r} must return a list of Stage, and returned {shown(stages)}")
        return list(stages)

    def applies_to(self, sde: LinearSDE) -> bool:
        """Tell whether the method works for ``sde``: splitting needs a momentum."""
        try:
            self.stages(sde, 0.5, 0.4)
        except ValueError:
            return False
        return True

    @functools.cached_property
    def _probe(self) -> list[Stage]:
        """Return the stages of some step. Their pattern is the same for every SDE the method applies to."""
        errors = []
        for sde in _PROBES:
            try:
                return self.stages(sde, 0.5, 0.4, (0.6, 0.7, 0.8))
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    @property
    def nfe_per_step(self) -> int:
        """Number of network evaluations per step, counted from the stages."""
        return sum(stage.tau is not None for stage in self._probe)

    @property
    def stochastic(self) -> bool:
        """Tells whether the method draws noise."""
        # What happens once a run is not in every step; it begins with noise.
        return self.nfe_once > 0 or any(stage.R is not None for stage in self._probe)

    def least_nfe(self, denoise: bool | str = True) -> int:
        """Return the smallest budget: one step, what a run takes once, and the denoising step if there is one."""
        return self.nfe_per_step + self.nfe_once + bool(denoise)


@dataclasses.dataclass(frozen=True)
class _Entry:
    fn: StepFn
    order: int | Callable[[dict[str, Any]], int]
    aliases: tuple[str, ...]
    source: str
    once: Callable[[dict[str, Any]], int]
    ode: bool
    before_last: LastFn


def _check_entry(name: str, entry: _Entry) -> None:
    """Raise a ``ValueError`` for a name that another integrator answers to, and for an order that is none."""
    for given in (name, *entry.aliases):
        if given == "auto":
            raise ValueError("no integrator can be called 'auto': that is the name of the choice among them")
        for other, known in _REGISTRY.entries.items():
            if other != name and str(given).lower() in (other.lower(), *map(str.lower, known.aliases)):
                raise ValueError(f"integrator {name!r}: the name {given!r} is that of {other!r}")
    if not (callable(entry.order) or is_count(entry.order)):
        raise ValueError(f"order={shown(entry.order)} of {name!r} must be a count, or a function of hyper-parameters")


_REGISTRY: Registry[_Entry] = Registry("integrator", "psld_jax.integrators", _check_entry)


def register(
    name: str,
    *,
    order: int | Callable[[dict[str, Any]], int],
    aliases: tuple[str, ...] = (),
    source: str = "",
    once: Callable[[dict[str, Any]], int] = lambda hyper: 0,
    ode: bool = False,
    before_last: LastFn = _straight,
) -> Callable[[StepFn], StepFn]:
    """Decorator that makes ``fn(sde, t, s, *, hyper=default, ...)`` available as integrator ``name``.

    A multistep method is ``fn(sde, t, s, past, *, ...)``, see :meth:`Integrator.stages`; one that asks for its
    :class:`Place` in the run has ``place`` as its last argument before the hyper-parameters. ``order`` may be a
    function of the hyper-parameters. ``aliases`` are acronyms; :func:`get` accepts them in any case. ``source`` has
    its authors and year. ``once`` counts, from the hyper-parameters, evaluations that are made once a run and not in
    every step.
    ``before_last(sde, t, place, hyper)`` is for methods that do something before the denoising step, see
    :meth:`Integrator.approach`.

    Raises:
      ValueError: when decorating, if the name or an alias is taken, or ``order`` is none.
    """

    def decorate(fn: StepFn) -> StepFn:
        _REGISTRY.add(name, _Entry(fn, order, aliases, source, once, ode, before_last))
        return fn

    return decorate


def available() -> tuple[str, ...]:
    """Return the canonical names of all integrators, sorted."""
    return _REGISTRY.names()


def _find(name: str) -> tuple[str, _Entry]:
    """Return the canonical name and the entry of a name or an acronym; a ``ValueError`` for an unknown one."""
    names = _REGISTRY.names()
    known = {alias.lower(): key for key, entry in _REGISTRY.entries.items() for alias in entry.aliases}
    key = name if name in names else known.get(str(name).lower(), name)
    return key, _REGISTRY[key]


def aliases(name: str) -> tuple[str, ...]:
    """Return the acronyms of the integrator ``name``.

    Raises:
      ValueError: for an unknown name.
    """
    return _find(name)[1].aliases


def source(name: str) -> str:
    """Return authors and year of the integrator ``name``.

    Raises:
      ValueError: for an unknown name.
    """
    return _find(name)[1].source


def function(name: str) -> StepFn:
    """Return the step function of the integrator ``name``, as it was registered.

    Raises:
      ValueError: for an unknown name.
    """
    return _find(name)[1].fn


def describe(name: str) -> str:
    """Return the docstring of the integrator's step function: equation, source, order, NFE.

    Raises:
      ValueError: for an unknown name.
    """
    return inspect.getdoc(function(name)) or ""


def get(name: str, **hyper: Any) -> Integrator:
    """Make the integrator ``name`` (or a paper acronym such as ``"ROBA"``) with the given hyper-parameters.

    Raises:
      ValueError: for an unknown name or hyper-parameter (with the nearest known one), or a value out of range.
    """
    key, entry = _find(name)
    defaults = {p.name: p.default for p in inspect.signature(entry.fn).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for given in hyper:
        if given not in defaults:
            if not defaults:
                raise ValueError(f"integrator {key!r} has no hyper-parameters, got {given!r}")
            raise unknown(f"hyper-parameter of {key!r}", given, defaults)
    # Orders and counts may come as 2.0 or as a number of numpy.
    whole = {given: int(value) for given, value in hyper.items() if type(defaults[given]) is int and is_count(value, 0)}
    hyper = {**defaults, **hyper, **whole}
    arguments = inspect.signature(entry.fn).parameters
    integrator = Integrator(key, 0, hyper, "past" in arguments, entry.fn, "place" in arguments)
    if not integrator.nfe_per_step:  # runs one step on the host, so that bad values are reported now
        raise ValueError(f"integrator {key!r} must evaluate the network at least once per step: no stage has a tau")
    order = entry.order(hyper) if callable(entry.order) else entry.order
    rest = {"nfe_once": entry.once(hyper), "ode": entry.ode, "_before_last": entry.before_last}
    return dataclasses.replace(integrator, order=order, **rest)


def check_stationary(sde: LinearSDE, method: str) -> None:
    """Raise a ``ValueError`` unless the matrices of ``sde`` are constant up to the rate, with a stationary law."""
    if not sde.stationary:
        raise ValueError(
            f"{method} splits off the part that keeps the stationary law, and {sde!r} has none; "
            "use e.g. euler_maruyama or ancestral"
        )


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Return ``value``; raise a ``ValueError`` that names the hyper-parameter unless ``value`` is allowed."""
    fits = np.ndim(value) == 0 and value in allowed
    if not fits or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise ValueError(f"{name}={shown(value)} must be one of {', '.join(map(str, allowed))}")
    return value
