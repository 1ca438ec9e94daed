"""Pages of small runs in a real browser: nothing is fetched, nothing fails, mouse and keyboard do what they say."""

import gzip
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from seeds import generator

from psld_jax import build, modes
from psld_jax.report.write import PAGE

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.slow


def write_mnist(folder, rng):
    """Sixteen made-up digits as gzipped IDX files."""
    folder.mkdir()
    for name in ("train", "t10k"):
        images = rng.integers(0, 255, (16, 28, 28), dtype=np.uint8)
        for file, magic, content in (("images-idx3", 2051, images), ("labels-idx1", 2049, np.arange(16) % 10)):
            sizes = np.array([magic, *np.shape(content)], ">u4").tobytes()
            with gzip.open(folder / f"{name}-{file}-ubyte.gz", "wb") as out:
                out.write(sizes + np.asarray(content, np.uint8).tobytes())
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Every mode with a page of its own, in one work directory."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"data.num_points": 50, "sampling.num_samples": 4, "sampler.nfe": 5, "sampler.name": "ddim"}
    samplers = ("ddim", "reduced_oba", "predictor_corrector", "ancestral")
    runs = {
        "sample": small,
        "bench": small
        | {"bench.samplers": (*samplers, "lambda_ddim_ii", "unipc"), "bench.nfe": (5, 9), "bench.num_samples": 32},
        "evaluate": small
        | {
            "evaluate.samplers": samplers,
            "evaluate.nfe": (5, 9),
            "evaluate.seeds": (0, 1),
            "evaluate.num_samples": 128,
            "evaluate.num_reference": 256,
        },
        "tune": small
        | {
            "tune.nfe": (5, 8),
            "tune.samplers": ("ddim", "lambda_ddim_ii"),
            "tune.num_samples": 16,
            "tune.candidates": 2,
            "tune.gradient_steps": 0,
        },
    }
    for mode, overrides in runs.items():
        modes.run(mode, build.override(build.load_config("digits"), overrides), folder, Console(quiet=True))
    data = write_mnist(folder / "data", generator("made-up digits"))
    training = {"train.steps": 4, "train.batch_size": 2, "train.log_every": 1, "train.eval_every": 2}
    training |= {"train.eval_images": 4, "train.sample_every": 4, "train.num_samples": 4, "train.warmup": 1}
    training |= {
        "model.nf": 8,
        "model.ch_mult": (1, 2),
        "data.path": str(data),
        "sampler.nfe": 3,
        "sampler.name": "ddim",
    }
    modes.run("train", build.override(build.load_config("mnist"), training), folder, Console(quiet=True))
    return folder


@pytest.fixture(params=["light", "dark"])
def page(workdir, request):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1150, "height": 900}, color_scheme=request.param)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((workdir / PAGE).as_uri())
        yield page
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [(workdir / PAGE).as_uri()]
        browser.close()


def test_every_mode_has_its_part_and_every_plot_is_drawn(workdir, page):
    assert set(page.locator("section").evaluate_all("all => all.map((s) => s.id)")) == set(modes_run(workdir))
    figures = page.locator(".plot")
    assert figures.count() >= 8  # two of bench, one of evaluate, two or more of tune, four of train
    for number in range(figures.count()):
        assert figures.nth(number).locator("svg .series path").count() > 0
    assert (workdir / PAGE).stat().st_size < 5_000_000
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0  # nothing sticks out to the side


def modes_run(workdir):
    return json.loads((workdir / "report.json").read_text())


def test_a_legend_hides_and_axes_change(page):
    plot = page.locator("#bench .plot").first
    before = plot.locator(".series").count()
    plot.get_by_role("button", name="ddim", exact=True).or_(plot.get_by_role("button", name="ddim (best")).first.click()
    assert plot.locator(".series").count() == before - 1
    plot.get_by_role("button", name="show all").click()
    assert plot.locator(".series").count() == before
    path = plot.locator(".series.strong path").first
    logarithmic = path.get_attribute("d")
    plot.get_by_role("button", name="y axis: logarithmic").click()
    assert plot.locator(".series.strong path").first.get_attribute("d") != logarithmic
    assert plot.get_by_role("button", name="y axis: linear").count() == 1


def test_the_mouse_and_the_arrow_keys_tell_the_numbers(workdir, page):
    plot = page.locator("#evaluate .plot").first
    drawing = plot.locator("svg[tabindex]")
    drawing.focus()
    page.keyboard.press("ArrowRight")
    told = plot.locator(".tip").inner_text()
    rows = modes_run(workdir)["evaluate"]["rows"]
    row = next(row for row in rows if told.startswith(row["sampler"]) and f"NFE: {row['nfe']:g}\n" in told)
    assert "±" in told and f"distance: {row['distance']:.3g}"[:-1] in told
    assert plot.locator("[aria-live]").inner_text().startswith(row["sampler"])
    page.keyboard.press("ArrowRight")  # the last of its curve, wherever it was
    assert "NFE: 9" in plot.locator(".tip").inner_text()
    page.keyboard.press("Escape")
    assert not plot.locator(".tip").is_visible()
    marker = plot.locator(".series.strong path[transform]").last.bounding_box()
    page.mouse.move(marker["x"] + marker["width"] / 2, marker["y"] + marker["height"] / 2)
    assert plot.locator(".tip").is_visible()


def test_a_table_sorts_by_number_both_ways(page):
    table = page.locator("#bench table.sortable").first
    column = table.locator("th").evaluate_all("all => all.findIndex((th) => th.textContent === 'distance')")
    values = []
    for _ in range(2):
        table.get_by_role("button", name="distance").click()
        cells = table.locator(f"tbody td:nth-child({column + 1})")
        texts = cells.evaluate_all("all => all.map((td) => td.dataset.value)")
        values.append([float(text) if text else None for text in texts])
    known = [[value for value in of_one if value is not None] for of_one in values]
    assert known[0] == sorted(known[0]) and known[1] == sorted(known[1], reverse=True) and len(known[0]) > 4
    assert all(of_one[len(k) :] == [None] * (len(of_one) - len(k)) for of_one, k in zip(values, known, strict=True))
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_a_picture_opens_at_full_size_and_closes_by_key(workdir, page):
    page.locator("#sample .gallery button").first.click()
    shown = page.locator("dialog img")
    width, _ = Image.open(workdir / "samples.png").size
    assert shown.evaluate("image => image.getBoundingClientRect().width") == pytest.approx(width, abs=1)
    page.get_by_role("button", name="twice").click()
    assert shown.evaluate("image => image.getBoundingClientRect().width") == pytest.approx(2 * width, abs=1)
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_all_that_can_be_clicked_can_be_reached_by_keys(page):
    """Every control takes the focus, and text stands out from what is behind it by 4.5 to 1 (WCAG AA)."""
    named = "b.textContent || b.querySelector('img[alt]')"
    every = "[...document.querySelectorAll('main button')]"
    assert page.evaluate(f"{every}.filter((b) => b.tabIndex < 0 || !({named})).length") == 0
    style = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    ground = luminance(page.evaluate(style, "--ground"))
    for name in ("--text", "--quiet", "--accent", *(f"--c{i}" for i in range(8))):
        other = luminance(page.evaluate(style, name))
        contrast = (max(ground, other) + 0.05) / (min(ground, other) + 0.05)
        assert contrast >= (4.5 if name != "--c5" else 3.0), (name, contrast)  # 3 for lines and large text


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
