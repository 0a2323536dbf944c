"""The main job as the README describes it, with the built-in network: extract, train, predict."""

import contextlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import cache
from extract.service import network
from extract.service.heads import Heads
from extract.service.settings import ServeSettings
from tests import processes
from tests.pictures import FLOWERS
from train.run import TrainSettings, train

needs_flowers = pytest.mark.skipif(not FLOWERS.is_dir(), reason=f"needs the tutorial's photos in {FLOWERS}")


def run(*arguments):
    """Standard output of `python -m ARGUMENTS`, in a process of its own; it must succeed."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=processes.REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def final_accuracy(output):
    """The per cent and the number of photos in the last line, which is the tutorial's."""
    line = re.fullmatch(r"Final test accuracy = (\d+\.\d)% \(N=(\d+)\)", output.splitlines()[-1])
    assert line, output
    return float(line[1]), int(line[2])


def probabilities(model_dir, photos):
    """The outputs of the exported classifier for image files, float32 [N, C]."""
    classify = tf.saved_model.load(str(model_dir / "latest/saved_model")).signatures["serving_default"]
    batches = [photos[start : start + 32] for start in range(0, len(photos), 32)]
    return np.concatenate(
        [classify(tf.constant([photo.read_bytes() for photo in batch]))["probabilities"] for batch in batches]
    )


@pytest.fixture(scope="module")
def digits(made_once):
    """The demo with half of its digits: its folder, and what the training printed. The photos are gone by then."""
    return made_once("demo", make_demo)


def make_demo(root):
    run("extract.sample", root / "digits")
    for photo in sorted((root / "digits").rglob("*.png"))[::2]:
        photo.unlink()
    run("extract", "--image_dir", root / "digits", "--cache_dir", root / "bottlenecks")
    (root / "digits").rename(root / "elsewhere")
    return run("train", "--cache_dir", root / "bottlenecks", "--output_dir", root / "retrained")


def test_the_demo_reads_digits(digits):
    root, output = digits
    accuracy, count = final_accuracy(output)
    assert accuracy >= 90
    assert 60 <= count <= 120  # a tenth of 898, by a hash
    assert (root / "retrained" / "latest/labels.txt").read_text().split() == list("0123456789")
    assert f"python -m train.predict --model {root / 'retrained'}" in output


def test_the_classifier_agrees_with_the_labels_and_the_command_with_the_classifier(digits):
    root, _ = digits
    photos = sorted((root / "elsewhere").rglob("*.png"))[::30]
    predictions = probabilities(root / "retrained", photos).argmax(1)
    # It was fitted on most of these.
    assert np.mean(predictions == [int(photo.parent.name) for photo in photos]) >= 0.9
    output = run("train.predict", "--model", root / "retrained", "--top_k", "1", *photos[:3])
    assert [line.split()[0] for line in output.splitlines()[1::2]] == [str(label) for label in predictions[:3]]


def test_a_copied_cache_trains_to_the_same(digits, tmp_path, capsys):
    root, output = digits
    shutil.copytree(root / "bottlenecks", tmp_path / "laptop")
    flags = ["--cache_dir", tmp_path / "laptop", "--output_dir", tmp_path / "retrained"]
    assert processes.command("train", flags) == 0
    assert capsys.readouterr().out.splitlines()[-1] == output.splitlines()[-1]


def test_the_service_computes_the_cached_bottlenecks_at_every_size_of_batch(digits):
    root, _ = digits
    opened = cache.open(root / "bottlenecks")
    settings = ServeSettings(cache_dir=root / "bottlenecks", head=[root / "retrained"])
    Heads(settings.head).check(opened.backbone)
    with contextlib.ExitStack() as open_until_the_end:
        loaded = network.load(settings, network.find(settings), open_until_the_end)
        assert loaded.backbone == opened.backbone
        assert list(loaded.ladder) == [1 << power for power in range(len(loaded.ladder))]
        contents = [(root / "elsewhere" / path).read_bytes() for path in list(opened.paths)[::9][: max(loaded.ladder)]]
        pixels = np.stack(list(map(loaded.decode, contents)))
        expected = opened.bottlenecks(np.arange(len(opened)))[::9].astype(np.float32)
        for size, engine in loaded.ladder.items():
            vectors = engine.start(tf.constant(pixels[:size]))()
            # float16 on disk, and kernels that are chosen by the size of a batch, in bfloat16 where that is fast.
            atol = 0.05 if "bfloat16" in loaded.ran else 2e-3
            np.testing.assert_allclose(vectors, expected[:size], rtol=2**-10, atol=atol)


def copy_flowers(folder, count):
    """`folder` with the first photos of each kind."""
    for kind in sorted(FLOWERS.iterdir()):
        (folder / kind.name).mkdir(parents=True)
        for photo in sorted(kind.iterdir())[:count]:
            shutil.copy(photo, folder / kind.name)
    return folder


@needs_flowers
def test_flowers_with_the_defaults(tmp_path, capsys):
    photos = copy_flowers(tmp_path / "photos", 150)
    assert processes.command("extract", ["--image_dir", photos, "--cache_dir", tmp_path / "bottlenecks"]) == 0
    flags = ["--cache_dir", tmp_path / "bottlenecks", "--output_dir", tmp_path / "retrained"]
    assert processes.command("train", flags) == 0
    accuracy, _ = final_accuracy(capsys.readouterr().out)
    assert accuracy >= 86


@needs_flowers
def test_the_classifier_computes_what_was_trained_on_the_bottlenecks(tmp_path):
    photos = copy_flowers(tmp_path / "photos", 12)
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "bottlenecks", "--precision", "float32"]
    assert processes.command("extract", flags) == 0
    result = train(TrainSettings(cache_dir=tmp_path / "bottlenecks", output_dir=tmp_path / "retrained"))
    opened = result.cache
    bottlenecks = opened.bottlenecks(np.arange(len(opened))).astype(np.float64)
    scores = bottlenecks @ result.head.weights + result.head.biases
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    outputs = probabilities(tmp_path / "retrained", [photos / path for path in opened.paths])
    # float16 on disk, and another batch size in the network: nothing else may differ.
    np.testing.assert_allclose(outputs, expected, atol=2e-3)
