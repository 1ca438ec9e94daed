"""Pages of small runs in a real browser: nothing is fetched, nothing fails, mouse and keyboard do what they say."""

import contextlib
import gzip
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from seeds import generator

from psld_jax import build, modes
from psld_jax.report.atlas import ATLAS
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
        "atlas": small | {"atlas.nfe": (5, 9), "atlas.num_samples": 3, "atlas.frames": 4},
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


@contextlib.contextmanager
def opened(file, scheme):
    """A page in the browser; it must say nothing on the console and ask for no other file."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1150, "height": 900}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        yield page
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(workdir, request):
    with opened(workdir / PAGE, request.param) as page:
        yield page


def until(page, condition):
    """Wait for a condition. Playwright's own wait evaluates text in the page, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


@pytest.fixture(params=["light", "dark"])
def atlas(workdir, request):
    with opened(workdir / ATLAS, request.param) as page:
        until(page, f"{PAINTED}.length === 5")  # four samplers and the fine solution
        yield page


#: The context that the page asks for too. Whoever asks first decides, and another one earns a warning of Chromium's.
CONTEXT = "getContext('2d', { willReadFrequently: true })"

#: Rows of the atlas on which something is drawn.
PAINTED = f"[...document.querySelectorAll('canvas')].filter((c) => c.{CONTEXT}.getImageData(2, 2, 1, 1).data[3])"


def pixels(page, row):
    """The picture of one row as numbers."""
    script = f"c => [...c.{CONTEXT}.getImageData(0, 0, c.width, c.height).data]"
    return np.array(page.locator(".way canvas").nth(row).evaluate(script)).reshape(-1, 4)


def label(page, row):
    return page.locator(".way canvas").nth(row).get_attribute("aria-label")


def test_sliders_go_over_budgets_and_steps_by_key(workdir, atlas):
    assert (workdir / ATLAS).stat().st_size < 5_000_000
    assert "9 evaluations, step 9 of 9, t = 0;" in label(atlas, 1) and "position" in label(atlas, 1)
    sample = pixels(atlas, 1)
    atlas.focus("#budget")
    atlas.keyboard.press("ArrowLeft")
    until(atlas, "document.querySelectorAll('.way canvas')[4].ariaLabel.includes('5 evaluations')")
    assert "step 5 of 5" in label(atlas, 1) and atlas.locator("#budget-told").inner_text() == "5"
    assert np.abs(pixels(atlas, 1) - sample).max() > 0
    atlas.focus("#frame")
    atlas.keyboard.press("Home")
    until(atlas, "document.querySelectorAll('.way canvas')[4].ariaLabel.includes('step 0 of')")
    assert atlas.locator("#frame").get_attribute("aria-valuetext") == "the start: noise"
    assert np.array_equal(pixels(atlas, 1), pixels(atlas, 2))  # the same noise for all
    assert not np.array_equal(pixels(atlas, 0), pixels(atlas, 1))


def test_a_difference_is_grey_where_there_is_none(workdir, atlas):
    atlas.get_by_label("minus the fine solution").check()
    until(atlas, "document.querySelectorAll('.way canvas')[4].ariaLabel.includes('minus the fine')")
    rows = {row["sampler"]: row["error"] for row in modes_run(workdir)["atlas"]["rows"] if row["budget"] == 9}
    shown = {}
    for number, name in enumerate(rows, start=1):
        drawn = pixels(atlas, number)
        shown[name] = np.abs(drawn[drawn[:, 3] > 0, 0] - 128).mean()
    assert min(shown, key=shown.get) == min(rows, key=rows.get)
    wide = atlas.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    controls = "[...document.querySelectorAll('main input')].filter((i) => i.tabIndex < 0 || !i.labels.length).length"
    assert atlas.evaluate(controls) == 0


def test_the_report_leads_to_the_atlas(page):
    assert page.locator("section a[href='atlas.html']").count() == 4  # its own part, bench, evaluate and tune


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
