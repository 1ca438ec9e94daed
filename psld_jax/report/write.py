"""Writing ``report.html``, the page that shows what the modes left in a work directory."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from psld_jax._runtime.errors import why
from psld_jax._runtime.journal import replace
from psld_jax.build import load_config
from psld_jax.checkpoints.directory import flatten
from psld_jax.report import _comparisons as comparisons
from psld_jax.report import atlas
from psld_jax.report._parts import Pictures, escape, facts, folded, table
from psld_jax.report._training import training
from psld_jax.report.page import Section, page

#: The name of the page in a work directory.
PAGE = "report.html"

Report = Mapping[str, Any]

#: What every report has, whatever the mode.
_COMMON = ("total_seconds", "finished", "device", "command", "config", "versions")


def write_report(workdir: Path, content: Mapping[str, Report], refresh: float | None = None) -> Path:
    """Write the page of a work directory, and return where it is.

    Args:
      workdir: holds the pictures and tables of the modes.
      content: the reports by mode, those of ``report.json``.
      refresh: seconds after which a browser opens the page again, while a run is going on.
    """
    pictures = Pictures()
    sections = []
    for mode in sorted(content, key=lambda mode: str(content[mode].get("finished", "")), reverse=True):
        if isinstance(content[mode], Mapping):
            sections.append(_section(mode, content[mode], workdir, pictures))
    modes = ", ".join(content)
    lead = "Point at a curve, or go along it with the arrow keys. Click a picture for its full size, a column to sort."
    path = workdir / PAGE
    replace(path, page(f"psld_jax: {modes} in {workdir.absolute().name}", lead, sections, refresh=refresh))
    return path


def _section(mode: str, report: Report, workdir: Path, pictures: Pictures) -> Section:
    titles = {"bench": "Bench", "tune": "Tuning", "train": "Training", "sample": "Samples", "evaluate": "Evaluation"}
    try:
        shown = _SHOWN.get(mode, _anything)(report, workdir, pictures)
        shown = atlas.link(workdir) + shown if mode in _COMPARED else shown
    except (OSError, ValueError, KeyError, TypeError) as error:
        # The result is in report.json, and safe; its files may have been moved or be of another version.
        shown = f"<p>The files of this run cannot be shown: {escape(f'{type(error).__name__}: {why(error)}')}.</p>"
    return Section(mode, titles.get(mode, mode.capitalize()), shown + _what_was_run(report))


def _what_was_run(report: Report) -> str:
    """Show command, configuration (what differs from the default comes first), device and versions."""
    config = flatten(report.get("config", {}), separator=".")
    default = flatten(json.loads(load_config("default").to_json()), separator=".")
    changed = [
        {"field": name, "value": _written(value), "default": _written(default.get(name))}
        for name, value in config.items()
        if value != default.get(name)
    ]
    everything = [{"field": name, "value": _written(value)} for name, value in config.items()]
    command = shlex.join(map(str, report.get("command", ())))
    about = {
        "finished": report.get("finished", "-"),
        "seconds": report.get("total_seconds"),
        "device": report.get("device", "-"),
    }
    parts = ["<h3>What was run</h3>", facts(about), f"<pre>{escape(command)}</pre>"]
    if changed:
        parts.append(table("Fields of the configuration that differ from the default", changed))
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    parts.append(folded("Whole configuration", table("Every field", everything)))
    parts.append(folded("Versions", f"<p>{escape(versions)}</p>"))
    return "".join(parts)


def _written(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value or "(empty)"


def _sample(report: Report, workdir: Path, pictures: Pictures) -> str:
    counts = report.get("evaluations") or {}
    about = {
        "sampler": report.get("sampler"),
        "evaluations of the network a sample": report.get("nfe_mean"),
        "of these, with a backward pass": counts.get("backward") or None,
        "passes of the classifier a sample": counts.get("classifier") or None,
        "samples": report.get("num_samples"),
        "seconds, compilation included": report.get("seconds"),
        "Frechet distance to the exact law": report.get("frechet"),
        "error to the truth (root mean square)": report.get("rmse_to_truth"),
    }
    if isinstance(about["sampler"], Mapping):  # of many samples, written as files
        about["sampler"] = json.dumps(about["sampler"])
    setting = report.get("setting") or {}
    if setting:
        about["sampler"] = comparisons.sampler_text(setting) + (", by auto" if about["sampler"] == "auto" else "")
        about |= {"time grid": comparisons.grid_text(setting), **setting.get("hyper", {})}
    files = {
        "samples.png": "Samples, and their momentum where there is one",
        "restored.png": "What was seen, samples, and the truth",
        "trajectories.png": "One pixel on its way through phase space, by three samplers from the same noise",
    }
    shown = pictures.gallery((workdir / name, text) for name, text in files.items() if (workdir / name).is_file())
    return shown + facts({name: value for name, value in about.items() if value is not None})


def _anything(report: Report, workdir: Path, pictures: Pictures) -> str:
    """Show the numbers of a report, for modes that have no pictures of their own."""
    scalars = {
        name.replace("_", " "): value
        for name, value in report.items()
        if name not in _COMMON and (value is None or isinstance(value, (str, int, float)))
    }
    return facts(scalars)


_SHOWN: dict[str, Callable[[Report, Path, Pictures], str]] = {
    "sample": _sample,
    "bench": comparisons.bench,
    "evaluate": comparisons.evaluation,
    "tune": comparisons.tuning,
    "train": training,
    "atlas": atlas.section,
}

#: Modes that compare samplers, which the atlas shows at work.
_COMPARED = ("bench", "evaluate", "tune")
