"""Where commands run: in folders of any name, without a reader, in a notebook."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import cache
from cache.plain_path import plain
from tests import forked, modules, processes
from tests.pictures import make_folder, pixels
from tests.processes import REPO

ODD = os.fsdecode("photos [2024] {a,b} *?\\ é 猫 %s\n".encode() + b"\xe9")


def run(module, *arguments):
    """Standard output of a command that succeeds."""
    status, out, errors = forked.run(module, *arguments)
    assert status == 0, errors.decode()
    return out


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder of such a name, with photos, a module and all that the commands made of them."""
    root = tmp_path_factory.mktemp("odd") / ODD
    make_folder(root / "photos", {"a": 30, "b": 30})
    module = modules.make_tf2_hub_module(tmp_path_factory.mktemp("module") / "module")
    shutil.copytree(module, root / "module")
    flags = ["--image_dir", root / "photos", "--cache_dir", root / "cache", "--module", root / "module"]
    run("extract.__main__", *flags, "--trace", root / "trace", "--engine", "tensorflow", "--thumbnails", "--augment", 1)
    flags = ["--cache_dir", root / "cache", "--output_dir", root / "retrained", "--frozen_graph", "--tflite", "float16"]
    run("train.__main__", *flags)
    return root


def test_what_is_made_there_lies_there(odd):
    assert list((odd / "trace").rglob("*.xplane.pb"))
    names = {path.name for path in (odd / "retrained" / "latest").iterdir()}
    assert names >= {"saved_model", "labels.txt", "metrics.json", "report.html", "frozen_graph.pb"}
    assert len(list((odd / "retrained" / "logs").rglob("events.out.tfevents.*"))) == 3
    # A path that is turned into other bytes, or taken for a pattern, makes a folder beside the one that was meant.
    assert [path.name for path in odd.parent.iterdir()] == [ODD]


def test_the_bottlenecks_are_those_of_the_module_there(odd):
    opened = cache.open(odd / "cache")
    assert opened.index.image_dir == str(odd / "photos")
    images = np.stack([pixels(odd / "photos" / path) / np.float32(255) for path in opened.paths])
    np.testing.assert_allclose(opened.bottlenecks(np.arange(60)), modules.reference(images), atol=2e-2)


def test_the_classifier_labels_photos_there(odd):
    out = run("train.predict", "--model", odd / "retrained", "--csv", odd / "photos" / "a")
    assert out.count(b",1,") == 30


def test_a_cache_there_is_looked_after(odd):
    for command in ("info", "verify", "compact"):
        run("cache.__main__", command, odd / "cache")


def test_the_tutorials_command_works_there(odd, tmp_path):
    places = {
        "bottleneck_dir": odd / "cache",
        "output_graph": odd / "graph [1].pb",
        "output_labels": odd / "labels [1].txt",
        "summaries_dir": odd / "summaries",
        "saved_model_dir": odd / "saved [1]",
        "checkpoint_path": odd / f"checkpoint {ODD}",
        "intermediate_output_graphs_dir": odd / "intermediate",
    }
    flags = [text for name, place in places.items() for text in (f"--{name}", place)]
    flags += ["--image_dir", odd / "photos", "--tfhub_module", odd / "module"]
    run("retrain", *flags, "--how_many_training_steps", 20, "--intermediate_store_frequency", 10)
    assert all(place.exists() for name, place in places.items() if name != "checkpoint_path")
    for ending in (".index", ".data-00000-of-00001"):
        shutil.copy(f"{places['checkpoint_path']}{ending}", tmp_path / f"layer{ending}")
    layer = tf.train.load_checkpoint(str(tmp_path / "layer"))
    assert layer.get_tensor("weights/.ATTRIBUTES/VARIABLE_VALUE").shape == (8, 2)


@pytest.mark.parametrize("make", [modules.make_tf1_hub_module, modules.make_serving_module])
def test_modules_of_other_formats_are_loaded_from_there(odd, tmp_path, make):
    from extract import backbones

    module = shutil.copytree(make(tmp_path / "module"), odd / make.__name__)
    assert backbones.load(str(module)).weights_digest == backbones.identity(str(tmp_path / "module"))


@pytest.mark.parametrize("temporary", ["plain", "odd [1]"])
def test_a_path_is_plain_for_the_time_of_the_block(tmp_path, monkeypatch, temporary):
    (tmp_path / temporary).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / temporary))
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "file").write_text("content")
    monkeypatch.chdir(tmp_path)
    with plain(ODD) as path:
        assert path.isascii() and not set(path) & set("[]*?\\\n")
        assert Path(path, "file").read_text() == "content"
    assert not os.path.lexists(path)
    assert not os.listdir(tmp_path / temporary)
    for same in ("/a/b c", "gs://bucket/[a]"):
        with plain(same) as path:
            assert path == same


def test_the_language_of_the_terminal_changes_no_path(odd):
    """In a process of its own, since Python decides on start how to read paths."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "train.predict", "--model", odd / "retrained", odd / "photos" / "a" / "000.png"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, env={**os.environ, **locale})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert b"\n  a " in done.stdout


def test_a_training_goes_on_when_nobody_reads_what_it_prints(odd, tmp_path):
    flags = ["--cache_dir", odd / "cache", "--output_dir", tmp_path / "retrained", "--solver", "sgd"]
    child = forked.start("train.__main__", *flags, "--how_many_training_steps", 500)
    assert child.stdout.readline()
    child.stdout.close()
    child.stderr.close()
    child.stdin.close()
    assert child.wait() == 0
    assert (tmp_path / "retrained" / "latest" / "report.html").exists()


def test_predict_ends_when_nobody_reads_what_it_prints(odd):
    photos = [odd / "photos" / "a"] * 2000  # more than a pipe holds
    child = forked.start("train.predict", "--model", odd / "retrained", "--json", *photos)
    assert child.stdout.readline()
    child.stdout.close()
    child.stdin.close()
    assert (child.wait(), child.stderr.read()) == (141, b"")


class Notebook:
    """Standard output as ipykernel has it: it takes text, and has neither a file nor an encoding to choose."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False


def in_notebook(root, module):
    """Calls the commands' functions with such an output; returns 0 if it got what they print."""
    from extract.__main__ import main as extract
    from train import predict
    from train.__main__ import main as train

    stdout, sys.stdout, sys.stderr = sys.stdout, Notebook(), Notebook()
    extract(["--image_dir", f"{root}/photos", "--cache_dir", f"{root}/cache", "--module", module])
    train(["--cache_dir", f"{root}/cache", "--output_dir", f"{root}/retrained"])
    for form in ([], ["--csv"], ["--json"]):
        predict.main(["--model", f"{root}/retrained", *form, f"{root}/photos/a/000.png"])
    printed, sys.stdout = sys.stdout.text, stdout
    print(printed)
    return 0


def test_commands_are_functions_in_a_notebook(tmp_path, module):
    make_folder(tmp_path / "photos", {"a": 30, "b": 30})
    done = processes.run(in_notebook, str(tmp_path), module)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "60 computed, 0 reused, 0 files rejected" in lines
    assert any(line.startswith("Final test accuracy = ") for line in lines)
    assert f"{tmp_path}/photos/a/000.png" in lines
    assert "path,rank,label,probability" in lines
    assert any(line.startswith('{"path": ') for line in lines)
