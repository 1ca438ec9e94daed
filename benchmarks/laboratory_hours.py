"""How long the laboratory takes: measured from three steps of training and evaluations of one batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.laboratory_networks import LAST_TUNED, LEARNING, Laboratory, usable
from benchmarks.network import evaluation, training
from psld_jax import build


def hours(laboratory: Laboratory) -> dict[str, float]:
    """What is left takes so long, by parts: measured from three steps, and evaluations of one batch."""
    o, kinds, parts = laboratory.options, {}, {"training": 0.0, "tuning": 0.0, "learning": 0.0, "samples": 0.0}
    for name, seed in o.jobs():
        config = laboratory.config(name, seed)
        sde = build.build_sde(config)
        if sde.num_blocks not in kinds:
            kinds[sde.num_blocks] = _seconds(config, o.batch)
        step, image = kinds[sde.num_blocks]
        names = usable(sde, o.samplers)
        place = laboratory.place(name, seed)
        if not (place / "network.json").exists():
            parts["training"] += o.steps * step
        if o.tune_samples and not (place / "tuned.json").exists():
            # As tune() says; a gradient costs about two passes more.
            runs = o.tune_samples * (o.candidates / 2 + 20 + 3 * o.gradient_steps)
            parts["tuning"] += sum(b for b in o.budgets if b <= LAST_TUNED) * len(names) * runs * image
        to_learn = o.to_learn()
        for budget in (b for b in to_learn if not (place / f"solver_{b}.json").exists()):
            parts["learning"] += o.iterations * _runs(sde.num_blocks, budget, o.learn_samples) * image
        cells = place / "cells.jsonl"
        whole = (len(names) * len(o.budgets) + len(to_learn)) * o.sample_seeds
        left = whole - (len(cells.read_text().splitlines()) - 1 if cells.exists() else 0)
        evaluations = (len(names) * sum(o.budgets) + sum(to_learn)) * o.sample_seeds * o.samples
        parts["samples"] += max(left, 0) / whole * evaluations * image
        # One sampler of each budget, and what is learned.
        if not (place / "finals.jsonl").exists():
            parts["samples"] += (sum(o.budgets) + sum(to_learn)) * o.final_seeds * o.final_samples * image
    return {part: seconds / 3600 for part, seconds in parts.items()}


def _runs(num_blocks: int, budget: int, num_samples: int) -> float:
    """Evaluations of one image in an iteration of learning, about: the Jacobian, and some trials."""
    seen = sum(min(step, LEARNING["history"]) for step in range(1, budget))
    numbers = budget + num_blocks**2 * (budget + seen)
    columns = min(LEARNING["jacobian_batches"] * LEARNING["batch_size"], num_samples)
    return numbers * budget / 2 * columns + 6 * budget * num_samples


def _seconds(config: Any, batch: int) -> tuple[float, float]:
    """Seconds of a step of training, and of one image through the network."""
    step, _ = training(config, config.train.batch_size)
    arguments = evaluation(config, batch)
    program, _ = measure.compiled(lambda f, z, t: f(z, t), *arguments)
    times = measure.by_turns({"step": step, "evaluation": lambda: program(*arguments)}, 3)
    return float(np.median(times["step"])), float(np.median(times["evaluation"])) / batch
