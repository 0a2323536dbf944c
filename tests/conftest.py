"""Fixtures that tests of several packages share."""

import fcntl
import json
import os
import shutil
import signal
import subprocess

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors only: its log is not tested


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)` is a folder and what `make(folder)` returned, a value for JSON.

    The first of the workers makes it, and the others take it as it is. For what takes long and no test changes.
    """
    folder = tmp_path_factory.getbasetemp()
    above_the_workers = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def make_or_take(name, make):
        place = above_the_workers / name
        with open(above_the_workers / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "returned.json").exists():
                shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
                place.mkdir()
                (place / "returned.json").write_text(json.dumps(make(place)))
        return place, json.loads((place / "returned.json").read_text())

    return make_or_take


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    """The path of a small SavedModel."""
    from tests import modules  # TensorFlow, which some of the tests do not need

    return modules.make_tf2_hub_module(tmp_path_factory.mktemp("modules") / "tiny")


@pytest.fixture(scope="session")
def loaded(module, tmp_path_factory):
    """The small module as a backbone, and a cache that has it and no bottlenecks."""
    from extract.runner import Runner
    from extract.settings import Settings

    cache_dir = tmp_path_factory.mktemp("backbone") / "cache"
    runner = Runner(Settings("no photos", str(cache_dir), module))
    assert runner.loaded_store.directory.parent == cache_dir
    return runner.backbone, cache_dir


@pytest.fixture
def loaded_once(module, loaded, monkeypatch):
    """Extractions in this process do not load the small module again, only others."""
    from extract import backbones

    backbone, _ = loaded
    load = backbones.load
    monkeypatch.setattr(backbones, "load", lambda *name: backbone if name[:2] == (module, None) else load(*name))


@pytest.fixture(params=["resident", "streamed"])
def path(request, monkeypatch):
    """Both ways that training data may take; streamed in blocks of a few images."""
    from tests import small_cache
    from train.data import batches, schedule

    if request.param == "streamed":
        monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(batches, "BLOCK_BYTES", 50 * small_cache.DIMENSION * 4)
        monkeypatch.setattr(schedule, "SHUFFLE_BYTES", 300 * small_cache.DIMENSION * 4)
    return request.param


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB, where this machine lets one be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield place
    # Lazily, since files that a failed test left open would keep it mounted.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# A shell starts its background jobs with Ctrl-C ignored, and the processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
