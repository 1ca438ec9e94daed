"""Published samplers in plain numpy, from their formulas for ``x_0 + sigma eps`` and a denoiser ``D(x, sigma)``.

Nothing here knows of the library: no tables, no paths, no frames. Every function takes the denoiser, the first state
``y``, noise levels that fall (``[N + 1]``, the last above 0), and the noise to use, one array a step where there is
any.
"""

import numpy as np
from scipy.integrate import quad


class Mixture:
    """The denoiser of data points smoothed with ``bandwidth``: ``E[x_0 | x]``, by Bayes' rule."""

    def __init__(self, data, bandwidth):
        self.data, self.variance = data.reshape(len(data), -1), bandwidth**2

    def __call__(self, x, sigma):
        flat = x.reshape(len(x), -1)
        total = sigma**2 + self.variance
        distance = ((flat[:, None] - self.data) ** 2).sum(-1)
        weight = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * total))
        mean = weight @ self.data / weight.sum(1, keepdims=True)
        return (mean + self.variance / total * (flat - mean)).reshape(x.shape)


def slope(denoise, x, sigma):
    return (x - denoise(x, sigma)) / sigma


def heun(denoise, y, sigmas, noise=None, *, churn=0.0, low=0.0, high=np.inf, scale=1.0, total=None, alpha=1.0):
    """Karras et al., 2022, algorithm 2, without its last step; ``total`` is their N. ``alpha``: algorithm 3."""
    total = total or len(sigmas) - 1
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        gamma = min(churn / total, np.sqrt(2) - 1) if low <= now <= high else 0.0
        hat = now * (1 + gamma)
        if noise is not None:
            y = y + np.sqrt(hat**2 - now**2) * scale * noise[i]
        d = slope(denoise, y, hat)
        h = then - hat
        middle = y + alpha * h * d
        late = slope(denoise, middle, hat + alpha * h)
        y = y + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * late)
    return y


def euler(denoise, y, sigmas):
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        y = y + (then - now) * slope(denoise, y, now)
    return y


def dpm2(denoise, y, sigmas):
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        middle = np.exp(0.5 * (np.log(now) + np.log(then)))
        half = y + (middle - now) * slope(denoise, y, now)
        y = y + (then - now) * slope(denoise, half, middle)
    return y


def lms(denoise, y, sigmas, order):
    """Integrals of the Lagrange polynomials in sigma, by numpy's polynomials."""
    seen = []
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        seen = [(now, slope(denoise, y, now)), *seen][:order]
        for j, (at, d) in enumerate(seen):
            basis = np.poly1d([1.0])
            for m, (other, _) in enumerate(seen):
                if m != j:
                    basis = basis * np.poly1d([1.0, -other]) / (at - other)
            whole = basis.integ()
            y = y + (whole(then) - whole(now)) * d
    return y


def deis_log_rho(denoise, y, sigmas, order, lower_order_final=False):
    """The same with polynomials in log sigma, by quadrature."""
    seen, steps = [], len(sigmas) - 1
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        seen = [(now, slope(denoise, y, now)), *seen][:order]
        used = seen[: steps - i] if lower_order_final else seen
        for j, (at, d) in enumerate(used):
            others = [other for m, (other, _) in enumerate(used) if m != j]

            def basis(u, at=at, others=others):
                return np.exp(u) * np.prod([(u - np.log(o)) / (np.log(at) - np.log(o)) for o in others])

            y = y + quad(basis, np.log(now), np.log(then), epsabs=1e-13, epsrel=1e-12)[0] * d
    return y


def ipndm(denoise, y, sigmas, order):
    weights = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    seen = []
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        seen = [slope(denoise, y, now), *seen][:order]
        y = y + (then - now) * sum(w * d for w, d in zip(weights[len(seen)], seen, strict=True))
    return y


def dpm_solver_pp_2m(denoise, y, sigmas, noise=None):
    """With ``noise``: SDE-DPM-Solver++(2M)."""
    before = None
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        h, d = np.log(now / then), denoise(y, now)
        guess = d
        if before is not None:
            r = before[0] / h
            guess = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * before[1]
        if noise is None:
            y = then / now * y - np.expm1(-h) * guess
        else:
            y = then / now * np.exp(-h) * y - np.expm1(-2 * h) * guess + then * np.sqrt(-np.expm1(-2 * h)) * noise[i]
        before = (h, d)
    return y


def dpm_solver_pp_3m(denoise, y, sigmas, factor, lower_order_final=False):
    """``factor`` 1: the authors' weight of the second difference; 2: the one that is exact for quadratics."""
    seen, steps = [], len(sigmas) - 1
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        h = np.log(now / then)
        seen = [(np.log(now), denoise(y, now)), *seen][:3]
        order = min(len(seen), steps - i if lower_order_final else 3)
        phi_1 = np.expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        first = seen[0][1]
        y = then / now * y - phi_1 * first
        if order > 1:
            r_0 = (seen[1][0] - seen[0][0]) / h
            change = (first - seen[1][1]) / r_0
            if order == 2:
                y = y - 0.5 * phi_1 * change
        if order > 2:
            r_1 = (seen[2][0] - seen[1][0]) / h
            older = (seen[1][1] - seen[2][1]) / r_1
            y = y + phi_2 * (change + r_0 / (r_0 + r_1) * (change - older))
            y = y - factor * phi_3 / (r_0 + r_1) * (change - older)
    return y


def dpm_solver_pp_2s(denoise, y, sigmas):
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        middle, h = np.sqrt(now * then), np.log(now / then)
        half = middle / now * y - np.expm1(-h / 2) * denoise(y, now)
        y = then / now * y - np.expm1(-h) * denoise(half, middle)
    return y


def unipc(denoise, y, sigmas, order, variant, lower_order_final=False):
    """The authors' linear systems for the weights, and their halves; the last step is not corrected."""

    def differences(newest, nodes, h):
        ratios = np.array([(at - newest[0]) / h for at, _ in nodes])
        return ratios, [(d - newest[1]) / r for r, (_, d) in zip(ratios, nodes, strict=True)]

    def weights(ratios, h):
        hh, size = -h, len(ratios)
        scale = hh if variant == "bh1" else np.expm1(hh)
        rows, right, term, factorial = [], [], np.expm1(hh) / hh - 1, 1
        for i in range(1, size + 1):
            rows.append(ratios ** (i - 1))
            right.append(term * factorial / scale)
            factorial *= i + 1
            term = term / hh - 1 / factorial
        return scale, np.linalg.solve(np.array(rows), np.array(right))

    seen, waiting, steps = [], None, len(sigmas) - 1
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        lam, d = -np.log(now), None
        if waiting is not None:
            old, start, nodes, h = waiting
            d = denoise(y, now)
            ratios, change = differences(nodes[0], [*nodes[1:], (lam, d)], h)
            scale, rho = weights(ratios, h)
            if len(nodes) == 1:
                rho = np.array([0.5])
            y = (
                now / old * start
                - np.expm1(-h) * nodes[0][1]
                - scale * sum(w * c for w, c in zip(rho, change, strict=True))
            )
        d = denoise(y, now) if d is None else d
        seen = [(lam, d), *seen][:order]
        used = seen[: steps - i] if lower_order_final else seen
        h = -np.log(then) - lam
        start = y
        y = then / now * start - np.expm1(-h) * d
        if len(used) > 1:
            ratios, change = differences(used[0], used[1:], h)
            scale, rho = weights(ratios, h)
            if len(used) == 2:
                rho = np.array([0.5])
            y = y - scale * sum(w * c for w, c in zip(rho, change, strict=True))
        waiting = now, start, list(used), h
    return y


def euler_ancestral(denoise, y, sigmas, noise, eta):
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        up = min(then, eta * np.sqrt(then**2 * (now**2 - then**2) / now**2))
        down = np.sqrt(then**2 - up**2)
        y = y + (down - now) * slope(denoise, y, now) + up * noise[i]
    return y


def ddim(denoise, x, alpha_bar, noise, eta):
    """Song, Meng & Ermon (2021, eq. 12, 16) for a VP state: ``alpha_bar`` rises."""
    for i, (now, then) in enumerate(zip(alpha_bar[:-1], alpha_bar[1:], strict=True)):
        x_0 = denoise(x / np.sqrt(now), np.sqrt(1 / now - 1))
        eps = (x - np.sqrt(now) * x_0) / np.sqrt(1 - now)
        std = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
        x = np.sqrt(then) * x_0 + np.sqrt(1 - then - std**2) * eps + std * noise[i]
    return x


def restart(denoise, y, sigmas, noise, interval, rho, scale):
    """Xu et al., 2023, algorithm 1, with Heun: one interval, from the first level at or below its end."""
    low, high, steps, repeats = interval
    draw = iter(noise)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        y = heun(denoise, y, np.array([now, then]))
        if then <= low < now:
            for _ in range(repeats):
                y = y + scale * np.sqrt(high**2 - then**2) * next(draw)
                levels = np.linspace(high ** (1 / rho), then ** (1 / rho), steps + 1) ** rho
                y = heun(denoise, y, levels)
    return y


def sa_solver(denoise, y, sigmas, noise, predictor, corrector, tau, original=False, lower_order_final=False):
    """Xue et al., 2023, eq. 14 to 17: integrals by quadrature, the corrector with the noise of its predictor.

    ``original``: as their code has it for two evaluations, the first moment of the integral is ``h^2 / 2``.
    """

    def step(now, then, start, nodes, xi):
        h, weight = np.log(now / then), 1 + tau**2
        out = then / now * np.exp(-(tau**2) * h) * start + then * np.sqrt(-np.expm1(-2 * tau**2 * h)) * xi
        end = -np.log(then)
        for j, (at, d) in enumerate(nodes):
            others = [other for m, (other, _) in enumerate(nodes) if m != j]

            def basis(lam, at=at, others=others):
                return weight * np.exp(-weight * (end - lam)) * np.prod([(lam - o) / (at - o) for o in others])

            out = out + quad(basis, -np.log(now), end, epsabs=1e-13, epsrel=1e-12)[0] * d
        if original and len(nodes) == 2:
            exact = (h * weight - 1 + np.exp(-weight * h)) / weight**2
            (newer, new), (older, old) = nodes
            out = out + weight * (h**2 / 2 - exact) / (newer - older) * (new - old)
        return out

    seen, waiting, steps = [], None, len(sigmas) - 1
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        d = denoise(y, now)
        seen = [(-np.log(now), d), *seen]
        most = steps - i if lower_order_final else len(seen)
        if waiting is not None and corrector:
            y = step(waiting[0], now, waiting[1], seen[: min(corrector, most + 2)], waiting[2])
        start = y
        y = step(now, then, start, seen[: min(predictor, most)], noise[i])
        waiting = now, start, noise[i]
    return y
