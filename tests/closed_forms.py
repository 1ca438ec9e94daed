"""Problems with known answers, solved here by other means than the library's."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp


def is_splitting(name):
    """Whether an integrator splits position from momentum, so that it needs K = 2."""
    return any(word in name for word in ("symplectic", "verlet", "oba", "baoab"))


class GaussianData:
    """Every pixel of ``x_0`` is ``N(mean, variance)``: the law of ``z_t``, its exact eps, and the exact ODE flow."""

    def __init__(self, sde, mean=0.7, variance=0.3):
        self.sde, self.mean0, self.variance = sde, mean, variance

    def mean(self, t):
        return self.sde.mean(t)[:, 0] * self.mean0

    def cov(self, t):
        mu = self.sde.mean(t)
        return self.sde.cov(t) + self.variance * mu @ mu.T

    def jacobian(self, t):
        return -np.linalg.solve(self.sde.score_matrix(t), np.linalg.inv(self.cov(t)))

    def offset(self, t):
        return -self.jacobian(t) @ self.mean(t)

    def ode_flow(self, t, s):
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


def smooth_eps(z, t):
    """A smooth stand-in for a network that mixes neither pixels nor samples; any K, any pytree."""
    return tuple(jax.tree.map(lambda leaf: (0.6 + 1.4 * t) * leaf + 0.3 * jnp.sin(2 * leaf), block) for block in z)


def linear_eps(z, t):
    """An eps linear in the state."""
    return tuple(jax.tree.map(lambda leaf: (0.5 + t) * leaf, block) for block in z)
