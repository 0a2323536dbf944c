"""Other machines than this one: a Mac, a container with a share of the cores, a home folder elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import cache
from cache import process
from tests import processes
from tests.pictures import make_folder
from tests.processes import REPO

# Python imports a module of this name first of all. On macOS these functions are not there to be called.
SITE = """
import os
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "copy_file_range",
             "fdatasync", "memfd_create", "eventfd", "splice"):
    vars(os).pop(name, None)
os.process_cpu_count = os.cpu_count  # Python's own way out there, from 3.13 on
"""


COMMANDS = """
import importlib, json, os, sys
assert not hasattr(os, "sched_getaffinity"), "nothing was taken away"
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    if status := importlib.import_module(module).script():
        sys.exit(f"{module} ends with {status}")
"""


def test_every_command_does_its_work_without_what_only_linux_has(tmp_path, module):
    """All in one process, which imports TensorFlow once."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    photos = make_folder(tmp_path / "photos", {"daisy": 12, "roses": 12})
    bottlenecks, out = tmp_path / "bottlenecks", tmp_path / "out"
    commands = [
        ("extract.__main__", "--image_dir", photos, "--cache_dir", bottlenecks, "--module", module, "--thumbnails"),
        ("cache.__main__", "verify", bottlenecks),
        ("cache.__main__", "compact", bottlenecks),
        ("train.__main__", "--cache_dir", bottlenecks, "--output_dir", out, "--tflite", "float16", "int8"),
        ("train.predict", "--model", out, photos / "daisy" / "000.png"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([list(map(str, command)) for command in commands])],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(cache.open(bottlenecks)) == 24
    assert re.search(r"daisy|roses", done.stdout.splitlines()[-1])


QUOTAS = {"250000 100000\n": 3, "1000 100000\n": 1, "max 100000\n": 8, "900000 1000": 8, None: 8}


@pytest.mark.parametrize(("quota", "expected"), QUOTAS.items())
def test_a_container_uses_no_more_threads_than_it_has_cores(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(process, "_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    assert process.cores() == expected


def test_a_home_folder_that_the_shell_left_alone_is_found(tmp_path, monkeypatch, module):
    photos = make_folder(tmp_path / "photos", {"daisy": 2, "roses": 2})
    shutil.copytree(module, tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--image_dir=~/photos", "--cache_dir=~/bottlenecks", "--module=~/tiny"]
    assert processes.command("extract", flags) == 0
    assert processes.command("cache", ["info", "~/bottlenecks"]) == 0
    assert len(cache.open(tmp_path / "bottlenecks")) == len(list(photos.glob("*/*")))


@pytest.mark.parametrize("arguments", [("cache", "info", ""), ("extract.sample", ""), ("extract", "--image_dir", "")])
def test_an_empty_path_is_not_the_current_folder(arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert "an empty path; name a file or folder" in done.stderr
