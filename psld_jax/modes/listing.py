"""``--mode list``: print the samplers, configurations, networks and data sets that have a name."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from psld_jax import assets, build, data, integrators, sde
from psld_jax.sampling.adaptive import SOLVERS


def list_choices(console: Console) -> None:
    """Print samplers with order, evaluations a step and kind, and all else that has a name."""
    console.print("Samplers; NFE is of one step. psld_jax.integrators.describe(NAME) says what it does.")
    table = Table(box=None, pad_edge=False)
    for column in ("sampler", "also", "order", "NFE", "kind", "source"):
        table.add_column(column, no_wrap=True)
    table.add_column("hyper-parameters")
    for name in integrators.available():
        integrator = integrators.get(name)
        kind, names = "SDE" if integrator.stochastic else "ODE", ", ".join(integrators.aliases(name))
        cost, order = str(integrator.nfe_per_step), str(integrator.order)
        table.add_row(name, names, order, cost, kind, integrators.source(name), ", ".join(integrator.hyper))
    for name in SOLVERS:
        table.add_row(name, "", "", "-", "ODE", "", "rtol, atol")
    table.add_row("auto", "", "", "", "", "", "none: chosen for the model and the budget")
    console.print(table)
    for title, names in (
        ("configurations (--config NAME)", [p.stem for p in build.config_directory().glob("*.py")]),
        ("networks that ship (config.model.checkpoint, psld_jax.load)", assets.NETWORKS),
        ("diffusions (config.sde.name)", sde.available()),
        ("data sets (config.data.name)", data.available()),
    ):
        console.print(f"{title}: {', '.join(sorted(names))}")
