"""TensorFlow Lite files and the frozen graph: what they answer, what a run prints of them, and what they need."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
from cache import console, layout, manifest, thumbnails
from cache import index as indexes
from cache.errors import UserError
from tests import forked, small_cache
from tests.train.runs import quick
from train import run
from train.__main__ import main
from train.data import photos, split
from train.export import lite
from train.solvers.head import Head

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(A folder with `photos`, `cache` and the `out` of a run that exports every form, the run's result)."""
    root = tmp_path_factory.mktemp("lite")
    # Pictures that are hard to tell apart, and many of them to test with.
    cache_dir = small_cache.make(root, noise=120)
    more = {"testing_percentage": 40.0, "seed": 1, "tflite": ("float16", "int8"), "frozen_graph": True}
    return root, run.train(quick(cache_dir, root / "out", **more))


def inputs_of(opened, rows):
    """The photos as the network gets them, uint8 [n, H, W, 3]."""
    backbone = tf.saved_model.load(str(opened.backbone_dir))
    root = opened.index.image_dir
    return np.stack([backbone.decode(tf.io.read_file(f"{root}/{opened.paths[row]}")).numpy() for row in rows])


def probabilities_of(root, opened, rows):
    """The SavedModel's, float32 [n, C]."""
    model = tf.saved_model.load(str(root / "out" / "latest/saved_model"))
    return np.stack([model.classify_images(image[None])["probabilities"][0] for image in inputs_of(opened, rows)])


def answers(path, images):
    """Probabilities as a phone gets them: by name, one image at a time."""
    runner = tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")
    return np.stack([runner(images=image[None])["probabilities"][0] for image in images])


def test_float16_answers_as_the_saved_model_does(world):
    root, result = world
    rows = np.arange(len(result.cache))
    images = inputs_of(result.cache, rows).astype(np.float32) / 255
    found = answers(root / "out" / "latest/classifier_float16.tflite", images)
    assert found.dtype == np.float32
    # float16 rounds each weight by 2^-11 of it at most. Here are a layer of twelve numbers of about 1/2 and one of
    # sixteen: scores of about ten move by less than 0.02, and a probability by a quarter of what two scores do.
    np.testing.assert_allclose(found, probabilities_of(root, result.cache, rows), atol=0.01)


def test_int8_takes_pixels_as_they_are_and_mostly_agrees(world):
    root, result = world
    rows = np.arange(len(result.cache))
    path = root / "out" / "latest/classifier_int8.tflite"
    found = answers(path, inputs_of(result.cache, rows))
    assert found.dtype == np.uint8
    expected = probabilities_of(root, result.cache, rows)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
    # Eight bits for what goes in, two layers and what comes out: a score is out by a few hundredths of the range.
    assert np.abs(found / 256 - expected).mean() < 0.05
    [input_details], [output_details] = (
        details(tf.lite.Interpreter(str(path)))
        for details in (tf.lite.Interpreter.get_input_details, tf.lite.Interpreter.get_output_details)
    )
    assert (input_details["dtype"], input_details["shape"].tolist()) == (np.uint8, [1, 8, 6, 3])
    assert input_details["quantization"] == (pytest.approx(1 / 255, rel=1e-5), 0)
    assert output_details["quantization"] == (1 / 256, 0)


def test_dull_samples_do_not_change_what_pixels_mean(world, laptop):
    _, directory, index = laptop
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (90, 100, 110)).save(content, "JPEG")
    thumbnails.write(directory, [thumbnails.of(index, np.array([0]), [content.getvalue()])])
    lite.write(directory / "dull.tflite", cache.open(directory), world[1].head, "int8", np.array([0]))
    [input_details] = tf.lite.Interpreter(str(directory / "dull.tflite")).get_input_details()
    assert input_details["quantization"] == (pytest.approx(1 / 255, rel=1e-5), 0)


def test_the_weights_take_less_room(tmp_path):
    opened = small_cache.open_with(tmp_path, counts=(20, 20, 20))
    # Half a million weights, which make the file.
    wide = np.random.default_rng(0).normal(size=(small_cache.DIMENSION, 30000)).astype(np.float32)
    sizes = {}
    for precision in ("float16", "int8"):
        path = tmp_path / "new" / precision
        lite.write(path, opened, Head(wide, np.zeros(30000, np.float32)), precision, np.arange(20))
        sizes[precision] = path.stat().st_size
    assert sizes["float16"] < 0.6 * wide.nbytes
    # Half of that again, but for 12 bytes more a class: the scale and the zero point of its weights.
    assert sizes["int8"] < sizes["float16"] - wide.nbytes // 4 + 12 * 30000 + 2000


# --- the accuracy ----------------------------------------------------------------------------------------------


def test_the_accuracy_is_measured_on_the_test_images_beside_the_classifiers(world):
    root, result = world
    exports = json.loads((root / "out" / "latest/metrics.json").read_text())["exports"]
    rows = np.flatnonzero(result.parts == split.TEST)
    assert len(rows) == result.counts[2]
    labels, images = result.cache.label_ids[rows], inputs_of(result.cache, rows)
    whole = (probabilities_of(root, result.cache, rows).argmax(axis=1) == labels).mean()
    assert 0.4 < whole < 0.95  # there is something to tell apart
    for precision, inputs in (("float16", images.astype(np.float32) / 255), ("int8", images)):
        path = root / "out" / f"latest/classifier_{precision}.tflite"
        accuracy = (answers(path, inputs).argmax(axis=1) == labels).mean()
        assert exports[path.name] == {
            "bytes": path.stat().st_size,
            "accuracy": pytest.approx(accuracy),
            "classifier_accuracy": pytest.approx(whole),
            "images": len(rows),
            "thumbnails": 0,
        }
    page = (root / "out" / "latest/report.html").read_text()
    assert f"classifier_int8.tflite</td><td>0.0 MB</td><td>{accuracy:.1%}</td><td>{whole:.1%}</td>" in page


def thumbnail_of(path):
    content = io.BytesIO()
    Image.open(path).convert("RGB").save(content, "JPEG", quality=95)
    return content.getvalue()


@pytest.fixture
def laptop(world, tmp_path):
    """The cache without the photos; thumbnails can be put into it."""
    root, result = world
    copied = shutil.copytree(root / "cache", tmp_path / "cache")
    [directory] = layout.directories(copied)
    _, index = indexes.read(directory)
    indexes.write(directory, result.cache.backbone, replace(index, image_dir=str(tmp_path / "nowhere")))
    return copied, directory, index


def add_thumbnails(world, directory, index, rows):
    jpegs = [thumbnail_of(world[0] / "photos" / index.paths[row]) for row in rows]
    thumbnails.write(directory, [thumbnails.of(index, np.asarray(rows), jpegs)])


def test_a_laptop_uses_the_thumbnails_and_says_so(world, laptop, tmp_path, capsys):
    copied, directory, index = laptop
    testing = np.flatnonzero(world[1].parts == split.TEST)
    seen = testing[:40]
    add_thumbnails(world, directory, index, np.concatenate([np.flatnonzero(world[1].parts == split.TRAIN)[:9], seen]))
    flags = ["--cache_dir", copied, "--output_dir", tmp_path / "out", "--testing_percentage", "40", "--seed", "1"]
    flags += ["--solver", "sgd", "--how_many_training_steps", "50", "--tflite", "int8", "int8"]
    assert console.run(main, [*map(str, flags)]) == 0
    exports = json.loads((tmp_path / "out" / "latest/metrics.json").read_text())["exports"]
    assert list(exports) == ["classifier_int8.tflite"]
    assert (exports["classifier_int8.tflite"]["images"], exports["classifier_int8.tflite"]["thumbnails"]) == (40, 40)
    opened = cache.open(copied)
    backbone = tf.saved_model.load(str(opened.backbone_dir))
    pixels = [backbone.decode(tf.constant(content)).numpy() for content in thumbnails.find(opened, seen)]
    found = answers(tmp_path / "out" / "latest/classifier_int8.tflite", pixels)
    accuracy = (found.argmax(axis=1) == opened.label_ids[seen]).mean()
    assert exports["classifier_int8.tflite"]["accuracy"] == pytest.approx(accuracy)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("classifier_int8")]
    assert f"test accuracy {accuracy:.1%}, whole classifier " in line
    assert line.endswith(" on the same 40 photos, 40 of them enlarged thumbnails")


def test_of_many_test_photos_some_are_drawn(world, monkeypatch):
    root, result = world
    monkeypatch.setattr(lite, "MOST_TESTED", 7)
    rows = np.flatnonzero(result.parts == split.TEST)
    files = {"float16": root / "out" / "latest/classifier_float16.tflite"}
    assert lite.accuracy(files, result.cache, result.head, rows, 0).images == 7


# --- what they need --------------------------------------------------------------------------------------------


def test_photos_come_first_then_thumbnails_and_others_are_left_out(world, tmp_path):
    root, result = world
    copied = shutil.copytree(root / "cache", tmp_path / "cache")
    [directory] = layout.directories(copied)
    _, index = indexes.read(directory)
    kept = shutil.copytree(root / "photos", tmp_path / "photos")
    index = replace(index, image_dir=str(kept))
    indexes.write(directory, result.cache.backbone, index)
    for row in (0, 1, 2):
        (kept / index.paths[row]).unlink()
    (kept / index.paths[2]).mkdir()
    add_thumbnails(world, directory, index, [1, 2, 3])
    found = list(photos.read(cache.open(copied), np.array([3, 2, 1, 0])))
    assert [(photo.row, photo.is_thumbnail) for photo in found] == [(3, False), (2, True), (1, True)]
    assert found[0].encoded == (kept / index.paths[3]).read_bytes()
    assert found[1].encoded == thumbnail_of(root / "photos" / index.paths[2])


def test_int8_without_any_picture_is_refused_before_tensorflow(laptop, tmp_path, without_tensorflow):
    copied, _, _ = laptop
    flags = ["--cache_dir", copied, "--output_dir", tmp_path / "out", "--tflite", "float16", "int8"]
    line = without_tensorflow.error("train.__main__", *flags)
    assert line.startswith("error: int8 is calibrated on training photos") and "extract --thumbnails" in line


def test_float16_needs_no_picture_and_nothing_else_is_written_to_the_terminal(laptop, tmp_path):
    copied, _, _ = laptop
    flags = ["--cache_dir", copied, "--output_dir", tmp_path / "out", "--l2", "0.01", "--tflite", "float16"]
    status, out, errors = forked.run("train.__main__", *flags)  # C++ code writes past sys.stderr
    assert (status, errors) == (0, b"")
    assert b"accuracy unknown: there is neither a photo nor a thumbnail of any test image" in out
    exports = json.loads((tmp_path / "out" / "latest/metrics.json").read_text())["exports"]
    assert list(exports["classifier_float16.tflite"]) == ["bytes"]


def test_broken_pictures_are_left_out(world, laptop):
    _, directory, index = laptop
    broken = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x01\x00\x01 and no more"
    thumbnails.write(directory, [thumbnails.of(index, np.array([4]), [broken])])
    add_thumbnails(world, directory, index, [5])
    opened = cache.open(directory)
    files = {"float16": world[0] / "out" / "latest/classifier_float16.tflite"}
    assert lite.accuracy(files, opened, world[1].head, np.array([4, 5]), 0).images == 1
    assert lite.accuracy(files, opened, world[1].head, np.array([4]), 0) is None
    with pytest.raises(UserError, match="none of the sample can be read"):
        lite.write(directory / "x.tflite", opened, world[1].head, "int8", np.array([4]))


def test_a_network_that_does_not_fit_is_named_and_the_rest_is_written(world, tmp_path, capsys):
    copied = shutil.copytree(world[0] / "cache", tmp_path / "cache")
    [directory] = layout.directories(copied)
    before = tf.saved_model.load(str(directory / layout.BACKBONE))
    module = tf.Module()
    module.before, module.resize, module.decode = before, before.resize, before.decode

    @tf.function(input_signature=[tf.TensorSpec([None, small_cache.HEIGHT, small_cache.WIDTH, 3], tf.float32)])
    def features(images):
        return tf.math.digamma(1 + tf.abs(before.features(images)))  # which TensorFlow Lite does not have

    module.features = features
    shutil.rmtree(directory / layout.BACKBONE)
    tf.saved_model.save(module, str(directory / layout.BACKBONE))
    manifest.write(directory / layout.BACKBONE)
    flags = ["--cache_dir", copied, "--output_dir", tmp_path / "out", "--l2", "0.01"]
    assert console.run(main, [*map(str, flags), "--tflite", "float16"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "TensorFlow Lite cannot hold tiny as float16 (it has no Digamma); leave out --tflite" in line
    assert not (tmp_path / "out" / "latest/classifier_float16.tflite").exists()
    for name in ("saved_model/saved_model.pb", "labels.txt", "metrics.json", "report.html"):
        assert (tmp_path / "out" / "latest" / name).exists()


def test_a_place_that_cannot_be_written_is_named(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/x.tflite"):
        lite.write(tmp_path / "file" / "x.tflite", world[1].cache, world[1].head, "float16")


# --- the frozen graph ------------------------------------------------------------------------------------------


def test_the_frozen_graph_answers_as_the_saved_model_does(world, tmp_path):
    root, result = world
    flags = ["--cache_dir", root / "cache", "--output_dir", tmp_path / "out", "--l2", "0.01"]
    flags += ["--frozen_graph", "--final_tensor_name", "softmax/mine"]
    assert console.run(main, [*map(str, flags)]) == 0
    exports = json.loads((tmp_path / "out" / "latest/metrics.json").read_text())["exports"]
    path = tmp_path / "out" / "latest/frozen_graph.pb"
    assert exports == {"frozen_graph.pb": {"output": "softmax/mine", "bytes": path.stat().st_size}}
    rows = np.arange(5)
    inputs = inputs_of(result.cache, rows).astype(np.float32) / 255
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(path.read_bytes()), name="")
        with tf.compat.v1.Session(graph=graph) as session:
            found = session.run("softmax/mine:0", {"Placeholder:0": inputs})
    np.testing.assert_allclose(found, probabilities_of(tmp_path, result.cache, rows), atol=1e-6)


def test_nothing_is_made_that_was_not_asked_for(world, tmp_path):
    run.train(quick(world[0] / "cache", tmp_path / "out", how_many_training_steps=20))
    assert not [*(tmp_path / "out" / "latest").glob("*.tflite"), *(tmp_path / "out" / "latest").glob("*.pb")]
    assert json.loads((tmp_path / "out" / "latest/metrics.json").read_text())["exports"] == {}


@pytest.mark.parametrize("flags", [["--tflite"], ["--tflite", "int4"], ["--final_tensor_name", "Placeholder"]])
def test_wrong_flags_are_named(flags, without_tensorflow):
    assert flags[0] in without_tensorflow.error("train.__main__", *flags)
