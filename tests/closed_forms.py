"""Problems with known answers, solved here by other means than the library's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import psld_jax as pj
from psld_jax._runtime.device import TimeFunction


def is_splitting(name):
    """Whether an integrator splits position from momentum, so that it needs K = 2."""
    return any(word in name for word in ("symplectic", "verlet", "oba", "baoab"))


class GaussianData:
    """Every pixel of ``x_0`` is ``N(mean, variance)``: the law of ``z_t``, its exact eps, and the exact ODE flow."""

    def __init__(self, sde, mean=0.7, variance=0.3):
        self.sde, self.mean0, self.variance = sde, mean, variance
        # The same few hundred times for every integrator, and one flow.
        self.jacobian_at, self.offset_at, self.ode_flow = map(functools.cache, (self.jacobian, self.offset, self._flow))

    def mean(self, t):
        return self.sde.mean(t)[..., 0] * self.mean0

    def cov(self, t):
        mu = self.sde.mean(t)
        return self.sde.cov(t) + self.variance * mu @ np.swapaxes(mu, -1, -2)

    def jacobian(self, t):
        return -np.linalg.solve(self.sde.score_matrix(t), np.linalg.inv(self.cov(t)))

    def offset(self, t):
        return -(self.jacobian(t) @ self.mean(t)[..., None])[..., 0]

    def eps_fn(self, t_min=1e-3):
        """The exact eps from ``t_min`` on, for traced times."""
        return affine(lambda t: np.concatenate([self.jacobian(t), self.offset(t)[..., None]], axis=-1), t_min)

    def _flow(self, t, s):
        """``(M, c)`` of the exact map ``z_s = M z_t + c``, by an adaptive solve to twelve digits."""
        k = self.sde.num_blocks

        def velocity(u, y):
            z = y.reshape(k, k + 1)
            shift = np.zeros((k, k + 1))
            shift[:, -1] = self.mean(u)
            score = -np.linalg.solve(self.cov(u), z - shift)
            return (self.sde.drift(u) @ z - 0.5 * self.sde.diffusion(u) @ score).ravel()

        start = np.concatenate([np.eye(k), np.zeros((k, 1))], axis=1)
        end = solve_ivp(velocity, (t, s), start.ravel(), rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1]
        return np.split(end.reshape(k, k + 1), [k], axis=1)


# An eps function of a test is one of these, or has its parameters as leaves of a pytree: a program is compiled for a
# function, so that a function of its own for every case is a compilation for every case.


def affine(matrices, t_min=1e-6):
    """``eps = M(t) z + c(t)`` from a host function ``matrices(t)``: times ``[n]`` to ``[M, c] [n, K, K + 1]``."""
    return jax.tree_util.Partial(_affine, TimeFunction(matrices, t_min))


def _affine(coefficients, z, t):
    rows = coefficients(jnp.asarray(t, z[0].dtype))
    moved = pj.blocks.apply(rows[:, :-1], z)
    return pj.blocks.like(z, (leaf + rows[i, -1] for i, leaf in enumerate(moved)))


def smooth_eps(z, t):
    """A smooth stand-in for a network that mixes neither pixels nor samples; any K, any pytree."""
    return tuple(jax.tree.map(lambda leaf: (0.6 + 1.4 * t) * leaf + 0.3 * jnp.sin(2 * leaf), block) for block in z)


def linear_eps(z, t):
    """An eps linear in the state."""
    return tuple(jax.tree.map(lambda leaf: (0.5 + t) * leaf, block) for block in z)
