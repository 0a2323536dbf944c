"""The main job as the README tells it, in real processes, with the built-in network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from train.run import TrainSettings, train

REPO = Path(__file__).resolve().parent.parent
FLOWERS = REPO.parent / "shared" / "flower_photos"


def run(*arguments):
    """Standard output of `python -m ARGUMENTS`, which must succeed."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def final_accuracy(output):
    """(per cent, number of images) of the last line, which is the tutorial's."""
    found = re.fullmatch(r"Final test accuracy = (\d+\.\d)% \(N=(\d+)\)", output.splitlines()[-1])
    assert found, output
    return float(found[1]), int(found[2])


def probabilities(model_dir, photos):
    """float32 [N, C]: what the exported classifier makes of image files."""
    classify = tf.saved_model.load(str(model_dir / "saved_model")).signatures["serving_default"]
    batches = [photos[start : start + 32] for start in range(0, len(photos), 32)]
    return np.concatenate(
        [classify(tf.constant([photo.read_bytes() for photo in batch]))["probabilities"] for batch in batches]
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo: its folder, and what the training printed. The images are gone when training starts."""
    root = tmp_path_factory.mktemp("demo")
    run("extract.sample", root / "digits")
    run("extract", "--image_dir", root / "digits", "--cache_dir", root / "bottlenecks")
    (root / "digits").rename(root / "elsewhere")
    return root, run("train", "--cache_dir", root / "bottlenecks", "--output_dir", root / "retrained")


def test_the_demo_reads_digits(digits):
    root, output = digits
    accuracy, count = final_accuracy(output)
    assert accuracy >= 90
    assert 120 <= count <= 240  # a tenth of 1,797, by a hash
    assert (root / "retrained" / "labels.txt").read_text().split() == list("0123456789")
    assert f"python -m train.predict --model {root / 'retrained'}" in output


def test_the_classifier_agrees_with_its_labels_and_from_a_command(digits):
    root, _ = digits
    photos = sorted((root / "elsewhere").rglob("*.png"))[::30]
    found = probabilities(root / "retrained", photos).argmax(1)
    # It has seen most of these.
    assert np.mean(found == [int(photo.parent.name) for photo in photos]) >= 0.9
    told = run("train.predict", "--model", root / "retrained", "--top_k", "1", *photos[:3])
    assert [line.split()[0] for line in told.splitlines()[1::2]] == [str(label) for label in found[:3]]


def test_a_cache_that_was_copied_trains_to_the_same(digits, tmp_path):
    root, output = digits
    shutil.copytree(root / "bottlenecks", tmp_path / "laptop")
    again = run("train", "--cache_dir", tmp_path / "laptop", "--output_dir", tmp_path / "retrained")
    assert again.splitlines()[-1] == output.splitlines()[-1]


@pytest.mark.skipif(not FLOWERS.is_dir(), reason=f"needs the tutorial's photos in {FLOWERS}")
def test_flowers_with_the_defaults(tmp_path):
    run("extract", "--image_dir", FLOWERS, "--cache_dir", tmp_path / "bottlenecks")
    output = run("train", "--cache_dir", tmp_path / "bottlenecks", "--output_dir", tmp_path / "retrained")
    accuracy, _ = final_accuracy(output)
    assert accuracy >= 86


@pytest.mark.skipif(not FLOWERS.is_dir(), reason=f"needs the tutorial's photos in {FLOWERS}")
def test_a_photos_prediction_is_its_bottlenecks_evaluation(tmp_path):
    folder = tmp_path / "photos"
    for photo in [photo for kind in sorted(FLOWERS.iterdir()) for photo in sorted(kind.iterdir())[:30]]:
        (folder / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / photo.parent.name)
    run("extract", "--image_dir", folder, "--cache_dir", tmp_path / "bottlenecks", "--precision", "float32")
    result = train(TrainSettings(cache_dir=tmp_path / "bottlenecks", output_dir=tmp_path / "retrained"))
    opened = result.cache
    bottlenecks = opened.bottlenecks(np.arange(len(opened))).astype(np.float64)
    scores = bottlenecks @ result.head.weights + result.head.biases
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    found = probabilities(tmp_path / "retrained", [folder / path for path in opened.paths])
    # float16 on disk, and another batch size in the network: nothing else may differ.
    np.testing.assert_allclose(found, expected, atol=2e-3)
