"""Which publications to cite for what was used, as BibTeX."""

from __future__ import annotations

from typing import Any

from psld_jax import integrators, sde
from psld_jax._runtime.errors import unknown
from psld_jax._version import __version__
from psld_jax.build import MODELS, Model
from psld_jax.integrators.base import Integrator, aliases, source
from psld_jax.report import _bibliography as bibliography
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.settings import UNTUNED, Setting
from psld_jax.sampling.solver import LEARNED, Solver
from psld_jax.sde import LinearSDE
from psld_jax.sde.named import _REGISTRY as _PATHS

#: Configurations name these, and no publication is theirs: the exact score, and what is saved.
_NOBODYS = ("mixture", "saved")


def citation(*used: Any) -> str:
    """Return BibTeX for this package and for the publications behind what was ``used``, each of them once.

    Args:
      used: names of samplers (acronyms too; ``"auto"`` is what a model without a tuning has), paths, families of
        networks and posteriors (``"pigdm"``, ``"dps"``); or an integrator, a
        :class:`psld_jax.Setting`, a learned solver (for what it was learned from), a diffusion, or a model, which
        stands for its network and its path.

    Example:
      >>> import psld_jax as pj
      >>> text = pj.citation("predictor_corrector", pj.load("mnist"))
      >>> entries = [line for line in text.splitlines() if line.startswith("@")]
      >>> entries[1], entries[2]
      ('@inproceedings{zhao2023unipc,', '@inproceedings{zhang2023gddim,')

    Raises:
      ValueError: for a name that nothing has, with the nearest that something has.
    """
    entries = {"psld_jax": _package()}
    for thing in used:
        entries |= _entries(thing)
    return "\n\n".join(entry.bibtex(key) for key, entry in entries.items()) + "\n"


def _package() -> bibliography.Entry:
    title = "psld\\_jax: Fast Samplers for Diffusion Models in {JAX}"
    version = {"note": f"version {__version__}"}
    return bibliography.Entry("misc", title, "{The psld\\_jax authors}", 2026, version)


def _entries(thing: Any) -> dict[str, bibliography.Entry]:
    if isinstance(thing, Model):
        network = thing.config.model.name
        return {**(_named(network) if network not in _NOBODYS else {}), **_entries(thing.sde)}
    if isinstance(thing, Solver):
        return _of_start(thing.about)
    if isinstance(thing, Setting):
        if thing.solver is not None:
            return _entries(thing.solver)
        led = {key: bibliography.ENTRIES[key] for key in bibliography.ANALYTIC_START} if thing.t_start < 1 else {}
        return _of_integrator(thing.sampler) | led
    if isinstance(thing, Integrator):
        return _of_integrator(thing.name)
    if isinstance(thing, LinearSDE):
        names = [name for name in sde.available() if isinstance(thing, _PATHS[name])]
        # A path of one's own is nobody else's.
        return {key: entry for name in names for key, entry in _named(name).items()}
    return _named(str(thing))


def _of_start(about: Any) -> dict[str, bibliography.Entry]:
    """Return the publications of the setting that learning began with, also by way of other learned solvers."""
    start = about.get("start")
    while isinstance(start, dict) and start.get("sampler") == LEARNED:
        start = start.get("start")
    return _entries(Setting.from_json(start)) if isinstance(start, dict) else {}


def _named(name: str) -> dict[str, bibliography.Entry]:
    """Return the publications of every sampler, path, network and posterior of that name."""
    if name == "auto":
        return _of_integrator(UNTUNED)
    tables = (bibliography.PATHS, bibliography.NETWORKS, bibliography.POSTERIORS)
    keys = tuple(key for table in tables for key in table.get(name, ()))
    if name in SOLVERS:
        keys += bibliography.ADAPTIVE
    if keys:
        return {key: bibliography.ENTRIES[key] for key in keys}
    known = {alias.lower(): name for name in integrators.available() for alias in (name, *aliases(name))}
    if name.lower() in known:
        return _of_integrator(known[name.lower()])
    networks = [network for network in MODELS if network not in _NOBODYS]
    samplers = ("auto", *integrators.available(), *SOLVERS)
    names = {*samplers, *sde.available(), *networks, *bibliography.POSTERIORS}
    raise unknown("sampler, path or network", name, names)


def _of_integrator(name: str) -> dict[str, bibliography.Entry]:
    said = source(name)
    keys = bibliography.INTEGRATORS.get(name) or bibliography.SOURCES.get(said)
    if keys:
        return {key: bibliography.ENTRIES[key] for key in keys}
    # An integrator of somebody else's, registered with what they say of it.
    author, _, year = said.rpartition(", ")
    if not (author and year.isdigit()):
        return {}
    return {name: bibliography.Entry("misc", name.replace("_", " "), author.replace(" & ", " and "), int(year), {})}
