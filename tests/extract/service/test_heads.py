"""Heads are files: refused where they do not fit, and read anew when a training replaces them."""

import shutil
import time
from dataclasses import replace

import pytest

from cache import console, head
from extract.serve import main
from tests.extract.service import serving

PATIENCE = 30  # seconds to wait for the next look at a folder


def refused(served, capsys, *flags):
    """The line with which the service refuses to start."""
    arguments = ["--cache_dir", str(served / "cache"), "--port", "0", *map(str, flags)]
    assert console.run(main, arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def rewritten(served, folder, **changes):
    """A folder with the head of `served`, changed."""
    folder.mkdir()
    head.write(folder / "head.h5", replace(head.read(served / serving.HEAD), **changes))
    return folder


def test_a_head_of_another_backbone_is_refused_and_both_are_named(served, tmp_path, capsys):
    own = head.read(served / serving.HEAD).backbone
    other = rewritten(served, tmp_path / "other", backbone=replace(own, module="resnet", fingerprint="f" * 16))
    line = refused(served, capsys, "--head", other)
    assert f"{other} is for bottlenecks of resnet ({'f' * 16}), not of {own.module} ({own.fingerprint})" in line


def test_two_heads_of_one_name_are_refused(served, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    again = rewritten(served, tmp_path / "a" / serving.HEAD)
    line = refused(served, capsys, "--head", served / serving.HEAD, again)
    assert f"two heads have the name {serving.HEAD}" in line


def test_a_folder_without_a_head_is_refused_with_the_remedy(served, tmp_path, capsys):
    assert "train again" in refused(served, capsys, "--head", tmp_path)
    assert "give the --output_dir" in refused(served, capsys, "--head", tmp_path / "nowhere")


def test_a_damaged_head_is_refused(served, tmp_path, capsys):
    folder = rewritten(served, tmp_path / "damaged")
    content = bytearray((folder / "head.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "head.h5").write_bytes(content)
    assert "train again" in refused(served, capsys, "--head", folder)


@pytest.fixture(scope="module")
def changing(served, tmp_path_factory):
    """A server with a head in a folder that tests change, and that folder."""
    folder = rewritten(served, tmp_path_factory.mktemp("heads") / "changing")
    server = serving.Server(served, "--head", folder)
    yield server, folder
    assert server.stop() == 0


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_head_is_replaced_while_the_service_runs_and_a_broken_one_is_not_taken(served, changing, tmp_path):
    server, folder = changing
    [photo] = serving.photos(served, 1)
    before = server.post("/v1/classify/changing", photo).json
    assert before["version"] == 1
    labels = [f"new {label}" for label in serving.LABELS]
    new = rewritten(served, tmp_path / "new", labels=labels)
    (new / "head.h5").replace(folder / "head.h5")
    wait_for(lambda: server.post("/v1/classify/changing", photo).json["version"] == 2)
    after = server.post("/v1/classify/changing", photo).json
    names = [[row["label"] for row in answer["images"][0]["labels"]] for answer in (before, after)]
    assert names[1] == [f"new {label}" for label in names[0]]
    (tmp_path / "broken").write_bytes(b"no head")
    (tmp_path / "broken").replace(folder / "head.h5")
    wait_for(lambda: any("head changing stays as it was" in line for line in server.said))
    assert server.post("/v1/classify/changing", photo).json == after
    other = replace(head.read(served / serving.HEAD).backbone, fingerprint="f" * 16)
    foreign = rewritten(served, tmp_path / "foreign", backbone=other)
    (foreign / "head.h5").replace(folder / "head.h5")
    wait_for(lambda: sum("head changing stays as it was" in line for line in server.said) == 2)
    assert server.post("/v1/classify/changing", photo).json == after
    shutil.rmtree(folder)
    assert server.post("/v1/classify/changing", photo).json == after
