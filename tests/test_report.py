"""The page of a run: one file with all that it needs inside, and nothing of a run's text that would be executed."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from seeds import generator

from psld_jax import build, modes
from psld_jax.evaluation import families, plots
from psld_jax.integrators import available
from psld_jax.modes import train as live
from psld_jax.report import _parts as parts
from psld_jax.report import atlas
from psld_jax.report.page import Section, page
from psld_jax.report.write import PAGE, write_report
from psld_jax.sampling.generate import generate

CONFIG = json.loads(build.load_config("digits").to_json())
COMMON = {
    "total_seconds": 1.5,
    "finished": "2026-01-02 03:04:05 +0000",
    "device": "1 x cpu (test)",
    "command": ["psld-jax", "--config", "digits", "--config.sampler.name=a b"],
    "config": {**CONFIG, "seed": 7},
    "versions": {"python": "3.11", "jax": "0.10"},
}


class Reader(html.parser.HTMLParser):
    """Sees that every tag is closed, and takes down tags with their attributes."""

    VOID = {"meta", "link", "img", "br", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def rows(names=("ddim", "reduced_oba", "predictor_corrector"), column="distance", **more):
    """Made-up rows of an evaluation: every sampler at two budgets."""
    return [
        {
            "sampler": name,
            "budget": budget,
            "nfe": budget,
            column: (i + 1) / budget,
            "spread": 0.01,
            "not_finite": 0,
            "seeds": 2,
            "num_samples": 8,
            "seconds": 0.5,
            "setting": {"sampler": name, "grid": "quadratic", "hyper": {"lam": 0.5}},
            **more,
        }
        for i, name in enumerate(names)
        for budget in (5, 10)
    ]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator(path.name).integers(0, 255, (8, 8), np.uint8)).save(path)
    return path


@pytest.fixture
def workdir(tmp_path):
    """What every mode leaves, made up and small."""
    tuned = [row | {"rmse": 0.1, "floor": 0.05, "loss": 1.0} for row in rows()]
    (tmp_path / "samplers.json").write_text(json.dumps({"model": "x", "best": [], "rows": tuned}))
    metrics = [
        {"step": s, "loss": 1 / s, "grad_norm": 1.0, "lr": 0.1, "images_per_second": 9.0, "loss_by_time": [0.5] * 20}
        for s in range(1, 1200)
    ]
    metrics.append({"step": 5, "held_out_loss": 0.4, "held_out_by_time": [None, *[0.5] * 19]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for name in ("samples.png", "trajectories.png", "pictures/ddim_5.png", "samples/00000005.png"):
        picture(tmp_path / name)
    return tmp_path


@pytest.fixture
def content(workdir):
    tuned = json.loads((workdir / "samplers.json").read_text())["rows"]
    bench_rows = [{**row, "frechet": row["distance"], "rmse": None, "grid": "quadratic", "hyper": {}} for row in tuned]
    bench_rows[0]["frechet"] = float("inf")
    reports = {
        "sample": {"sampler": "ddim", "nfe_mean": 20.0, "num_samples": 4, "seconds": 0.1, "setting": None},
        "bench": {"rows": bench_rows, "floor": 0.1, "num_samples": 8},
        "evaluate": {"rows": rows(kid=0.1), "real": [0.1, 0.01], "features": "pixels"},
        "tune": {"best": []},
        "train": {"steps": 5, "hours": 0.1, "loss": 0.2, "stopped": None},
        "likelihood": {"nats_per_dim": 1.25},
    }
    return {mode: {**report, **COMMON} for mode, report in reports.items()}


def test_one_page_shows_every_mode_and_needs_nothing_else(workdir, content):
    text = write_report(workdir, content).read_text()
    found = Reader(text)
    assert [attrs["id"] for attrs in found.all("section")] == list(content)
    asked = [attrs[name] for _, attrs in found.tags for name in ("src", "href") if attrs.get(name)]
    assert len(asked) > 10 and all(address.startswith(("data:", "#")) for address in asked)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text
    plots_shown = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    titles = [spec["title"] for spec in plots_shown]
    assert titles[:2] == ["Frechet distance to the exact law", "Frechet distance to the data"]  # no error was known
    assert {"Distance of every sampler at its best", "Best lam", "Loss", "Loss by time, latest interval"} < set(titles)
    assert all(attrs["alt"] for attrs in found.all("img")[:-1])  # the last is that of the dialog, filled by the script
    assert len(found.all("img")) == 5
    assert "--config.sampler.name=a b" in text and "1 x cpu (test)" in text and "2026-01-02" in text
    loss = next(spec for spec in plots_shown if spec["title"] == "Loss")
    assert [p[0] for p in loss["series"][0]["points"]][-1] == 1199 and len(loss["series"][0]["points"]) <= 500


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"sampler": "ddim", "grid": "uniform", "hyper": {}, "t_start": 0.4}, ("ddim", "analytic start at t=0.4")),
        ({"sampler": "learned", "grid": "quadratic", "hyper": {}, "solver": {"nfe": 5}}, ("learned solver", "that of")),
    ],
)
def test_the_page_names_what_auto_took(tmp_path, setting, shown):
    report = {"sampler": "auto", "nfe_mean": 5.0, "num_samples": 4, "seconds": 0.1, "setting": setting, **COMMON}
    text = write_report(tmp_path, {"sample": report}).read_text()
    assert f"{shown[0]}, by auto" in text and shown[1] in text


def test_values_that_are_not_finite_and_missing_files_are_said(workdir, content):
    text = write_report(workdir, content).read_text()
    assert "not finite" in text
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text):
        json.loads(data, parse_constant=pytest.fail)  # NaN and Infinity are no JSON: the browser would refuse all of it
    (workdir / "samplers.json").write_text("{")
    shutil.rmtree(workdir / "samples")
    text = write_report(workdir, content).read_text()
    assert "The files of this run cannot be shown: ValueError:" in text and 'id="evaluate"' in text


def test_text_of_a_run_is_not_executed(workdir, content):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    content["evaluate"]["rows"][0]["sampler"] = content["evaluate"]["features"] = evil
    content["sample"]["command"] = [evil]
    before, after = len(Reader(write_report(workdir, content).read_text()).all("script")), None
    content["evaluate"]["rows"][0]["sampler"] = content["evaluate"]["features"] = "fine"
    content["sample"]["command"] = ["fine"]
    found = Reader(write_report(workdir, content).read_text())
    after = len(found.all("script"))
    assert before == after and not any("onerror" in attrs for _, attrs in found.tags)


def test_a_page_stays_below_five_megabytes_and_names_what_is_left_out(tmp_path, rng):
    files = []
    for i in range(6):
        path = tmp_path / f"{i}.png"
        path.write_bytes(rng.bytes(900_000))
        files.append((path, f"picture {i}"))
    shown = parts.Pictures().gallery(files)
    assert shown.count("<img") == 3 and "3.png, 4.png, 5.png" in shown
    assert len(page("t", "l", [Section("a", "A", shown)])) < 5_000_000


def test_numbers_for_people():
    assert [parts.text(value) for value in (None, 3, 1234567, 0.123456, 2.0, float("nan"), "x", True)] == [
        *("-", "3", "1,234,567", "0.1235", "2", "not finite", "x", "True")
    ]


def test_a_run_leaves_its_page(tmp_path):
    overrides = {"data.num_points": 20, "sampling.num_samples": 2, "sampler.nfe": 3, "sampler.name": "ddim"}
    config = build.override(build.load_config("digits"), overrides)
    modes.run("sample", config, tmp_path, Console(quiet=True))
    text, report = (tmp_path / PAGE).read_text(), json.loads((tmp_path / "report.json").read_text())["sample"]
    assert report["device"] in text and report["finished"][:4].isdigit()
    assert "data.num_points" in text and len(Reader(text).all("img")) == 3


# The atlas, and a page that is written while a run goes on.


def way(rng, frames=5, n=3, size=4, **more):
    pictures = {key: rng.integers(0, 256, (frames, n, size, size, 1), dtype=np.uint8) for key in atlas.VIEWS}
    made = {"sampler": "ddim", "budget": 4, "nfe": 4, "note": "quadratic grid", "stochastic": False, "error": 0.5}
    return atlas.Way(**(made | more), steps=np.arange(frames), times=np.linspace(1, 0, frames), pictures=pictures)


def atlas_data(path):
    (data,) = re.findall(r'<script type="application/json" id="atlas-data">(.*?)</script>', path.read_text())
    return json.loads(data)


def sheet(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_an_atlas_holds_every_frame_of_every_sample(tmp_path, rng):
    one, other = way(rng), way(rng, sampler="</script>", frames=3)
    fine = rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    assert atlas.write_atlas(tmp_path, [one, other], fine) == 5
    found = Reader((tmp_path / atlas.ATLAS).read_text())
    assert len(found.all("script")) == 2 and len(found.all("input")) == 2 + 4
    data = atlas_data(tmp_path / atlas.ATLAS)
    assert data["samplers"] == ["ddim", "</script>"] and data["ways"][1]["steps"] == [0, 1, 2]
    assert np.array_equal(sheet(data["fine"]), np.concatenate(list(fine[..., 0]), axis=1))
    for key, pictures in one.pictures.items():
        shown = sheet(data["ways"][0]["images"][key]).reshape(5, 4, 3, 4).transpose(0, 2, 1, 3).astype(int)
        assert np.array_equal(shown[-1], pictures[-1, ..., 0])
        assert np.abs(shown - pictures[..., 0]).max() <= 2  # 64 levels of four values each


def test_an_atlas_that_is_too_large_has_fewer_frames_or_is_refused(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(atlas, "_ROOM", 6000)
    fine = rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    frames = atlas.write_atlas(tmp_path, [way(rng, frames=20, size=8)], fine)
    (kept,) = atlas_data(tmp_path / atlas.ATLAS)["ways"]
    assert 2 < frames < 20 and len(kept["steps"]) == frames and (kept["steps"][0], kept["steps"][-1]) == (0, 19)
    assert sum(map(len, kept["images"].values())) <= 6000
    atlas.check_room(1, 3, 3, (8, 8, 1))
    with pytest.raises(ValueError, match=r"3 samples of 64 x 64 pixels is too large .* config\.atlas\.num_samples"):
        atlas.check_room(1, 3, 3, (64, 64, 1))


@pytest.mark.slow
def test_the_atlas_shows_what_the_samplers_draw(tmp_path):
    fields = {"data.num_points": 20, "atlas.samplers": ("ddim", "heun", "ROBA"), "atlas.nfe": (2, 6)}
    fields |= {"atlas.num_samples": 2, "atlas.frames": 3, "atlas.solver": "rk23", "atlas.tolerance": 1e-3}
    config, said = build.override(build.load_config("digits"), fields), io.StringIO()
    modes.run("atlas", config, tmp_path, Console(file=said, width=200))
    report = json.loads((tmp_path / "report.json").read_text())["atlas"]
    data = atlas_data(tmp_path / atlas.ATLAS)
    assert "heun is left out for 2 evaluations: they are too few" in said.getvalue()
    assert [(w["sampler"], w["budget"]) for w in data["ways"]] == [
        *(("ddim", 2), ("ROBA", 2), ("ddim", 6), ("heun", 6), ("ROBA", 6))
    ]
    assert [w["stochastic"] for w in data["ways"]] == [False, True, False, False, True]
    for w, row in zip(data["ways"], report["rows"], strict=True):
        assert w["nfe"] <= w["budget"] and (w["steps"][0], w["times"][0], w["times"][-1]) == (0, 1.0, 0.0)
        assert set(w["images"]) == set(atlas.VIEWS) and w["error"] == row["error"] > 0
    # The last frame is what generate draws, and the fine solution what an adaptive solver does.
    model = build.build_model(config)
    drawn = generate(model, "ddim", nfe=6, n=2, seed=config.seed)
    assert np.array_equal(sheet(data["ways"][2]["images"]["position"])[-8:, :8], atlas.to_levels(drawn)[0, ..., 0])
    fine = generate(model, "rk23", n=2, seed=config.seed, rtol=1e-3, atol=1e-3)
    assert np.abs(sheet(data["fine"])[:, 8:].astype(int) - atlas.to_levels(fine)[1, ..., 0]).max() <= 1
    assert report["rows"][2]["error"] == pytest.approx(np.sqrt(np.mean((drawn - fine) ** 2)), rel=1e-4)
    assert {"href": "atlas.html"} in Reader((tmp_path / PAGE).read_text()).all("a")


def test_modes_that_compare_samplers_lead_to_the_atlas_if_there_is_one(workdir, content):
    assert not [a for a in Reader(write_report(workdir, content).read_text()).all("a") if a["href"] == atlas.ATLAS]
    (workdir / atlas.ATLAS).write_text("")
    found = Reader(write_report(workdir, content).read_text())
    assert [a["href"] for a in found.all("a")].count(atlas.ATLAS) == 3  # bench, evaluate and tune


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"atlas.samplers": ("rk45",)}, "'rk45' is adaptive and has no steps to show"),
        ({"atlas.samplers": ("heun",), "atlas.nfe": (2,)}, "leaves no sampler to show"),
        ({"atlas.num_samples": 10_000}, "too large for a page of 5 MB"),
        ({"atlas.solver": "euler"}, r"config\.atlas\.solver.*euler"),
        ({"atlas.frames": 1}, r"config\.atlas\.frames=1 must be an integer >= 2"),
    ],
)
def test_an_atlas_that_cannot_be_is_refused(tmp_path, fields, message):
    config = build.override(build.load_config("digits"), {"data.num_points": 20, **fields})
    with pytest.raises(ValueError, match=message):
        modes.run("atlas", config, tmp_path, Console(quiet=True))
    assert not (tmp_path / atlas.ATLAS).exists()


def test_the_page_of_a_run_is_opened_again_only_while_it_goes_on(workdir, content, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    about = {name: COMMON[name] for name in ("device", "command", "config", "versions")}
    told = io.StringIO()
    live_page = live.LivePage(workdir, about, Console(file=told, width=1000))
    live_page.end("no: nothing was begun")
    assert not (workdir / PAGE).exists() and not told.getvalue()

    def seen():
        found = Reader((workdir / PAGE).read_text())
        return {"http-equiv": "refresh", "content": "10"} in found.all("meta"), (workdir / PAGE).read_text()

    live_page({"step": 0, "steps": 2000})
    assert seen()[0] and "0 of 2,000" in seen()[1] and "time left" not in seen()[1]
    for now[0], step in ((9.9, 500), (10.1, 600)):
        live_page({"step": step, "steps": 2000, "loss": 0.25, "images_per_second": 9.0, "seconds_left": 61.0})
        assert ("600 of 2,000" in seen()[1]) == (step == 600)
    assert told.getvalue() == f"{workdir / PAGE} shows the run while it goes on\n"  # once, when it is there
    assert "0:01:01" in seen()[1] and "Learning rate" in seen()[1]
    live_page.end("no: ended by Diverged")
    assert not seen()[0] and "ended by Diverged" in seen()[1]
    write_report(workdir, content)
    assert not seen()[0]


# Families and the curves of a picture.


def test_every_sampler_has_a_family_and_every_family_a_sampler():
    found = {families.family(name) for name in (*available(), "tsit5")}
    assert found == set(range(len(families.FAMILIES) - 1))  # the last is for those that are not known
    names = {name: families.FAMILIES[families.family(name)][0] for name in available()}
    assert names["dpm_solver_pp_2m_sde"] == names["euler_ancestral"] == "stochastic"
    assert names["euler_edm"] == "Runge-Kutta" and names["conjugate_oba"] == "conjugate" != names["reduced_oba"]


def test_of_each_family_the_best_over_all_budgets_is_marked():
    pairs = {"ddim": (8.0, 2.0), "lambda_ddim_i": (2.0, 2.0), "conjugate": (None, 0.1), "heun": (9.0, float("inf"))}
    pairs |= {name: (3.0, 1.5) for name in available() if name.startswith("reduced_")}
    made = [
        {"sampler": name, "grid": "g", "budget": budget, "nfe": budget, "frechet": value}
        for name, pair in pairs.items()
        for budget, value in zip((5, 10), pair, strict=True)
    ]
    found = {line.name: line for line in families.lines(made, "frechet")}
    # Without a value at 5 it counts as the worst there, 9: sqrt(9 * 0.1) < sqrt(2 * 2).
    assert {"conjugate", "heun"} < {name for name, line in found.items() if line.best}
    assert sum(line.best for line in found.values()) == 3 and not found["ddim"].best
    assert [row["nfe"] for row in found["ddim"].rows] == [5, 10] and len(found["heun"].rows) == 1
    low, high = families.limits(list(found.values()), "frechet")
    assert low == pytest.approx(0.08) and high == pytest.approx(1.3 * 9)
    assert families.ticks(made) == [5, 10]
    assert families.lines([], "frechet") == []


def test_few_curves_have_a_colour_each():
    found = families.lines(rows(("ddim", "lambda_ddim_i", "heun")), "distance")
    assert all(line.best for line in found) and sorted(line.colour for line in found) == [0, 1, 2]
    assert families.ticks([{"nfe": 139.62, "budget": 0}, {"nfe": 10, "budget": 10}]) == [10, 140]


def test_the_picture_of_curves_names_the_best_and_no_others(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(plots, "label_ends", lambda axis, names, **_: written.append([name for _, name, _ in names]))
    made = rows(
        ("ddim", "lambda_ddim_i", "euler", "heun", "dpm2", "edm_heun", "euler_edm", "conjugate", "lambda_ddim_ii")
    )
    plots.save_curves(tmp_path / "curves.png", made, {"distance": "distance"}, {"distance": 0.05}, "real images")
    assert [sorted(names) for names in written] == [["ddim", "euler", "real images"]]
    assert Path(tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.skipif(shutil.which("node") is None, reason="no node, which runs the script of the page")
def test_values_that_lie_close_together_can_be_read_from_the_axes_of_the_page():
    script = (Path(parts.__file__).parent / "script.js").read_text()
    scale = script[script.index("class Scale") : script.index("class Plot")]
    spans = [[0.95, 1.03], [0.21, 0.49], [0.52, 0.69], [5, 20], [1e-3, 40]]
    code = f"{scale} console.log(JSON.stringify({spans}.map(([a, b]) => new Scale(a, b, true, 0, 1).ticks())))"
    found = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    for (low, high), levels in zip(spans, json.loads(found.stdout), strict=True):
        assert 3 <= len(levels) <= 10 and low * 0.999 <= levels[0] < levels[-1] <= high * 1.001
