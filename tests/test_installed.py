"""The installed form: commands that work from any folder, and a wheel that holds all they need."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.processes import REPO

SCRIPTS = {
    "retrain-extract": "extract",
    "retrain-train": "train",
    "retrain-predict": "train.predict",
    "retrain-cache": "cache",
    "retrain-serve": "extract.serve",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with folders of the same names as the packages."""
    for name in ("cache", "extract", "train"):
        (tmp_path / "work" / name).mkdir(parents=True)
    return tmp_path / "work"


def script(name):
    return [str(Path(sys.executable).with_name(name))]


def run(command, cwd, **environment):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment or None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_command_is_a_script_that_explains_itself_in_any_folder(folder, name):
    done = run([*script(name), "-h"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {SCRIPTS[name]} ")


@pytest.mark.parametrize(
    "command", [script("retrain-cache"), [sys.executable, "-m", "cache"]], ids=["script", "module"]
)
def test_a_folder_named_cache_where_a_command_runs_does_not_hide_the_package(folder, command):
    done = run([*command, "info", "cache"], folder)
    expected = "error: cache holds no bottlenecks; give the --cache_dir of an extraction\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_wheel_holds_every_package_and_what_these_read(tmp_path, folder):
    """Built from a copy, because setuptools leaves files in the folder that it builds in."""
    source = tmp_path / "source"
    for name in ("cache", "extract", "train"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "retrain.py"):
        shutil.copy(REPO / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, tmp_path / "wheels", source], check=True, capture_output=True)
    [wheel] = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "installed")
    inside = (
        path.relative_to(source).as_posix()
        for name in ("cache", "extract", "train")
        for path in (source / name).rglob("*")
    )
    assert names >= {path for path in inside if path.endswith((".py", ".md", ".j2", ".css", ".html", ".js", ".svg"))}
    done = run([sys.executable, "-m", "train", "-h"], folder, PYTHONPATH=str(tmp_path / "installed"))
    assert (done.returncode, done.stderr) == (0, "")
