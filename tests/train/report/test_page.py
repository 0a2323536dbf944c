"""`report.html` and `metrics.json`: their numbers, and how the page looks in a real browser."""

import base64
import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cache import thumbnails
from cache.strings import Strings
from tests import browser, small_cache
from tests.train.report.backbone import set_thumbnail
from train import run
from train.report import evaluate
from train.report import page as pages
from train.report.metrics import metrics
from train.solvers.problem import Trial

NASTY = "<script>alert('&')</script><img src=x onerror=alert(1)>"
LONG = "averylonglabelwithoutanyspace" * 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_trained(tmp_path_factory.mktemp("report"))


def make_trained(root):
    """A run whose test set is large and whose classes are hard to tell apart, so that it makes mistakes."""
    cache_dir = set_thumbnail(small_cache.make(root, dtypes=("f2", "f4"), noise=90))
    settings = {"how_many_training_steps": 205, "learning_rate": 0.1, "testing_percentage": 40.0}
    return run.train(run.TrainSettings(cache_dir, root / "out", solver="sgd", **settings))


def with_index(result, **columns):
    """The same result, on a cache with another index."""
    return replace(result, cache=replace(result.cache, index=replace(result.cache.index, **columns)))


def with_test(result, **columns):
    return replace(result, test=replace(result.test, **columns))


def with_solver(result, solver, grid):
    return replace(result, settings=replace(result.settings, solver=solver), grid=grid)


def mistakes(rows, predicted, probabilities):
    """Columns of an evaluation."""
    return {
        "mistakes": np.array(rows, np.int64),
        "predicted": np.array(predicted, np.int32),
        "probabilities": np.array(probabilities, np.float32),
    }


def many_classes(result, labels, right=30, wrong=2):
    """A test set of which `wrong` photos of each class but the last are predicted to be of the next class."""
    confusion = np.diag(np.full(len(labels), right)) + np.diag(np.full(len(labels) - 1, wrong), 1)
    counts, hits = np.zeros((2, evaluate.BINS), np.int64)
    counts[-1], hits[-1] = confusion.sum(), np.trace(confusion)
    calibration = evaluate.Calibration(counts, hits, counts * 0.99)
    result = with_test(result, count=int(confusion.sum()), confusion=confusion, calibration=calibration)
    return with_index(result, labels=labels)


RATES, STRENGTHS = (0.001, 0.01, 0.1, 1.0), (1e-5, 1e-3, 1e-1)


def sweep():
    """A grid of heads: the best has learning rate 0.1 and L2 1e-3, unweighted; one has diverged."""
    grid = [
        Trial(l2, rate, weights, 0.9 - 0.02 * abs(i - 1) - 0.03 * abs(j - 2) - 0.005 * k, 0.3, (i, j, k) == (1, 2, 0))
        for k, weights in enumerate(("none", "balanced"))
        for i, l2 in enumerate(STRENGTHS)
        for j, rate in enumerate(RATES)
    ]
    grid[3] = replace(grid[3], validation_accuracy=0.2, validation_cross_entropy=math.nan)
    return grid


def strengths():
    return [Trial(l2, None, "balanced", a, 0.4, a == 0.925) for l2, a in ((1e-4, 0.89), (1e-3, 0.925), (1.0, 0.8))]


# --- the page's text ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags close in order, and collects the tags and the text, each piece of it as a browser shows it."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        shown = " ".join(data.split())
        if shown and self.open[-1:] != ["style"]:
            self.text.append(shown)

    def after(self, text, count):
        """The `count` pieces of text that follow `text`."""
        start = self.text.index(text) + 1
        return self.text[start : start + count]

    def polylines(self):
        """The number of points of each curve."""
        return [len(attributes["points"].split()) for tag, attributes in self.tags if tag == "polyline"]


def test_the_report_has_the_numbers(trained):
    page = Page((trained.settings.output_dir / "latest/report.html").read_text())
    assert f"Final test accuracy {trained.test.accuracy:.1%}" in page.text
    for label in small_cache.LABELS:
        assert page.text.count(label) >= 3  # a row and a column of the matrix, a row of the classes
    for count in trained.test.confusion[trained.test.confusion > 0]:
        assert f"{count}" in page.text
    for row in trained.test.mistakes:
        assert trained.cache.paths[row] in page.text
    assert page.after("calibration error", 1) == [f"{trained.test.calibration.error:.1%}"]
    assert page.polylines() == [len(trained.curve)] * 4
    assert page.after("learning_rate", 1) == ["0.1"]


def test_a_long_curve_ends_where_the_training_ended(trained):
    curve = [replace(trained.curve[0], step=step, train_accuracy=step / 1001) for step in range(1, 1002)]
    page = Page(pages.html(replace(trained, curve=curve)))
    first = next(attributes["points"].split() for tag, attributes in page.tags if tag == "polyline")
    assert 200 < len(first) <= 400
    assert first[-1] == f"{44 + 390:.1f},8.0"  # the upper right corner


def test_the_report_says_when_the_refit_on_validation_photos_begins(trained):
    unjudged = {"validation_accuracy": None, "validation_cross_entropy": None}
    curve = [replace(trained.curve[0], step=step, **(unjudged if step > 700 else {})) for step in range(1, 1002)]
    page = Page(pages.html(replace(trained, curve=curve, is_refitted=True)))
    assert "Refitted on training and validation photos from iteration 701 on." in " ".join(page.text)
    assert "validation accuracy before the refit" in page.text
    assert "validation accuracy before the refit" not in Page(pages.html(trained)).text


def test_classes_are_listed_from_the_worst(trained):
    labels = ["fine", "worst", "never seen", "middling"]
    confusion = np.array([[9, 1, 0, 0], [6, 4, 0, 0], [0, 0, 0, 0], [3, 0, 0, 7]])
    result = with_index(with_test(trained, confusion=confusion), labels=labels)
    text = Page(pages.html(with_test(result, **mistakes([], [], [])))).text
    start = text.index("recall") + 2
    expected = ["worst", "80.0%", "40.0%", "10", "middling", "100.0%", "70.0%", "10", "fine", "50.0%", "90.0%", "10"]
    assert text[start : start + 14] == [*expected, "never seen", "0"]


def test_the_report_of_many_classes_lists_the_commonest_confusions(trained):
    labels = [f"class {i:02}" for i in range(40)]
    result = many_classes(trained, labels, wrong=0)
    result.test.confusion[7, 31], result.test.confusion[12, 3] = 11, 23
    page = Page(pages.html(with_test(result, **mistakes([], [], []))))
    head = ["true class", "predicted class", "photos"]
    expected = [*head, "class 12", "class 03", "23", "class 07", "class 31", "11"]
    assert page.after("Most frequent confusions", 9) == expected
    assert page.after("Most confident mistakes", 1) == ["None."]


def test_of_many_classes_without_a_mistake_there_are_no_confusions(trained):
    result = many_classes(trained, [f"class {i:02}" for i in range(31)], wrong=0)
    page = Page(pages.html(with_test(result, **mistakes([], [], []))))
    assert page.after("Most frequent confusions", 1) == ["None."]


def test_the_sweeps_grid_is_shown_whole_and_the_chosen_head_framed(trained):
    page = Page(pages.html(with_solver(trained, "sweep", sweep())))
    assert "classes weighted equally" in page.text
    head = ["learning rate", "0.001", "0.01", "0.1", "1"]
    assert page.after("photos weighted equally", 10) == [*head, "L2 1e-05", "82.0%", "85.0%", "88.0%", "diverged"]
    assert page.after("L2 0.001", 4) == ["83.5%", "86.5%", "89.5%", "86.5%"]
    (chosen,) = [attributes for _, attributes in page.tags if attributes.get("class") == "chosen"]
    assert chosen["style"].endswith("0.55)"), "the best has the strongest colour"
    assert chosen["title"] == "cross entropy 0.3000"
    summary = "Fitted by sweep, 205 steps: learning rate 0.1, L2 0.001, class weights none chosen from 24 heads in"
    assert summary in " ".join(page.text)


def test_the_strengths_of_lbfgs_are_a_line_and_a_table(trained):
    page = Page(pages.html(with_solver(trained, "lbfgs", strengths())))
    assert page.polylines() == [len(trained.curve)] * 4 + [3]
    rows = [["L2 0.0001", "89.0%", "0.4000"], ["L2 0.001", "92.5%", "0.4000"], ["L2 1", "80.0%", "0.4000"]]
    assert page.after("cross entropy", 9) == [text for row in rows for text in row]
    assert [tag for tag, attributes in page.tags if attributes.get("class") == "chosen"] == ["td"]
    assert [tag for tag, attributes in page.tags if attributes.get("class") == "mark"] == ["circle"]
    text = " ".join(page.text)
    assert "Fitted by lbfgs, 205 iterations: L2 0.001 chosen from 3 fits in" in text
    assert "The framed head has the lowest cross entropy on them, with all classes weighted equally." in text
    assert "iteration 205" in text
    assert " steps" not in text
    assert " step " not in text


def test_where_class_weights_differ_the_chosen_ones_are_named(trained):
    grid = [replace(trial, class_weights="none") for trial in strengths()]
    grid.append(replace(grid[1], class_weights="balanced", chosen=False))
    text = " ".join(Page(pages.html(with_solver(trained, "lbfgs", grid))).text)
    assert "Fitted by lbfgs, 205 iterations: L2 0.001, class weights none chosen from 4 fits in" in text
    assert "The framed head has the lowest cross entropy on them." in text
    assert "L2 0.001, classes weighted equally" in text


def test_a_run_without_validation_and_test_images_is_reported(trained):
    one = replace(trained.curve[0], validation_accuracy=None, validation_cross_entropy=None)
    grid = [Trial(1.0, None, "none", None, None, True)]
    result = with_solver(replace(trained, test=None, validation=None, curve=[one], counts=(150, 0, 0)), "lbfgs", grid)
    page = Page(pages.html(result))
    assert "No test photos" in page.text
    assert "There were no validation photos to choose by." in page.text
    assert "training photos" in page.text  # in the curves' legend
    assert "validation photos" not in page.text
    assert page.polylines() == [1, 0] * 2
    dots = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert len(dots) == 2, "a curve of one point is drawn as a dot"
    assert json.loads(metrics(result))["validation"] is None


def test_the_calibration_is_described_in_numbers(trained):
    result = many_classes(trained, ["cats", "dogs"], right=30, wrong=40)  # 60 of 100 right, each with 99%
    text = " ".join(Page(pages.html(with_test(result, **mistakes([], [], [])))).text)
    assert "averaged over the photos, is 39.0%." in text
    assert "the mean probability is 99.0%, the accuracy 60.0%." in text


def test_exports_are_a_table(trained):
    files = {
        "classifier_int8.tflite": {"bytes": 3_210_000, "accuracy": 0.9, "classifier_accuracy": 0.95, "images": 20},
        "frozen_graph.pb": {"bytes": 13_000_000},
    }
    page = Page(pages.html(replace(trained, exports=files)))
    first = ["classifier_int8.tflite", "3.2 MB", "90.0%", "95.0%", "20"]
    assert page.after("on photos", 7) == [*first, "frozen_graph.pb", "13.0 MB"]
    assert "Exported files" not in Page(pages.html(trained)).text


def test_settings_are_shown_as_the_flags_take_them(trained):
    settings = replace(trained.settings, tflite=("float16", "int8"), module=None)
    page = Page(pages.html(replace(trained, settings=settings)))
    assert page.after("tflite", 1) == ["float16 int8"]
    assert page.after("fingerprint", 1) == [trained.cache.backbone.fingerprint]
    assert "module" not in page.text


# --- names that hold anything ---------------------------------------------------------------------------------


def test_names_with_markup_are_text_everywhere(trained):
    labels, paths = [NASTY, f'"{NASTY}', f"'{NASTY}"], Strings.of([f'{NASTY}/"{i}' for i in range(150)])
    result = with_test(trained, **mistakes([0], [1], [0.75]))
    result = with_index(replace(result, exports={NASTY: {"bytes": 1}}), labels=labels, paths=paths)
    result = replace(result, settings=replace(result.settings, device=NASTY, tflite=(NASTY,)))
    page = Page(pages.html(result))
    plain = Page(pages.html(with_test(trained, **mistakes([0], [1], [0.75]))))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(NASTY) == 7  # in the matrix a row and a column, a class, a mistake, an export, two settings
    assert f'{NASTY}/"0' in page.text
    titles = [attributes["title"] for tag, attributes in page.tags if attributes.get("class") == "up"]
    assert titles == labels


def test_names_of_any_bytes_are_printable(trained):
    strange, shown = "a\tb\n\x1b[1m\udcff\N{RIGHT-TO-LEFT OVERRIDE}", "a\\tb\\n\\x1b[1m\N{REPLACEMENT CHARACTER}\\u202e"
    labels, paths = [f"{strange}{i}" for i in range(3)], Strings.of([f"{strange}/{i}" for i in range(150)])
    result = with_index(with_test(trained, **mistakes([0], [1], [0.75])), labels=labels, paths=paths)
    source = pages.html(replace(result, exports={strange: {"bytes": 1}}))
    assert "".join(source.splitlines()).isprintable()
    page = Page(source)
    assert {f"{shown}0", f"{shown}1", f"{shown}/0", shown} <= set(page.text)
    assert json.loads(metrics(result))["labels"] == [f"{shown}{i}" for i in range(3)]


# --- pictures of mistakes -------------------------------------------------------------------------------------


def images_of(page):
    return [attributes for tag, attributes in page.tags if tag == "img"]


def test_each_mistake_has_the_picture_that_the_backbone_makes_of_it(trained):
    page = Page((trained.settings.output_dir / "latest/report.html").read_text())
    shown = images_of(page)
    assert len(shown) == min(len(trained.test.mistakes), 25) > 5
    for image in shown:
        prefix, _, content = image["src"].partition(",")
        assert prefix == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content, validate=True))).format == "JPEG"
    assert "no picture" not in page.text


def test_a_thumbnail_of_the_cache_is_preferred(trained, monkeypatch):
    result = with_test(trained, **mistakes([3, 4, 5], [1, 1, 1], [0.5, 0.9, 0.7]))
    monkeypatch.setattr(thumbnails, "find", lambda cache, rows: [b"%d" % row for row in rows])
    shown = [image["src"].partition(",")[2] for image in images_of(Page(pages.html(result)))]
    assert [base64.b64decode(content) for content in shown] == [b"4", b"5", b"3"]  # the most confident one first


def test_a_backbone_of_an_earlier_version_gives_no_pictures(trained, monkeypatch, tmp_path):
    folder = shutil.copytree(trained.cache.backbone_dir.parent, tmp_path / "cache" / trained.cache.directory.name)
    set_thumbnail(folder.parent, None)
    result = with_test(trained, **mistakes([3, 4, 5], [1, 1, 1], [0.5, 0.9, 0.7]))
    result = replace(result, cache=replace(result.cache, directory=folder))
    page = Page(pages.html(result))
    assert images_of(page) == []
    assert "no picture" not in page.text
    assert trained.cache.paths[4] in page.text
    monkeypatch.setattr(thumbnails, "find", lambda cache, rows: [b"small" if row == 4 else None for row in rows])
    page = Page(pages.html(result))
    assert len(images_of(page)) == 1
    assert page.text.count("no picture") == 2


def test_the_module_of_the_page_imports_neither_jinja_nor_tensorflow():
    script = "import sys, train.report.page; print(sorted({'jinja2', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- metrics.json ---------------------------------------------------------------------------------------------


def strict(text):
    """The content of JSON, which has no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_metrics_hold_what_the_report_shows(trained):
    content = strict((trained.settings.output_dir / "latest/metrics.json").read_text())
    test, calibration = trained.test, trained.test.calibration
    assert content["solver"] == "sgd"
    assert content["grid"] == []
    assert content["test"]["precision"] == pytest.approx(test.precision.tolist())
    assert content["test"]["recall"] == pytest.approx(test.recall.tolist())
    assert content["test"]["calibration"]["ece"] == pytest.approx(calibration.error)
    assert content["test"]["calibration"]["count"] == calibration.counts.tolist()
    for name, values in (("accuracy", calibration.accuracy), ("confidence", calibration.confidence)):
        numbers = [value for value in content["test"]["calibration"][name] if value is not None]
        assert numbers == pytest.approx(values[calibration.counts > 0].tolist())
    assert content["validation"]["calibration"]["ece"] == pytest.approx(trained.validation.calibration.error)


def test_metrics_hold_the_grid_and_null_where_there_is_no_number(trained):
    confusion = np.array([[5, 0, 0], [0, 7, 0], [0, 0, 0]])
    grid = [*sweep()[2:4], Trial(0.5, None, "none", None, None, False)]
    content = strict(metrics(with_test(with_solver(trained, "sweep", grid), confusion=confusion)))
    assert content["test"]["recall"] == content["test"]["precision"] == [1, 1, None]
    keys = ("l2", "learning_rate", "validation_accuracy", "validation_cross_entropy", "chosen")
    assert [[trial[key] for key in keys] for trial in content["grid"]] == [
        [1e-5, 0.1, 0.88, 0.3, False],
        [1e-5, 1.0, 0.2, None, False],
        [0.5, None, None, None, False],
    ]


# --- in a browser ---------------------------------------------------------------------------------------------

WIDTHS = (320, 1100)

# Text that is wider than its box, or than the window where nothing scrolls; and texts of a chart that overlap.
OVERFLOWS = """(() => {
  const problems = [], add = (what, e) => problems.push(what + ': ' + e.tagName + ' ' + e.textContent.slice(0, 60));
  if (document.documentElement.scrollWidth > innerWidth) add('wider than the window', document.body);
  for (const e of document.querySelectorAll('body *')) {
    const scrolls = e.closest('.wide'), box = e.getBoundingClientRect();
    if (e.closest('svg')) continue;
    if (!scrolls && box.width && (box.right > innerWidth + 1 || box.left < -1)) add('outside the window', e);
    if (e.matches('.wide, .up span')) continue;
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1) add('wider than its box', e);
  }
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect(), boxes = [];
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        add('outside its chart', text);
      for (const b of boxes)
        if (b.left < box.right && box.left < b.right && b.top < box.bottom - 1 && box.top < b.bottom - 1)
          add('on other text', text);
      boxes.push(box);
    }
  }
  return problems;
})()"""

# Texts whose contrast with what is behind them is too low (WCAG 2, section 1.4.3).
FAINT = """(() => {
  const parse = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => over(parse(getComputedStyle(e).backgroundColor),
    e.parentElement ? behind(e.parentElement) : [255, 255, 255]);
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim() && n.data != '\\u25a0');
    if (!own || e.tagName == 'title') continue;
    const inside = e.closest('svg'), style = getComputedStyle(e), ground = behind(inside ? inside.parentElement : e);
    const [a, b] = [light(over(parse(inside ? style.fill : style.color), ground)), light(ground)];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(contrast.toFixed(2) + ' ' + e.tagName + ' ' + e.textContent.slice(0, 60));
  }
  return faint;
})()"""

# Of each picture: its size in pixels, their mean colour, the path under it, and its width on the page.
PICTURES = """Promise.all([...document.images].map(async image => {
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data, mean = [0, 0, 0];
  for (let i = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) mean[c] += data[i + c] * 4 / data.length;
  const path = image.closest('figure').querySelector('span').textContent;
  return [canvas.width, canvas.height, mean, path, image.getBoundingClientRect().width];
}))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def variants(trained):
    """Results of all kinds."""
    classes = [f"class {i:03} of the flowers" for i in range(102)]
    nasty = many_classes(trained, [NASTY, LONG, "c"])
    paths = Strings.of([f"{NASTY}/{LONG}{i}.jpg" for i in range(150)])
    one = [replace(trained.curve[0], validation_accuracy=None, validation_cross_entropy=None)]
    nothing = replace(trained, test=None, validation=None, curve=one, counts=(150, 0, 0))
    exports = {"classifier_int8.tflite": {"bytes": 3_210_000, "accuracy": 0.9, "classifier_accuracy": 0.9, "images": 9}}
    return {
        "plain": replace(trained, exports=exports),
        "sweep": with_solver(trained, "sweep", sweep()),
        "lbfgs": with_solver(trained, "lbfgs", strengths()),
        "many strengths": with_solver(
            trained,
            "lbfgs",
            [Trial(10.0**-k, None, w, 0.9 + k / 1000, 0.4, False) for k in range(15) for w in ("none", "balanced")],
        ),
        "nothing": with_solver(nothing, "lbfgs", [Trial(1.0, None, "none", None, None, True)]),
        "no point": replace(trained, curve=[]),
        "two": with_test(many_classes(trained, ["cats", "dogs"]), **mistakes([], [], [])),
        "thirty": many_classes(trained, classes[:30]),
        "many": many_classes(trained, classes),
        "nasty": with_index(nasty, paths=paths),
    }


KINDS = ("plain", "sweep", "lbfgs", "many strengths", "nothing", "no point", "two", "thirty", "many", "nasty")


@browser.needs_chromium
@pytest.mark.parametrize("kind", KINDS)
def test_every_report_is_complete_and_legible_in_a_browser(trained, page, tmp_path, kind):
    path = tmp_path / "report.html"
    path.write_text(pages.html(variants(trained)[kind]), encoding="utf-8")
    for width in WIDTHS:
        for dark in (False, True):
            page.open(path, width, dark)
            assert page.ask(OVERFLOWS) == []
            assert page.ask(FAINT) == []
            assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
            assert page.complaints == []
            assert page.ask("document.scripts.length") == 0
    assert page.ask("document.body.innerText.includes('Settings')")


@browser.needs_chromium
def test_the_colours_follow_the_readers_scheme(trained, page):
    path = trained.settings.output_dir / "latest/report.html"
    grounds = []
    for dark in (False, True):
        page.open(path, dark=dark)
        grounds.append(page.ask("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 31)"]


@browser.needs_chromium
def test_each_mistake_is_shown_by_its_own_picture(trained, page):
    page.open(trained.settings.output_dir / "latest/report.html")
    shown = page.ask(PICTURES)
    worst = trained.test.mistakes[np.argsort(-trained.test.probabilities, kind="stable")[:25]]
    assert len(worst) > 5, "a test of pictures needs some"
    assert [path for *_, path, _ in shown] == [trained.cache.paths[row] for row in worst]
    for width, height, colour, path, shown_width in shown:
        with Image.open(os.path.join(trained.cache.index.image_dir, path)) as original:
            assert (width, height) == original.size  # the tests' photos are smaller than 96 pixels
            np.testing.assert_allclose(colour, np.asarray(original.convert("RGB")).mean(axis=(0, 1)), atol=8)
        assert shown_width > 50


@browser.needs_chromium
def test_mistakes_without_photos_are_listed_by_path(trained, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(pages.html(with_index(trained, image_dir=str(tmp_path / "gone"))))
    page.open(path)
    assert page.ask("document.images.length") == 0
    assert "no picture" not in page.ask("document.body.innerText")
    assert trained.cache.paths[trained.test.mistakes[0]] in page.ask("document.body.innerText")


@browser.needs_chromium
def test_labels_with_markup_are_text(trained, page, tmp_path):
    path = tmp_path / "report.html"
    sure = with_test(trained, **mistakes([0], [1], [0.75]))
    index = {"labels": [NASTY, *small_cache.LABELS[1:]], "paths": Strings.of([f"{NASTY}/{i}" for i in range(150)])}
    path.write_text(pages.html(with_index(sure, **index)))
    page.open(path)
    assert page.ask("document.querySelector('.cards figcaption').innerText").split("\n") == [
        NASTY,
        f"predicted: {small_cache.LABELS[1]}, 75.0%",
        f"{NASTY}/0",
    ]
    assert page.ask("[...document.querySelectorAll('th.name')].map(e => e.textContent)").count(NASTY) == 2
    assert page.ask("document.querySelectorAll('script, link, iframe, object, img').length") == 0
