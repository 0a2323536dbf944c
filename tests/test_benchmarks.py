"""The benchmarks as a command, on little: what they report, never how fast anything is."""

import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure import Result
from tests import processes

SMALLER_IS_BETTER = ("s", "MB")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight little JPEGs of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(8):
        path = folder / ("daisy", "tulip")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return folder


def run_with_tmpdir(temporary, flags):
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None  # what it was before
    return processes.command("benchmarks", flags)


@pytest.fixture(scope="module")
def small_run(photos, tmp_path_factory):
    """What a small run printed, its report, and the folder that it had for temporary files."""
    folder = tmp_path_factory.mktemp("run")
    temporary = folder / "temporary"
    temporary.mkdir()
    flags = ("--suite", "decode", "--suite", "cache", "--image_dir", photos, "--scale", 0.001, "--repeats", 2)
    done = processes.run(run_with_tmpdir, temporary, [*flags, "--json", folder / "report.json"])
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "report.json").read_text()), temporary


MEMORY = "open 10,000 images, memory of the process"


def test_the_report_has_every_turn_of_every_case(small_run):
    _, report, _ = small_run
    assert report["repeats"] == 2
    assert report["machine"]["cores"] >= 1
    assert {result["suite"] for result in report["results"]} == {"decode", "cache"}
    for result in report["results"]:
        assert result["case"] and result["unit"]
        assert len(result["ours"]) == 2 and all(figure > 0 for figure in result["ours"])
        assert result["reference"] is None or (len(result["reference"]) == 2 and result["reference_name"])
    assert [result["case"] for result in report["results"] if result["reference"] is None] == [MEMORY]


def test_each_turn_has_a_ratio_and_the_median_counts(small_run):
    _, report, _ = small_run
    for result in report["results"]:
        if result["reference"] is None:
            assert (result["ratio"], result["met"]) == (None, statistics.median(result["ours"]) <= result["target"])
            continue
        ours, reference = np.array(result["ours"]), np.array(result["reference"])
        expected = reference / ours if result["unit"] in SMALLER_IS_BETTER else ours / reference
        np.testing.assert_allclose(result["ratios"], expected)
        assert result["ratio"] == pytest.approx(statistics.median(result["ratios"]))
        assert result["met"] == (None if result["target"] is None else result["ratio"] >= result["target"])


@pytest.mark.parametrize(("unit", "ratio"), [("images/s", 2), ("s", 0.5), ("MB", 0.5), ("%", 2)])
def test_less_is_better_of_time_and_memory_and_more_of_all_else(unit, ratio):
    def result(**aim):
        return Result("suite", "case", unit, [4, 6, 6], **aim)

    beside = {"reference_name": "another", "reference": [2, 3, 3]}
    assert result(**beside).ratios == [ratio] * 3
    assert result(**beside, target=1).met == (ratio > 1)
    assert result(target=5).met == (ratio > 1)
    assert result(target=7).met == (ratio < 1)


def test_the_table_has_a_line_for_each_result(small_run):
    output, report, _ = small_run
    head, _, *lines = [line for line in output.splitlines() if line.startswith("|")]
    columns = ["suite", "case", "ours", "reference", "ratio, median [min..max]", "target", "met?"]
    assert [cell.strip() for cell in head.strip("|").split("|")] == columns
    assert len(lines) == len(report["results"])
    for line, result in zip(lines, report["results"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [result["suite"], result["case"]]
        assert cells[4].startswith(f"{result['ratio']:.2f} [") if result["ratio"] else cells[4] == ""
        assert cells[6] == {None: "", True: "yes", False: "no"}[result["met"]]


def test_nothing_is_left_behind(small_run):
    _, _, temporary = small_run
    assert list(temporary.glob("benchmarks-*")) == []


def test_help_needs_no_tensorflow():
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks", "-h"]
    done = subprocess.run(command, cwd=processes.REPO, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--suite" in done.stdout
    assert "tensorflow" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "decode,nope"], "'nope'"),
        (["--repeats", "0"], "--repeats"),
        (["--scale", "-1"], "--scale"),
        (["--suite", "decode", "--image_dir", "no/such/folder"], "no/such/folder"),
        (["--suite", "cache", "--json", "no/such/folder/report.json"], "no/such/folder/report.json"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message, capsys):
    assert processes.command("benchmarks", arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and message in line
