"""The training losses: score matching in K blocks, and the cross-entropy of the noise-conditional classifier.

Everything that depends on time alone is computed on the host in float64 for the times of a batch
(:class:`Coefficients`) and cast once, so that nothing is lost near ``t = 1e-5``, where covariances span nine orders of
magnitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import ndtri

from psld_jax import blocks
from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_choice, unknown
from psld_jax.scores.network import predicted_blocks
from psld_jax.sde import Discrete, LinearSDE, OneBlock, cholesky

Array = Any
#: ``network(images [n, H, W, in_ch], t [n]) -> [n, ...]``.
Network = Callable[[Array, Array], Array]

OBJECTIVES = ("hsm", "dsm")
WEIGHTINGS = ("fid", "nll")
NORMS = ("l2", "l1")
TIME_SAMPLINGS = ("uniform", "stratified")
NOISE_LEVELS = ("time", "log_normal")
#: Mean and standard deviation of log sigma in training (Karras et al., 2022, table 1).
_LOG_SIGMA = (-1.2, 1.2)


def draw_times(seed: int, step: int, n: int, t_min: float = 1e-5, sampling: str = "uniform") -> np.ndarray:
    """Draw the times of one step, a function of ``(seed, step)``: ``t = u (1 - t_min) + t_min``, float64 ``[n]``.

    ``u`` is uniform in [0, 1): independent for each sample, or ``"stratified"``, one in each of n equal intervals in
    random order, which gives the mean over a batch a smaller variance (like the low-discrepancy times of Kingma et al.,
    2021).

    Raises:
      ValueError: for an unknown ``sampling``.
    """
    # Philox is counter-based: with the step in its key there is no state to carry, save or restore.
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
    u = generator.random(n)
    if sampling == "stratified":
        u = (generator.permutation(n) + u) / n
    elif sampling != "uniform":
        raise unknown("time sampling", sampling, TIME_SAMPLINGS)
    return u * (1 - t_min) + t_min


def log_normal_times(u: np.ndarray, sde: LinearSDE, mean: float, std: float) -> np.ndarray:
    """Return times at which ``log sigma`` is normal, for uniform ``u [n]`` in (0, 1], float64 ``[n]``.

    ``log sigma ~ N(mean, std^2)`` (Karras et al., 2022), kept within the levels that ``sde`` has.
    """
    sigma = np.exp(mean + std * ndtri(np.clip(u, 1e-12, 1 - 1e-12)))
    low, high = sde.sigma(np.array([1e-6, 1.0]))
    return sde.time(np.clip(sigma, low, high))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What a loss needs to know about the times of a batch. The loss makes it by ``coefficients(t)``.

    Attributes:
      t: ``[n]``, what the network is told: forward times, as a rule.
      kernel: ``[n, K, 1 + D]``: ``z_t = kernel (x_0, noise_1, ..., noise_D)`` for D standard normal images.
      inputs: ``[n, K, K]``, ``Cin``: the network sees ``Cin z_t``; ``None`` for the identity.
      target: ``[n, P, 1 + D]``: the target of the P predicted blocks is ``target (x_0, noise)``; ``None`` for a
        classifier.
      weight: ``[n, W, P]``: the loss is a norm of ``weight (prediction - target)``; ``None`` for the identity.
    """

    t: Array
    kernel: Array
    inputs: Array | None = None
    target: Array | None = None
    weight: Array | None = None

    def cast(self, dtype: Any) -> Coefficients:
        """Return the same numbers as numpy arrays of ``dtype``."""
        return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), self)


def perturb(coefficients: Coefficients, x0: Array, noise: Sequence[Array]) -> Array:
    """Return the network's input ``z_t``, ``[n, H, W, K C]``, for images ``x0 [n, H, W, C]`` and D noises like it.

    Raises:
      ValueError: for another number of noise images than the loss takes.
    """
    if 1 + len(noise) != coefficients.kernel.shape[-1]:
        raise ValueError(f"got {len(noise)} noise images, this loss takes {coefficients.kernel.shape[-1] - 1}")
    z = blocks.apply(coefficients.kernel, (x0, *noise))
    return jnp.concatenate(z if coefficients.inputs is None else blocks.apply(coefficients.inputs, z), axis=-1)


class _Perturbation:
    """The kernel ``p(z_t | x_0)``, or ``p(z_t | z_0)`` with ``z_0`` drawn, that both losses are taken over."""

    reduce_mean: bool

    def times(self, u: np.ndarray) -> np.ndarray:
        """The times, ``[n]``, that numbers ``u [n]`` from :func:`draw_times` stand for."""
        return u

    def __init__(self, sde: LinearSDE, objective: str):
        check_choice("training objective", objective, OBJECTIVES)
        self.sde = sde
        draws_start = objective == "dsm" and bool(np.any(sde.initial_cov))
        self.start_factor = cholesky(sde.initial_cov) if draws_start else None
        self.start_cov = np.zeros_like(sde.initial_cov) if draws_start else sde.initial_cov

    @property
    def num_noise(self) -> int:
        """Number D of normal images that a sample takes: K for ``eps``, after K for ``z_0`` if that is drawn."""
        return self.sde.num_blocks * (1 if self.start_factor is None else 2)

    def kernel(self, t: np.ndarray) -> np.ndarray:
        """Return the kernel's coefficients ``[n, K, 1 + D]``, see :class:`Coefficients`."""
        parts = [self.sde.mean(t), self.sde.factor(t, self.start_cov)]
        if self.start_factor is not None:
            parts.insert(1, self.sde.transition(t, 0.0) @ self.start_factor)
        return np.concatenate(parts, axis=-1)


class ScoreLoss(_Perturbation):
    """Score matching: a norm of ``W (prediction(Cin z_t, t) - target)``.

    The network predicts ``eps`` of ``z_t = mean + L_t eps``, or what a path of one block says that it does: all blocks,
    or the one whose score the diffusion needs (Pandey & Mandt, 2023). The covariance ``L_t L_t^T`` is that of hybrid
    score matching (HSM: momentum at ``t = 0`` integrated out) or of denoising score matching (DSM: drawn, and known to
    the kernel).

    For a diffusion preconditioned in phase space (:meth:`psld_jax.sde.LinearSDE.preconditioned`) the target is what the
    Gaussian-optimal score leaves over, ``g (x_0 / data_std^2 - mu^T L_t^-T eps)``,
    ``g = (data_std^-2 + mu^T Sigma^-1 mu)^(-1/2)``: one block, of unit variance at every time.

    Args:
      sde: the diffusion.
      in_ch, out_ch: channels of the network; they tell which blocks it predicts.
      objective: ``"hsm"`` or ``"dsm"`` (the same thing for K = 1).
      weighting: ``"fid"``: none, or ``level_weight``. ``"nll"``: ``W = G^T C``, the likelihood weighting (Song
        et al., 2021); for VP, a factor ``beta / std^2`` on the squared error of eps.
      norm: ``"l2"`` (squared error) or ``"l1"``.
      reduce_mean: take means, over the elements of a sample here and over the batch in training; else sums, in both.
      noise: ``"time"``: the times are those drawn. ``"log_normal"``: they are drawn by :func:`log_normal_times`, with
        mean and standard deviation ``log_sigma``.
      told: from times ``[n]`` to what the network is told, and to what its input is multiplied by; ``None``: the times
        themselves, and 1.
      level_weight: from noise levels ``sigma [n]`` to ``W^2 [n]``, for a network that returns the image: without it the
        highest levels would be all that counts.

    Raises:
      ValueError: for an unknown choice, channels that do not fit the diffusion, ``"nll"`` with ``"l1"``, or DSM with
        preconditioning.
    """

    def __init__(
        self,
        sde: LinearSDE,
        in_ch: int,
        out_ch: int,
        *,
        objective: str = "hsm",
        weighting: str = "fid",
        norm: str = "l2",
        reduce_mean: bool = True,
        noise: str = "time",
        log_sigma: tuple[float, float] = _LOG_SIGMA,
        told: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
        level_weight: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        super().__init__(sde, objective)
        check_choice("loss weighting", weighting, WEIGHTINGS)
        check_choice("distribution of noise levels", noise, NOISE_LEVELS)
        mean, std = log_sigma
        self._log_sigma = check_number("mean of log sigma", mean), check_number("its deviation", std, 0, strict=True)
        self.noise, self.told, self.level_weight = noise, told, level_weight
        check_choice("loss norm", norm, NORMS)
        if (weighting, norm) == ("nll", "l1"):
            raise ValueError("weighting='nll' weights squared errors: norm='l1' must be 'l2'")
        if self.start_factor is not None and sde.data_std is not None:
            raise ValueError(
                "the one block that a preconditioned network predicts is what hybrid score matching leaves over: "
                "objective='dsm' must be 'hsm', or data_std 0"
            )
        self.predicted = predicted_blocks(sde, in_ch, out_ch)
        self.weighting, self.norm, self.reduce_mean = weighting, norm, reduce_mean

    def times(self, u: np.ndarray) -> np.ndarray:
        """The times, ``[n]``, that numbers ``u [n]`` from :func:`draw_times` stand for."""
        if self.noise == "log_normal":
            return log_normal_times(u, self.sde, *self._log_sigma)
        # A discrete process is trained at its levels.
        return np.ceil(u * self.sde.num_steps) / self.sde.num_steps if isinstance(self.sde, Discrete) else u

    def coefficients(self, t: np.ndarray) -> Coefficients:
        """Everything the loss needs at the times ``t [n]``, float64."""
        inputs = None if self.sde.data_std is None else self.sde.input_matrix(t)
        told, weight = t, None
        if self.told is not None:
            told, scale = self.told(t)
            inputs = scale[:, None, None]
        if self.weighting == "fid" and self.level_weight is not None:
            weight = np.sqrt(self.level_weight(self.sde.sigma(t)))[:, None, None]
        if self.weighting == "nll":
            columns = self.sde.score_matrix(t, self.start_cov)[..., list(self.predicted)]
            weight = np.swapaxes(self.sde.dispersion(t), -1, -2) @ columns
        return Coefficients(told, self.kernel(t), inputs, self._target(t), weight)

    def _target(self, t: np.ndarray) -> np.ndarray:
        """Return the coefficients of the target ``[n, P, 1 + D]``, see :class:`Coefficients`."""
        sde, k, data_std = self.sde, self.sde.num_blocks, self.sde.data_std
        if data_std is None and isinstance(sde, OneBlock):
            return np.stack(sde.training_target(t), axis=-1)[:, None]
        if data_std is None:
            rows = np.eye(1 + self.num_noise)[-k:]
            skip = sde.score_skip(t)
            if np.any(skip):  # a mixed score: the network predicts what is left
                rows = rows - np.linalg.solve(sde.score_matrix(t, self.start_cov), skip @ self.kernel(t))
            return np.broadcast_to(rows[..., list(self.predicted), :], (len(t), len(self.predicted), rows.shape[-1]))
        mu, factor = sde.mean(t), sde.factor(t)
        pull = np.swapaxes(np.linalg.solve(factor, mu), -1, -2)  # mu^T L^-T, [n, 1, K]
        g = (data_std**-2 + pull @ np.swapaxes(pull, -1, -2)) ** -0.5
        return np.concatenate([g * data_std**-2, -g * pull], axis=-1)

    def __call__(self, network: Network, coefficients: Coefficients, x0: Array, labels: Array, noise: Sequence[Array]):
        """Return the losses of the samples, ``[n]``. There is nothing else to report.

        Args:
          network: ``network(images, t)``.
          coefficients: of the times of the batch, in the dtype of ``x0``.
          x0: images ``[n, H, W, C]`` in [-1, 1].
          labels: not used.
          noise: D standard normal arrays shaped like ``x0``.
        """
        prediction = network(perturb(coefficients, x0, noise), coefficients.t)
        prediction = prediction[..., : len(self.predicted) * x0.shape[-1]]  # a learned variance is not trained
        target = blocks.apply(coefficients.target, (x0, *noise))
        error = tuple(p - q for p, q in zip(jnp.split(prediction, len(self.predicted), axis=-1), target, strict=True))
        if coefficients.weight is not None:
            error = blocks.apply(coefficients.weight, error)
        error = jnp.concatenate(error, axis=-1)
        error = jnp.square(error) if self.norm == "l2" else jnp.abs(error)
        axes = tuple(range(1, error.ndim))
        return (error.mean(axes) if self.reduce_mean else error.sum(axes)), {}


class ClassifierLoss(_Perturbation):
    """Cross-entropy of ``p(y | z_t, t)``, with ``z_t`` perturbed as for the score network.

    Args:
      sde: the diffusion.
      objective: ``"hsm"`` or ``"dsm"``, which here tells only how the momentum at ``t = 0`` is drawn.
      reduce_mean: whether training takes the mean over the batch, else the sum.

    Raises:
      ValueError: for an unknown objective.
    """

    def __init__(self, sde: LinearSDE, *, objective: str = "hsm", reduce_mean: bool = True):
        super().__init__(sde, objective)
        self.reduce_mean = reduce_mean

    def coefficients(self, t: np.ndarray) -> Coefficients:
        """Everything the loss needs at the times ``t [n]``, float64."""
        return Coefficients(t, self.kernel(t))

    def __call__(self, network: Network, coefficients: Coefficients, x0: Array, labels: Array, noise: Sequence[Array]):
        """Return the losses of samples, ``[n]``, and whether each was right (``accuracy``); arguments as for scores."""
        logits = network(perturb(coefficients, x0, noise), coefficients.t)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = jnp.argmax(logits, axis=-1) == labels
        return loss, {"accuracy": right.astype(loss.dtype)}
