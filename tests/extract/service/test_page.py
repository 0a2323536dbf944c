"""The service's page, used in a real browser against a real service."""

import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests import browser as browsers
from tests import modules, processes
from tests.processes import REPO

NASTY = "<img src=x onerror=alert(1)>"  # a label, and a file's name
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200), "green": (40, 200, 40)}
YELLOW = (200, 200, 40)
COUNT = 24  # photos of each class
SECONDS = 120  # for a training, on a machine that is busy with other things


def paint(path, colour, seed):
    """A noisy PNG of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(colour) + np.random.default_rng(seed).integers(-35, 36, (16, 16, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def command(name, *flags):
    done = processes.run(processes.command, name, flags)
    assert done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def serving(*flags):
    """The URL of a service that runs until the block ends."""
    arguments = [sys.executable, "-m", "extract.serve", "--port", 0, "--engine", "tensorflow", *flags]
    process = subprocess.Popen(list(map(str, arguments)), cwd=REPO, stdout=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://[^ ]*/", line):
                break
        else:
            raise AssertionError("".join(lines))
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos that no class folder has, and a file that is none."""
    folder = tmp_path_factory.mktemp("new")
    text = folder / "notes.txt"
    text.write_text("no photo")
    red, blue = (paint(folder / f"{name}.png", COLOURS[name], seed=1000) for name in ("red", "blue"))
    green = paint(folder / f"it's {NASTY}.png", COLOURS["green"], seed=1001)
    return SimpleNamespace(red=red, blue=blue, green=green, text=text)


def make(root):
    """`root`/cache, of three classes with thumbnails, and the head `root`/colours."""
    for label, colour in COLOURS.items():
        for number in range(COUNT):
            paint(root / "photos" / label / f"{number}.png", colour, seed=number)
    module = modules.make_tf2_hub_module(root / "module")
    flags = ["--cache_dir", root / "cache"]
    command("extract", "--image_dir", root / "photos", *flags, "--module", module, "--thumbnails")
    command("train", *flags, "--output_dir", root / "colours")


@pytest.fixture(scope="module")
def url(made_once, tmp_path_factory):
    """A service with a cache, a head and corrections."""
    made, _ = made_once("colours", make)
    own = tmp_path_factory.mktemp("served")
    shutil.copytree(made / "colours", own / "colours", symlinks=True)  # it is replaced, once a new one is swapped in
    with serving(
        "--cache_dir", made / "cache", "--head", own / "colours", "--corrections", own / "corrections"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browsers.CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")
    with browsers.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(chromium, url):
    """The page, freshly loaded. What it did must be nothing that its own policy or the browser complains about."""
    open_page(chromium, url)
    yield chromium
    assert chromium.complaints == []
    own = [u for u in chromium.requests if u.startswith((url, f"blob:{url}", "data:image/"))]
    assert chromium.requests == own


def open_page(chromium, url, **options):
    chromium.open(url, **options)
    chromium.wait_for("!document.getElementById('known').hidden")


def answers(page, count):
    """The text of each card once so many have an answer or an error."""
    page.wait_for(f"document.querySelectorAll('.verdict, .answer .error').length == {count}")
    page.wait_for("document.getElementById('progress').hidden")
    page.wait_for("!document.querySelector('.looking')")  # what comes below would move under the mouse
    return page.ask("[...document.querySelectorAll('.result .body')].map(card => card.innerText)")


# urllib keeps the proxies that it found when it was first used, which may be those of another test.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def read(url):
    with DIRECT.open(url) as response:
        return response.headers, response.read()


def ask_json(url):
    return json.loads(read(url)[1])


def status_of(request):
    with pytest.raises(urllib.error.HTTPError) as error:
        DIRECT.open(request)
    error.value.close()
    return error.value.code


def test_what_the_page_is_made_of_comes_with_a_policy_and_is_cached_by_its_content(url):
    for path in ("", "page/page.js", "page/page.css", "page/icon.svg"):
        headers, content = read(url + path)
        policy = headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= {*policy}
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert content
        assert status_of(urllib.request.Request(url + path, headers={"If-None-Match": headers["ETag"]})) == 304
    assert status_of(url + "page/page.py") == 404
    assert status_of(url + "page/..%2f__init__.py") == 404


def test_every_file_of_the_page_is_in_the_package_and_small():
    for path in (REPO / "extract/service/page").iterdir():
        text = path.read_text()
        assert len(text.splitlines()) < 400
        assert "innerHTML" not in text and "eval(" not in text
        assert " style=" not in text and " onclick=" not in text


def test_dropped_photos_show_bars_and_a_text_file_its_error(page, photos):
    page.drop("#drop", [photos.red, photos.text, photos.blue])
    red, text, blue = answers(page, 3)
    assert "red.png" in red and re.search(r"\n(> )?\d+\.\d %", red)
    assert "notes.txt" in text and "not a JPEG" in text and "%" not in text
    assert "blue.png" in blue
    verdicts = page.ask("[...document.querySelectorAll('.verdict b')].map(b => b.textContent)")
    assert verdicts == ["red", "blue"]
    assert page.ask("document.getElementById('status').textContent") == "3 photos done; 1 without an answer."
    assert page.ask("document.querySelectorAll('.over').length") == 0
    widths = page.ask("[...document.querySelectorAll('.result:first-child .filled')].map(e => e.offsetWidth)")
    assert widths == sorted(widths, reverse=True) and widths[0] > 0
    page.wait_for("document.querySelectorAll('.result > .picture img').length == 2")


def test_the_nearest_photos_are_shown_with_labels_and_distances(page, photos):
    page.drop("#drop", [photos.red])
    page.wait_for("document.querySelectorAll('.gallery li').length == 6")
    assert page.ask("[...document.querySelectorAll('.gallery b')].map(b => b.textContent)") == ["red"] * 6
    distances = page.ask("[...document.querySelectorAll('.gallery .number')].map(n => n.textContent.split(' ')[1])")
    assert distances == sorted(distances, key=float)
    page.wait_for("[...document.querySelectorAll('.gallery img')].filter(i => i.naturalWidth).length == 6")


def test_a_pasted_photo_is_answered(page, url, photos):
    page.call("Browser.grantPermissions", origin=url.rstrip("/"), permissions=["clipboardReadWrite"])
    content = list(photos.blue.read_bytes())
    page.ask(
        f"""navigator.clipboard.write([new ClipboardItem({{
        "image/png": new Blob([new Uint8Array({content})], {{type: "image/png"}})}})])"""
    )
    page.press("v", "paste")
    [answer] = answers(page, 1)
    assert "blue" in answer


def test_everything_works_by_keyboard_alone(page, photos):
    page.press("Tab")
    assert page.ask("document.activeElement.textContent") == "To the photos"
    page.press("Enter")
    page.press("Tab")
    assert page.ask("document.activeElement.id") == "files"
    assert page.ask("getComputedStyle(document.activeElement.parentElement).outlineStyle") == "solid"
    page.press("Enter")
    page.choose([photos.red])
    answers(page, 1)
    seen = set()
    while not page.ask("document.activeElement.classList.contains('wrong')"):
        page.press("Tab")
        seen.add(page.ask("document.activeElement.id || document.activeElement.className"))
    assert {"camera", "clear", "again"} <= seen
    page.press("Enter")
    assert page.ask("document.activeElement.labels[0].textContent") == "It is"
    page.press("Escape")
    assert page.ask("document.activeElement.textContent") == "This is wrong"


def test_everything_that_takes_the_focus_has_a_name(page, photos):
    page.drop("#drop", [photos.red])
    answers(page, 1)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    page.call("Accessibility.disable")
    roles = {"button", "textbox", "searchbox", "combobox", "link", "image", "progressbar", "list"}
    named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    assert ("list", "Photos and answers") in named
    assert [pair for pair in named if pair[0] in roles - {"list"} and not pair[1]] == []


def test_a_camera_takes_a_photo(page, url):
    page.click("#camera")
    page.wait_for("!document.getElementById('shoot').disabled")
    page.click("#shoot")
    page.wait_for("document.querySelectorAll('.result').length == 1")
    page.press("Escape")
    page.wait_for("document.getElementById('video').srcObject === null")
    [answer] = answers(page, 1)
    assert "camera-1.jpg" in answer and "%" in answer


def test_many_photos_come_in_batches_with_their_reasons_on_demand(page, tmp_path):
    paths = [paint(tmp_path / "many" / f"{number:02}.png", COLOURS["red"], number) for number in range(40)]
    page.drop("#drop", [paths[0].parent])  # a folder
    assert len(answers(page, 40)) == 40
    assert page.ask("document.querySelectorAll('.gallery').length") == 0
    page.click(".result .near button")
    page.wait_for("document.querySelectorAll('.gallery').length == 1")
    asked = [u for u in page.requests if "/v1/classify/" in u]
    assert len(asked) == 3
    page.click("#clear")
    assert page.ask("document.querySelectorAll('.result').length") == 0


def test_labels_and_names_of_files_are_text(page, photos):
    page.drop("#drop", [photos.green])
    [answer] = answers(page, 1)
    assert f"it's {NASTY}.png" in answer
    page.click("#new-name")
    page.write(NASTY)
    page.press("Enter")
    assert page.ask("document.querySelector('.class:last-child b').textContent") == NASTY
    assert page.ask("document.querySelectorAll('img[onerror], img[src=x]').length") == 0


@pytest.mark.parametrize("threshold, verdict", [(0.7, f"Not sure perhaps {NASTY}"), (0.6, NASTY), (None, NASTY)])
def test_an_answer_below_the_threshold_is_not_sure(page, photos, threshold, verdict):
    labels = [{"label": NASTY, "probability": 0.65}, {"label": "b", "probability": 0.35}]
    answer = {"not_sure_below": threshold, "images": [{"name": "red.png", "labels": labels}]}
    page.ask(
        f"""(() => {{ const own = window.fetch;
        window.fetch = (url, ...rest) => url.includes("/classify/") ? new Response({json.dumps(json.dumps(answer))})
                                                                    : own(url, ...rest); }})()"""
    )
    page.drop("#drop", [photos.red])
    answers(page, 1)
    assert page.ask("document.querySelector('.verdict').textContent").split() == verdict.split()
    assert page.ask("[...document.querySelectorAll('.bars .number')].map(n => n.innerText)") == ["65.0 %", "35.0 %"]
    assert page.ask("document.querySelectorAll('img[onerror], img[src=x]').length") == 0


def test_what_is_stopped_says_so(page, tmp_path):
    for number in range(100):
        paint(tmp_path / "many" / f"{number:02}.png", COLOURS["red"], number)
    # Answers that never come, until their request is given up.
    page.ask(
        """(() => { const own = window.fetch;
        window.fetch = (url, options) => !url.includes("/classify/") ? own(url, options) : new Promise((_, reject) =>
            options.signal.addEventListener("abort", () => reject(options.signal.reason))); })()"""
    )
    page.drop("#drop", [tmp_path / "many"])
    page.wait_for("!document.getElementById('progress').hidden")
    page.click("#stop")
    assert all("stopped" in answer for answer in answers(page, 100))


@pytest.mark.parametrize("width, dark", [(1000, False), (360, True), (320, False)])
def test_it_fits_the_window_and_follows_its_colours(page, url, photos, width, dark):
    open_page(page, url, width=width, dark=dark)
    page.drop("#drop", [photos.red, photos.green, photos.text])
    answers(page, 3)
    page.wait_for("document.querySelectorAll('.gallery').length == 2")
    page.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.ask("document.documentElement.scrollWidth") == width
    background = page.ask("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert brightness < 40 if dark else brightness > 220


@pytest.mark.parametrize("writing", [["clipboardSanitizedWrite"], []], ids=["clipboard", "selection"])
@pytest.mark.parametrize("kind", ["curl", "python"])
def test_the_copied_program_gives_the_same_answer(page, url, photos, kind, writing):
    """Also where the browser keeps the clipboard from the page, as it does over plain HTTP from another machine."""
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    page.drop("#drop", [photos.green])
    answers(page, 1)
    shown = page.ask("[...document.querySelectorAll('.bars .label')].map(one => one.textContent)")
    page.call("Browser.grantPermissions", origin=url.rstrip("/"), permissions=["clipboardReadWrite", *writing])
    page.click(f"[data-of={kind}]")
    page.wait_for(f"document.querySelector('[data-of={kind}]').textContent == 'Copied'")
    copied = page.ask("navigator.clipboard.readText()")
    program = ["bash", "-c", copied] if kind == "curl" else [sys.executable, "-c", copied]
    done = subprocess.run(program, cwd=photos.green.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = json.loads(done.stdout)["images"][0]["labels"] if kind == "curl" else ast.literal_eval(done.stdout)
    assert [row["label"] for row in labels] == shown


def test_a_correction_is_kept_taken_back_and_dragged(page, url, photos):
    page.drop("#drop", [photos.blue])
    answers(page, 1)
    page.click(".wrong")
    page.write("red")
    page.press("Enter")
    page.wait_for("document.querySelector('.kept')")
    assert ask_json(url + "v1/corrections")["labels"] == [{"label": "red", "count": 1}]
    page.click(".kept button")
    page.wait_for("document.querySelector('.wrong')")
    assert ask_json(url + "v1/corrections")["labels"] == []
    page.wait_for("document.querySelector('.result img')")
    page.call("Emulation.setDeviceMetricsOverride", width=1000, height=2500, deviceScaleFactor=1, mobile=False)
    page.drag(".result img", '.class[data-label="red"]')
    page.wait_for("document.querySelector('.kept b')?.textContent == 'red'")
    page.click(".kept button")
    page.wait_for("document.querySelector('.wrong')")
    page.drop('.class[data-label="blue"]', [photos.text])
    page.wait_for("document.querySelector('.class .error')?.textContent.includes('notes.txt')")


def test_corrections_make_a_new_head_that_is_swapped_in_when_told(page, url, tmp_path):
    """Yellow photos are none of the classes that the head knows, until they become one, whose name is HTML."""
    yellow = [paint(tmp_path / f"{number}.png", YELLOW, 100 + number) for number in range(30)]
    page.drop("#drop", yellow[:1])
    answers(page, 1)
    page.click("#new-name")
    page.write(NASTY)
    page.press("Enter")
    assert page.ask("document.activeElement.getAttribute('aria-label')") == f"Add photos of {NASTY}"
    page.press("Enter")
    page.choose(yellow[1:])
    text = "document.querySelector('.class:last-child').innerText"
    page.wait_for(f"{text}.includes('29 photos kept')")
    page.click(".wrong")
    page.write(NASTY)
    page.press("Enter")
    page.wait_for(f"{text}.includes('30 photos kept')")
    page.click("#train-button")
    page.wait_for("document.querySelector('.versus')", SECONDS)
    old, new = page.ask("[...document.querySelectorAll('.versus tbody tr')].map(row => row.innerText)")
    assert old.startswith("Old") and new.startswith("New") and "%" in old and "%" in new
    assert ask_json(url + "v1")["heads"][0]["labels"] == sorted(COLOURS)
    page.click("#train-result .primary")
    page.wait_for(f"document.querySelector('.verdict b')?.textContent == {json.dumps(NASTY)}")
    assert NASTY in ask_json(url + "v1")["heads"][0]["labels"]
    assert page.ask("document.querySelector('.versus')") is None
    assert page.ask("document.querySelectorAll('img[onerror], img[src=x]').length") == 0


def test_from_nothing_to_a_classifier(chromium, module, photos, tmp_path):
    flags = ["--cache_dir", tmp_path / "cache", "--module", module, "--corrections", tmp_path / "corrections"]
    with serving(*flags) as url:
        open_page(chromium, url)
        assert chromium.ask("document.getElementById('photos').hidden")
        assert "no classifier yet" in chromium.ask("document.getElementById('summary').textContent")
        for name in ("red", "blue"):
            chromium.click("#new-name")
            chromium.write(name)
            chromium.press("Enter")
            drawn = [paint(tmp_path / name / f"{n}.png", COLOURS[name], 300 + n) for n in range(15)]
            chromium.drop(f"[data-label={name}]", drawn)
            chromium.wait_for(f"document.querySelector('[data-label={name}]').textContent.includes('15 photos kept')")
        chromium.click("#train-button")
        chromium.wait_for("document.querySelector('.versus')", SECONDS)
        chromium.click("#train-result .primary")
        chromium.wait_for("!document.getElementById('photos').hidden")
        chromium.drop("#drop", [photos.red, photos.blue])
        answers(chromium, 2)
        verdicts = chromium.ask("[...document.querySelectorAll('.verdict b')].map(b => b.textContent)")
        assert verdicts == ["red", "blue"]
        assert [head["name"] for head in ask_json(url + "v1")["heads"]] == ["mine"]
        assert chromium.complaints == []


def test_a_token_is_asked_for_and_kept_in_the_tab(chromium, module, tmp_path):
    (tmp_path / "token").write_text("open sesame\n")
    with serving("--cache_dir", tmp_path / "cache", "--module", module, "--token_file", tmp_path / "token") as url:
        chromium.open(url)
        chromium.wait_for("document.getElementById('token-dialog').open")
        chromium.write("wrong")
        chromium.press("Enter")
        chromium.wait_for("document.querySelector('#token-dialog .notice')")
        chromium.write("open sesame")
        chromium.press("Enter")
        chromium.wait_for("document.getElementById('summary').textContent.includes('no classifier yet')")
        assert chromium.ask("sessionStorage.length + localStorage.length") == 1
        snippet = chromium.wait_for("document.getElementById('curl').textContent")
        assert "$TOKEN" in snippet and "sesame" not in snippet
        chromium.open(url)
        chromium.wait_for("document.getElementById('summary').textContent.includes('no classifier yet')")
        assert not chromium.ask("document.getElementById('token-dialog').open")
