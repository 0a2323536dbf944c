"""What an extraction promises, whatever runs it and whatever the photos are: near enough vectors, bounded memory."""

import io
import os
from importlib.util import find_spec

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression

import cache
from extract import backbones
from extract.decode import decode, preprocess, resize
from extract.engines import devices
from extract.run import extract
from extract.settings import Settings
from tests import processes
from tests.pictures import FLOWERS, noise

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def network():
    """The built-in network, loaded once for all extractions in this process."""
    if not FLOWERS.is_dir():
        pytest.skip("the flower photos are not here")
    backbone = backbones.load("efficientnet_lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "load", lambda *_: backbone)
        yield backbone


@pytest.fixture(scope="module")
def flowers(network, tmp_path_factory):
    """A folder with 40 photos of each of five kinds, and their float32 vectors by TensorFlow and classes."""
    root = tmp_path_factory.mktemp("flowers")
    for folder in sorted(FLOWERS.iterdir()):
        (root / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.glob("*.jpg"))[:40]:
            (root / "photos" / folder.name / photo.name).symlink_to(photo)
    return root, *vectors(root, engine="tensorflow", precision="float32")


def vectors(root, **choices):
    """The bottlenecks (float32 [N, D]) and classes ([N]) of the photos in `root`."""
    settings = Settings(str(root / "photos"), str(root / "-".join(choices.values())), "efficientnet_lite0", **choices)
    opened = cache.open(extract(settings).directory)
    return opened.bottlenecks(np.arange(len(opened))).astype(np.float32), opened.label_ids


def assert_close(some, others):
    """The vectors (float32 [N, D]) point in nearly the same direction."""
    cosines = (some * others).sum(1) / (np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1))
    assert cosines.min() >= 0.99
    assert cosines.mean() >= 0.999


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_mixed_precision_moves_a_vector_little_and_a_class_hardly_ever(flowers, engine):
    if engine == "openvino" and not find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    root, reference, label_ids = flowers
    mixed, _ = vectors(root, engine=engine, precision="mixed")
    if devices.precision("mixed", ["CPU:0"]) != "float32":  # this processor has bfloat16, and it ran in that
        assert not np.array_equal(mixed, reference)
    assert_close(mixed, reference)
    training = np.arange(len(label_ids)) % 2 == 0
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(reference[training], label_ids[training])
    accuracy = [classifier.score(v[~training], label_ids[~training]) for v in (reference, mixed)]
    assert accuracy[0] > 0.8
    assert abs(accuracy[1] - accuracy[0]) <= 2 / np.count_nonzero(~training)


def test_leaving_out_detail_of_large_photos_moves_a_vector_little(network):
    scaled, whole = [], []
    for photo in sorted(FLOWERS.glob("*/*.jpg"))[::100]:
        with Image.open(photo) as picture:
            enlargement = (12e6 / (picture.width * picture.height)) ** 0.5
            size = round(picture.width * enlargement), round(picture.height * enlargement)
            large = io.BytesIO()
            picture.convert("RGB").resize(size, Image.BICUBIC).save(large, "JPEG", quality=90)
        encoded = tf.constant(large.getvalue())
        assert min(decode(encoded, 4 * 224).shape[:2]) < min(size)  # or nothing would be left out
        scaled.append(preprocess(encoded, 224, 224))
        whole.append(resize(decode(encoded), 224, 224))
    features = [network.features(tf.cast(tf.stack(images), tf.float32) / 255).numpy() for images in (scaled, whole)]
    assert_close(*features)


def extract_and_print_peak(flags):
    """Prints at last the bytes of memory that this process took at most."""
    status = processes.command("extract", flags)
    with open("/proc/self/status") as file:
        print("peak", next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM")))
    return status


def peak(photos, module, threads):
    """Bytes of memory that an extraction in a process of its own took at most."""
    flags = ["--image_dir", photos, "--cache_dir", f"{photos} cache", "--module", module, "--engine", "tensorflow"]
    flags += ["--precision", "float32", "--decode_threads", threads]
    done = processes.run(extract_and_print_peak, flags)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_memory_is_bounded_by_what_is_decoded_at_once(tmp_path, module):
    """The README's bound, beside what every run takes. Of PNGs, unlike JPEGs, every pixel has to be decoded."""
    big, side = Image.fromarray(noise(1, side=64)), (4000, 3000)
    originals = {"photo.jpg": big.resize(side, Image.BICUBIC), "drawing.png": big.resize(side, Image.NEAREST)}
    for name, picture in originals.items():
        picture.save(tmp_path / name, quality=90)
    Image.fromarray(noise(2, side=32)).save(tmp_path / "small.png")

    def folder(name, **copies):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for file in copies:
                for number in range(copies[file]):
                    original = next(tmp_path.glob(f"{file}.*"))
                    os.link(original, tmp_path / name / label / f"{number}-{original.name}")
        return tmp_path / name

    threads, pixels = 2, side[0] * side[1] * 3
    everyday = peak(folder("small folder", small=20), module, threads)
    assert peak(folder("photos", photo=20), module, threads) < everyday + threads * pixels
    few = peak(folder("few", drawing=3, photo=6), module, threads)
    many = peak(folder("many", drawing=15, photo=60), module, threads)
    assert few < everyday + threads * pixels + 32 * MEGABYTE
    assert many < few + 32 * MEGABYTE
