"""What an extraction promises whatever runs it and whatever it is fed: near enough vectors, bounded memory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression

import cache
from extract import backbone, decode, devices
from extract.run import extract
from extract.settings import Settings
from tests import modules
from tests.pictures import noise

REPO = Path(__file__).resolve().parent.parent
FLOWERS = REPO.parent / "shared" / "flower_photos"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """60 photos of each of five kinds, and their classes and float32 vectors by TensorFlow."""
    if not FLOWERS.is_dir():
        pytest.skip("the flower photos are not here")
    root = tmp_path_factory.mktemp("flowers")
    for folder in sorted(FLOWERS.iterdir()):
        (root / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.glob("*.jpg"))[:60]:
            (root / "photos" / folder.name / photo.name).symlink_to(photo)
    return root, *vectors(root, engine="tensorflow", precision="float32")


def vectors(root, **choices):
    """(float32 [N, D], class of each [N]) of the photos in `root`."""
    settings = Settings(str(root / "photos"), str(root / "-".join(choices.values())), "efficientnet_lite0", **choices)
    opened = cache.open(extract(settings).directory)
    return opened.bottlenecks(np.arange(len(opened))).astype(np.float32), opened.label_ids


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_mixed_precision_moves_a_vector_little_and_a_class_hardly_ever(flowers, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    root, reference, label_ids = flowers
    found, _ = vectors(root, engine=engine, precision="mixed")
    if devices.precision("mixed", ["CPU:0"]) != "float32":  # this processor has bfloat16, and it ran in that
        assert not np.array_equal(found, reference)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = (found * reference).sum(1) / norms
    assert cosines.min() >= 0.99
    assert cosines.mean() >= 0.999
    training = np.arange(len(label_ids)) % 2 == 0
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(reference[training], label_ids[training])
    accuracy = [classifier.score(v[~training], label_ids[~training]) for v in (reference, found)]
    assert accuracy[0] > 0.8
    assert abs(accuracy[1] - accuracy[0]) <= 3 / np.count_nonzero(~training)


@pytest.mark.skipif(not FLOWERS.is_dir(), reason="the flower photos are not here")
def test_leaving_out_detail_of_large_photos_moves_a_vector_little():
    network = backbone.load("efficientnet_lite0")
    scaled, whole = [], []
    for photo in sorted(FLOWERS.glob("*/*.jpg"))[::60]:
        with Image.open(photo) as picture:
            enlargement = (12e6 / (picture.width * picture.height)) ** 0.5
            size = round(picture.width * enlargement), round(picture.height * enlargement)
            large = io.BytesIO()
            picture.convert("RGB").resize(size, Image.LANCZOS).save(large, "JPEG", quality=90)
        encoded = tf.constant(large.getvalue())
        assert min(decode.decode(encoded, 4 * 224).shape[:2]) < min(size)  # or nothing would be left out
        scaled.append(decode.preprocess(encoded, 224, 224))
        whole.append(decode.resize(decode.decode(encoded), 224, 224))
    a, b = (network.features(tf.cast(tf.stack(images), tf.float32) / 255).numpy() for images in (scaled, whole))
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert cosines.min() >= 0.99
    assert cosines.mean() >= 0.999


def peak(photos, cache_dir, module, threads):
    """Bytes of memory that an extraction in a process of its own took at most."""
    flags = ["--image_dir", photos, "--cache_dir", cache_dir, "--module", module, "--engine", "tensorflow"]
    flags += ["--precision", "float32", "--decode_threads", threads]
    script = f"""
from cache import command
from extract.__main__ import main
status = command.run(main, {[str(flag) for flag in flags]!r})
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
raise SystemExit(status)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def test_memory_is_bounded_by_what_is_decoded_at_once(tmp_path):
    """The README's bound, against what every run takes. Of PNGs, unlike JPEGs, every pixel has to be decoded."""
    module = modules.make_tf2_hub_module(tmp_path / "module")
    big, side = Image.fromarray(noise(1, side=64)), (4000, 3000)
    originals = {"photo.jpg": big.resize(side, Image.BICUBIC), "drawing.png": big.resize(side, Image.NEAREST)}
    for name, picture in originals.items():
        picture.save(tmp_path / name, quality=90)
    small = Image.fromarray(noise(2, side=32))
    small.save(tmp_path / "small.png")

    def folder(name, *files, copies):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(copies):
                for file in files:
                    os.link(tmp_path / file, tmp_path / name / label / f"{number}-{file}")
        return tmp_path / name

    threads, pixels = 2, side[0] * side[1] * 3
    everyday = peak(folder("small", "small.png", copies=20), tmp_path / "cache 1", module, threads)
    photos = folder("photos", "photo.jpg", copies=120)
    assert peak(photos, tmp_path / "cache 2", module, threads) < everyday + threads * pixels
    few = peak(folder("few", "drawing.png", "photo.jpg", copies=6), tmp_path / "cache 3", module, threads)
    many = peak(folder("many", "drawing.png", "photo.jpg", copies=60), tmp_path / "cache 4", module, threads)
    assert few < everyday + threads * pixels + 32 * MEGABYTE
    assert many < few + 32 * MEGABYTE
