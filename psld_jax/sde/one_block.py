"""Paths of one block, ``x_t = alpha(t) x_0 + sigma(t) eps``, in closed form, also where a coefficient vanishes."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Self

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_choice
from psld_jax.sde.base import LinearSDE

Array = Any

#: What a network may predict of ``x_t = alpha x_0 + sigma eps``; see :meth:`OneBlock.predicting`.
PREDICTIONS = ("eps", "data", "score", "velocity", "flow", "mixed")
# Rounding leaves of a signal that is gone at t = 1 so much, in units of the noise.
_NO_SIGNAL = 1e-12


def _matrix(number: Array) -> np.ndarray:
    return np.asarray(number, np.float64)[..., None, None]


class OneBlock(LinearSDE):
    """A Gaussian path of one block, ``x_t = alpha(t) x_0 + sigma(t) eps``, whose ratio of signal to noise falls.

    It is the law of ``dx = F x dt + sqrt(D) dw`` with ``F = alpha' / alpha`` and ``D = 2 sigma (sigma' - F sigma)``, of
    transition ``Psi(s, t) = alpha_s / alpha_t`` and of conditional covariance ``cov(t | s) = sigma_t^2 - (alpha_t
    sigma_s / alpha_s)^2`` (Karras et al., 2022; Kingma et al., 2021). Both follow from ``g(t, s) = sigma_t alpha_s -
    alpha_t sigma_s``, :meth:`gain`, which a path has in a form that does not cancel: ``cov(t | s) = g (sigma_t alpha_s
    + alpha_t sigma_s) / alpha_s^2``, and a step of DDIM is ``x_s = (sigma_s / sigma_t) x_t + (g / sigma_t) x_0``.

    A subclass has :meth:`alpha`, :meth:`std`, their rates of change, :meth:`gain`, and ``time`` if it is known.
    ``alpha`` may vanish at ``t = 1``, and ``std`` at ``t = 0``. What samplers solve is finite there, provided that the
    network predicts something that tells ``x_0`` from pure noise (``"data"``, ``"velocity"``, ``"flow"``): so such a
    path has one of these for its own.

    Every method of time takes a float or a float64 array ``[...]``; it returns ``[..., 1, 1]`` where
    :class:`LinearSDE` returns ``[..., K, K]``, and ``[...]`` for the two functions themselves.
    """

    stationary = False
    last_step = "exponential"
    grid = "edm"

    def __init__(self):
        self._set_up(1, [[float(self.std(np.float64(0.0))) ** 2]], "lower", 0.0)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)
        return f"{type(self).__name__}({values})"

    # --- what a path is ---------------------------------------------------------------------------

    def alpha(self, t: Array) -> np.ndarray:
        """Size of the signal ``alpha(t)``, ``[...]``."""
        raise NotImplementedError

    def std(self, t: Array) -> np.ndarray:
        """Standard deviation of the noise ``sigma(t)``, ``[...]``."""
        raise NotImplementedError

    def alpha_rate(self, t: Array) -> np.ndarray:
        """Rate of the signal ``d alpha / dt``, ``[...]``."""
        raise NotImplementedError

    def std_rate(self, t: Array) -> np.ndarray:
        """Rate of the noise ``d sigma / dt``, ``[...]``."""
        raise NotImplementedError

    def gain(self, t: Array, s: Array) -> np.ndarray:
        """``sigma_t alpha_s - alpha_t sigma_s``, ``[...]``, to full relative precision: positive for ``s < t``."""
        raise NotImplementedError

    # --- coefficients of the SDE, and the kernel ----------------------------------------------------

    def drift(self, t: Array) -> np.ndarray:
        return _matrix(self._slopes(t)[0])

    def diffusion(self, t: Array) -> np.ndarray:
        return _matrix(self._slopes(t)[1])

    def _slopes(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``F`` and ``D``, ``[...]``."""
        alpha, std, wronskian = self.alpha(t), self.std(t), self._wronskian(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            f, d = self.alpha_rate(t) / alpha, 2 * std * wronskian / alpha
        wrong = ~(np.isfinite(f) & np.isfinite(d)) | ~self.has_signal(t)
        if np.any(wrong):
            raise ValueError(
                f"the SDE of {self!r} is not finite at t={_first(t, wrong)}: a sampler that steps through its drift "
                "and noise must start where there is some signal; one of the ODE, or ancestral, can start at t=1"
            )
        return f, d

    def _wronskian(self, t: Array) -> np.ndarray:
        """``sigma' alpha - alpha' sigma > 0``, a sum of positive terms."""
        return self.std_rate(t) * self.alpha(t) - self.alpha_rate(t) * self.std(t)

    def transition(self, s: Array, t: Array) -> np.ndarray:
        """``Psi(s, t) = alpha_s / alpha_t``, ``[..., 1, 1]``.

        Raises:
          ValueError: where ``alpha_t`` is 0.
        """
        alpha = self.alpha(t)
        if np.any(alpha == 0):
            raise ValueError(f"alpha = 0 at t={_first(t, alpha == 0)}: nothing is carried from there to another time")
        return _matrix(self.alpha(s) / alpha)

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        s = np.asarray(s, np.float64)
        alpha_s = self.alpha(s)
        return _matrix(self.gain(t, s) * (self.std(t) * alpha_s + self.alpha(t) * self.std(s)) / alpha_s**2)

    def mean(self, t: Array) -> np.ndarray:
        return _matrix(self.alpha(t))

    def cov(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        return _matrix(self.std(t) ** 2) if cov0 is None else super().cov(t, cov0)

    def factor(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        return _matrix(self.std(t)) if cov0 is None else super().factor(t, cov0)

    def frame(self, t: Array) -> np.ndarray:
        return self.factor(t)

    def gaussian_flow(self, s: Array, t: Array, data_std: float) -> np.ndarray:
        data_std = check_number("data_std", data_std, 0, strict=True)
        return np.sqrt(self.total_cov(s, data_std) / self.total_cov(t, data_std))

    def snr(self, t: Array) -> np.ndarray:
        return (self.alpha(t) / self.std(t)) ** 2

    def log_snr(self, t: Array) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.where(self.has_signal(t), np.log(self.snr(t)), -np.inf)

    def sigma(self, t: Array) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.where(self.has_signal(t), self.std(t) / self.alpha(t), np.inf)

    def has_signal(self, t: Array) -> np.ndarray:
        """Tell whether there is any of ``x_0`` in ``x_t``, up to rounding, ``[...]``: not where ``alpha`` vanishes."""
        return self.alpha(t) > _NO_SIGNAL * self.std(t)

    def prior_cov(self) -> np.ndarray:
        return np.ones((1, 1)) if self.variance_preserving else _matrix(self.std(np.float64(1.0)) ** 2)

    # --- what the network predicts -------------------------------------------------------------------

    def predicting(self, prediction: str) -> Self:
        """The same path for a network that predicts

        - ``"eps"``: the noise;
        - ``"data"``: ``x_0``;
        - ``"score"``: ``-eps / sigma``, the gradient of the log density;
        - ``"velocity"``: ``alpha eps - sigma x_0`` (Salimans & Ho, 2022);
        - ``"flow"``: ``alpha' x_0 + sigma' eps``, the velocity ``dx/dt`` of the path (Lipman et al., 2023);
        - ``"mixed"``: what is left of the noise for data of variance 1, ``score = -x / (alpha^2 + sigma^2) - out /
          sigma`` (Vahdat et al., 2021; CLD-SGM).

        Raises:
          ValueError: for another prediction, or a path that is preconditioned.
        """
        check_choice("prediction", prediction, PREDICTIONS)
        if self.data_std is not None:
            raise ValueError(f"{self!r} is preconditioned, which says what its network predicts")
        sde = copy.copy(self)
        sde.prediction = prediction
        return sde

    def _reading(self, t: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``a, b, c, e`` of ``x_0 = a x + b out`` and ``eps = c x + e out``, ``[...]``."""
        alpha, std = self.alpha(t), self.std(t)
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        if self.data_std is not None:
            total = std**2 + (self.data_std * alpha) ** 2
            root = self.data_std / np.sqrt(total)
            return root**2 * alpha, root * std, std / total, -alpha * root
        if self.prediction == "data":
            return zero, one, 1 / std, -alpha / std
        if self.prediction == "velocity":
            total = alpha**2 + std**2
            return alpha / total, -std / total, std / total, alpha / total
        if self.prediction == "flow":
            wronskian = self._wronskian(t)
            alpha_rate, std_rate = self.alpha_rate(t), self.std_rate(t)
            return std_rate / wronskian, -std / wronskian, -alpha_rate / wronskian, alpha / wronskian
        wrong = ~self.has_signal(t)
        if np.any(wrong):
            raise ValueError(
                f"alpha = 0 at t={_first(t, wrong)}, where {self.prediction!r} says nothing of x_0: start the grid "
                "of a sampler below 1 (t_start), which adaptive solvers do not have, or take a network that predicts "
                "'data', 'velocity' or 'flow'"
            )
        if self.prediction == "mixed":
            total = alpha**2 + std**2
            return alpha / total, -std / alpha, std / total, one
        return (
            (1 / alpha, std**2 / alpha, zero, -std)
            if self.prediction == "score"
            else (1 / alpha, -std / alpha, zero, one)
        )

    def target(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``p, r`` of ``out = p x_0 + r x_t``, ``[...]``: what the network predicts, of what it should find."""
        alpha, std = self.alpha(t), self.std(t)
        if self.data_std is not None:
            total = std**2 + (self.data_std * alpha) ** 2
            return np.sqrt(total) / (std * self.data_std), -self.data_std * alpha / (std * np.sqrt(total))
        if self.prediction == "data":
            return np.ones_like(alpha), np.zeros_like(alpha)
        if self.prediction == "velocity":
            return -(alpha**2 + std**2) / std, alpha / std
        if self.prediction == "flow":
            return -self._wronskian(t) / std, self.std_rate(t) / std
        if self.prediction == "mixed":
            return -alpha / std, alpha**2 / (std * (alpha**2 + std**2))
        return (alpha / std**2, -1 / std**2) if self.prediction == "score" else (-alpha / std, 1 / std)

    def training_target(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``p, q`` of ``out = p x_0 + q eps``, ``[...]``: what a network should find."""
        alpha, std = self.alpha(t), self.std(t)
        if self.data_std is not None:
            root = np.sqrt(std**2 + (self.data_std * alpha) ** 2)
            return std / (self.data_std * root), -self.data_std * alpha / root
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        if self.prediction == "flow":
            return self.alpha_rate(t), self.std_rate(t)
        if self.prediction == "mixed":
            total = alpha**2 + std**2
            return -alpha * std / total, alpha**2 / total
        return {"data": (one, zero), "velocity": (-std, alpha), "score": (zero, -1 / std)}.get(
            self.prediction, (zero, one)
        )

    def converted(self, t: Array, prediction: str) -> tuple[np.ndarray, np.ndarray]:
        """``U, V [..., 1, 1]`` of ``U x_t + V out``: the other ``prediction``, made of what the network gives.

        Raises:
          ValueError: where there is no signal, for a network that predicts noise.
        """
        a, b, c, e = self._reading(t)
        if prediction == "eps":
            return _matrix(c), _matrix(e)
        p, r = self.predicting(prediction).target(t)
        return _matrix(p * a + r), _matrix(p * b)

    def score_matrix(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """``C_t``, ``[..., 1, 1]``: ``score = Cskip x + C out``.

        Raises:
          ValueError: for a ``cov0`` that is not that of the path, and where there is no signal, for a network that
            predicts noise.
        """
        if cov0 is not None and not np.array_equal(np.asarray(cov0), self.initial_cov):
            raise ValueError(f"cov0={cov0} must be that of {self!r} itself, {self.initial_cov.tolist()}")
        return _matrix(-self._reading(t)[3] / self.std(t))

    def score_skip(self, t: Array) -> np.ndarray:
        return _matrix(-self._reading(t)[2] / self.std(t))

    def probability_flow(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        # dx/dt = alpha' x_0 + sigma' eps: finite where F and D are not.
        a, b, c, e = self._reading(t)
        alpha_rate, std_rate = self.alpha_rate(t), self.std_rate(t)
        return _matrix(alpha_rate * a + std_rate * c), _matrix(alpha_rate * b + std_rate * e)

    def flow_scale(self, t: Array) -> np.ndarray:
        """A function, ``[...]``, of which ``scale(s) / scale(t)`` is the flow of ``H`` of ``probability_flow``."""
        alpha, std = self.alpha(t), self.std(t)
        if self.data_std is not None:
            return np.sqrt(std**2 + (self.data_std * alpha) ** 2)
        if self.prediction in ("velocity", "mixed"):
            return np.sqrt(alpha**2 + std**2)
        return {"data": std, "flow": np.ones_like(std)}.get(self.prediction, alpha)

    def _data_flow(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        std = self.std(t)
        return _matrix(self.std_rate(t) / std), _matrix(-self._wronskian(t) / std)

    def denoiser(self, t: Array, weights: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``U, V [..., 1, 1]`` of ``E[x_0 | x] = U x + V out``.

        Raises:
          ValueError: for weights other than ``1 / alpha``, and where there is no signal, for a network that predicts
            noise.
        """
        if weights is not None and not np.allclose(weights[..., 0, 0] * self.alpha(t), 1):
            raise ValueError("a path of one block has one equation for x_0: weights must be 1 / alpha")
        a, b, _, _ = self._reading(t)
        return _matrix(a), _matrix(b)

    def scalings(self, sigma: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``c_skip, c_out, c_in, c_noise`` of ``D(x; sigma) = c_skip x + c_out N(c_in x; c_noise)``, ``[...]`` each.

        For a path that is ``preconditioned``, at noise level ``sigma``: with ``alpha = 1`` those of Karras et al.
        (2022, table 1), ``c_noise = log(sigma) / 4``.

        Raises:
          ValueError: if it is not preconditioned, or has no such level.
        """
        if self.data_std is None:
            raise ValueError(f"{self!r} is not preconditioned: use preconditioned(data_std)")
        sigma = np.asarray(sigma, np.float64)
        t = self.time(sigma)
        (a, b, _, _), total = self._reading(t), self.total_cov(t, self.data_std)[..., 0, 0]
        return a, b, total**-0.5, np.log(sigma) / 4


def _first(t: Array, wrong: np.ndarray) -> float:
    return float(np.broadcast_to(t, np.shape(wrong))[wrong].flat[0]) if np.ndim(wrong) else float(t)
