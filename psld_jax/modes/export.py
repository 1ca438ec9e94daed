"""``--mode export | program``: write a network, or a sampler with its network, to pass on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from psld_jax.checkpoints import directory as checkpoint
from psld_jax.modes._common import prepared, sampled_model
from psld_jax.sampling.program import check_budget, save_program


def run_export(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Write the latest weights of the training run in ``workdir`` to ``workdir/model``, a directory to pass on.

    Raises:
      ValueError: if there is no checkpoint, or not the weights that were asked for.
    """
    latest = checkpoint.latest_training(workdir)
    if latest is None:
        raise ValueError(f"{workdir} holds no checkpoint of a training run; train first, or choose its work directory")
    weights = checkpoint.choose_weights(latest, config.model.weights or None)
    stored, params = checkpoint.read_training(latest, weights)
    stored["data"]["path"] = ""  # a place on this machine
    output = workdir / "model"
    shapes = {path: {"shape": list(np.shape(array))} for path, array in checkpoint.flatten(params).items()}
    with checkpoint.new_directory(output, overwrite=True) as directory:
        checkpoint.write_parameters(directory, weights, params)
        index = {"source": {"training_steps": int(latest.name)}, "parameters": {weights: shapes}}
        checkpoint.write_description(directory, stored, index)
        if (workdir / "samplers.json").exists():
            shutil.copy(workdir / "samplers.json", directory)
    console.print(f"{weights} weights of step {latest.name} in {output}: psld_jax.load({str(output)!r}) opens them")
    return {"step": int(latest.name), "weights": weights}


def run_program(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Write the sampler with its network to ``workdir/sampler.npz``, for :class:`psld_jax.sampling.program.Program`.

    Raises:
      ValueError: for a budget beyond what a program holds, an adaptive solver, or conditions.
    """
    check_budget(config.sampler.nfe)
    sampler, output = prepared(sampled_model(config), config), workdir / "sampler.npz"
    save_program(sampler, output, batch_size=config.sampling.batch_size, platforms=config.program.platforms)
    console.print(f"{output}: {sampler.nfe} evaluations, {output.stat().st_size / 1e6:.1f} MB")
    return {"program": str(output), "nfe": sampler.nfe}
