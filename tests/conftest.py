"""What the tests share. TensorFlow's log lines are not what they look for."""

import os
import shutil
import signal
import subprocess

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    """The path of a small SavedModel."""
    from tests import modules  # TensorFlow, which some of the tests do not need

    return modules.make_tf2_hub_module(tmp_path_factory.mktemp("modules") / "tiny")


@pytest.fixture(params=["resident", "streamed"])
def path(request, monkeypatch):
    """Both ways that training data may take; streamed in blocks of a few images."""
    from tests import small_cache
    from train import stream

    if request.param == "streamed":
        monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(stream, "BLOCK_BYTES", 50 * small_cache.DIMENSION * 4)
        monkeypatch.setattr(stream, "SHUFFLE_BYTES", 300 * small_cache.DIMENSION * 4)
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
    # Lazily: what a failed test still holds open must not keep it mounted.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# A shell starts what runs in its background with Ctrl-C ignored, and so would all processes be that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
