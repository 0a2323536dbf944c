"""A backbone that would touch files, the network or Python is never loaded, whoever made the cache."""

import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import cache
from cache import console, manifest
from extract import backbones
from extract.backbones import serving
from tests import small_cache
from train.__main__ import main
from train.export import allowlist
from train.export.backbone import load_backbone

IMAGES = tf.TensorSpec([None, 8, 6, 3], tf.float32)


def write(folder, features, **attributes):
    """A SavedModel with this function `features`."""
    module = tf.Module()
    module.features = tf.function(features, input_signature=[IMAGES], autograph=False)
    for name, value in attributes.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(folder))
    manifest.write(folder)


def edit(folder, change):
    """Applies `change` to the SavedModel's only graph, and lists its checksums anew, as whoever made it would."""
    model = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(model.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    manifest.write(folder)


def reads_a_file(images):
    return tf.io.decode_raw(tf.io.read_file("/etc/passwd"), tf.uint8)


def writes_a_file(images):
    tf.io.write_file("/tmp/written", "text")
    return images


def matches_files(images):
    return tf.io.matching_files("/*")


def runs_python(images):
    return tf.py_function(lambda x: x, [images], tf.float32)


def runs_numpy(images):
    return tf.numpy_function(lambda x: x, [images], tf.float32)


def runs_pure_numpy(images):
    return tf.numpy_function(lambda x: x, [images], tf.float32, stateful=False)


def prints(images):
    tf.print(images, output_stream="file:///tmp/printed")
    return images


def reads_a_data_set(images):
    return tf.data.TextLineDataset("/etc/passwd").reduce(tf.constant(""), lambda a, b: a + b)


def restores(images):
    return tf.raw_ops.RestoreV2(prefix="/model", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])


def saves(images):
    tf.raw_ops.SaveV2(prefix="/tmp/saved", tensor_names=["x"], shape_and_slices=[""], tensors=[images])
    return images


def debugs(images):
    return tf.raw_ops.DebugIdentity(input=images, debug_urls=["file:///tmp/debug"])


def maps_memory(images):
    return tf.raw_ops.ImmutableConst(dtype=tf.float32, shape=[1], memory_region_name="/etc/passwd")


def hides_it_in_a_branch(images):
    return tf.cond(tf.reduce_sum(images) > 9, lambda: tf.io.read_file("/etc/passwd"), lambda: "")


def hides_it_in_a_loop(images):
    return tf.while_loop(lambda i: i < 3, lambda i: [i + tf.strings.length(tf.io.read_file("/etc/passwd"))], [0])


def hides_it_in_a_map(images):
    return tf.map_fn(lambda image: tf.io.read_file("/etc/passwd"), images, fn_output_signature=tf.string)


@pytest.mark.parametrize(
    ("features", "op"),
    [
        (reads_a_file, "ReadFile"),
        (writes_a_file, "WriteFile"),
        (matches_files, "MatchingFiles"),
        (runs_python, "EagerPyFunc"),
        (runs_numpy, "PyFunc"),
        (runs_pure_numpy, "PyFuncStateless"),
        (prints, "PrintV2"),
        (reads_a_data_set, r"\w+Dataset"),
        (restores, "RestoreV2"),
        (saves, "SaveV2"),
        (debugs, "DebugIdentity"),
        (maps_memory, "ImmutableConst"),
        (hides_it_in_a_branch, "ReadFile"),
        (hides_it_in_a_loop, "ReadFile"),
        (hides_it_in_a_map, "ReadFile"),
    ],
)
def test_what_reaches_outside_the_program_is_refused_by_name(tmp_path, features, op):
    write(tmp_path / "model", features)
    with pytest.raises(cache.CacheError, match=f"operation '{op}' reaches outside") as error:
        allowlist.check(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_operation_in_the_graph_itself_is_refused(tmp_path):
    write(tmp_path / "model", tf.nn.relu)
    edit(tmp_path / "model", lambda graph: graph.graph_def.node.add(name="hidden", op="ReadFile"))
    with pytest.raises(cache.CacheError, match="'ReadFile'"):
        allowlist.check(tmp_path / "model")


def test_an_operation_that_nobody_knows_is_refused(tmp_path):
    write(tmp_path / "model", tf.nn.relu)
    edit(tmp_path / "model", lambda graph: graph.graph_def.node.add(name="hidden", op="LaunchMissiles\nnow"))
    with pytest.raises(cache.CacheError, match=r"'LaunchMissiles\\nnow'"):
        allowlist.check(tmp_path / "model")


def test_the_savers_functions_are_the_savers_alone(tmp_path):
    write(tmp_path / "model", tf.nn.relu)

    def call_it(graph):
        [function] = [f for f in graph.graph_def.library.function if "traced_restore" in f.signature.name]
        [relu] = [f for f in graph.graph_def.library.function if "relu" in f.signature.name]
        node = relu.node_def.add(name="hidden", op="StatefulPartitionedCall")
        node.attr["f"].func.name = function.signature.name

    allowlist.check(tmp_path / "model")
    edit(tmp_path / "model", call_it)
    with pytest.raises(cache.CacheError, match="'RestoreV2'"):
        allowlist.check(tmp_path / "model")


def lose_the_objects(graph):
    graph.ClearField("object_graph_def")


@pytest.mark.parametrize("damage", ["of version 1", "text beside", "no protocol buffer", "missing"])
def test_what_is_no_saved_model_of_ours_is_refused(tmp_path, damage):
    folder = tmp_path / "model"
    write(folder, tf.nn.relu)
    if damage == "of version 1":
        edit(folder, lose_the_objects)
    elif damage == "text beside":
        (folder / "saved_model.pbtxt").write_text("")
    elif damage == "no protocol buffer":
        (folder / "saved_model.pb").write_bytes(b"\xff" * 9)
    else:
        (folder / "saved_model.pb").unlink()
    with pytest.raises(cache.CacheError, match=f"cannot load the backbone in {folder}"):
        allowlist.check(folder)


def test_the_built_in_network_is_accepted(tmp_path):
    serving.save(backbones.load("efficientnet_lite0"), tmp_path / "model")
    allowlist.check(tmp_path / "model")


def test_a_module_of_somebody_else_is_accepted(module, tmp_path):
    serving.save(backbones.load(str(module)), tmp_path / "model")
    allowlist.check(tmp_path / "model")


@pytest.mark.parametrize("name", ["MobileNetV2", "ConvNeXtTiny"])
def test_the_networks_of_keras_are_accepted(tmp_path, name):
    network = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    module = tf.Module()
    module.features = tf.function(
        network.call, input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.float32)], autograph=False
    )
    module.network = network.variables
    tf.saved_model.save(module, str(tmp_path / "model"))
    allowlist.check(tmp_path / "model")


def test_ordinary_layers_are_accepted(tmp_path):
    """What hub modules are made of beside convolutions: branches, loops, dropout, assertions, batches of one image."""

    def features(images):
        tf.debugging.assert_all_finite(images, "finite")
        tf.debugging.assert_greater(tf.shape(images)[0], 0)
        images = tf.cond(tf.reduce_max(images) > 1, lambda: images / 255, lambda: images)
        images = tf.map_fn(lambda image: tf.image.resize(image, (4, 4)), images)
        images = tf.image.random_flip_left_right(tf.nn.dropout(images, 0.1))
        flat = tf.reshape(images, [-1, 48])
        normal = tf.linalg.einsum("nd,dk->nk", flat, tf.eye(48))
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.nn.gelu(x)), [0, normal])[1]

    write(tmp_path / "model", features)
    allowlist.check(tmp_path / "model")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("sound"), (3, 3))


@pytest.fixture
def opened(sound, tmp_path):
    return cache.open(shutil.copytree(sound, tmp_path / "cache"))


def test_the_trainer_loads_a_sound_backbone(opened):
    images = np.zeros((1, small_cache.HEIGHT, small_cache.WIDTH, 3), np.float32)
    assert load_backbone(opened).features(images).shape == (1, small_cache.DIMENSION)


def test_the_trainer_refuses_a_backbone_that_reads_files(opened, monkeypatch):
    shutil.rmtree(opened.backbone_dir)
    write(opened.backbone_dir, reads_a_file)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(cache.CacheError, match="'ReadFile' reaches outside"):
        load_backbone(opened)


def test_the_trainer_refuses_a_backbone_that_differs_from_its_checksums(opened, monkeypatch):
    path = opened.backbone_dir / "saved_model.pb"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(cache.CacheError, match=r"backbone is damaged \(saved_model.pb differs from its checksum\)"):
        load_backbone(opened)


def without_a_function(module):
    del module.resize


def with_shorter_vectors(module):
    features = module.features
    module.features = tf.function(lambda images: features(images)[:, 1:], input_signature=[SIZED], autograph=False)


def for_other_images(module):
    module.features = tf.function(lambda images: images[:, 0, :, 0], input_signature=[IMAGES], autograph=False)


def with_several_outputs(module):
    features = module.features
    module.features = tf.function(lambda images: [features(images)] * 2, input_signature=[SIZED], autograph=False)


def with_a_variable_for_a_function(module):
    module.decode = tf.Variable(0.0)


SIZED = tf.TensorSpec([None, small_cache.HEIGHT, small_cache.WIDTH, 3], tf.float32)
CHANGES = {
    without_a_function: "it has no function resize",
    with_shorter_vectors: r"its function features does not give float32 \[None, 16\]",
    for_other_images: "features",
    with_several_outputs: "its function features does not give",
    with_a_variable_for_a_function: "it has no function decode",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_backbone_with_other_functions_ends_training_with_one_line(tmp_path, sound, change, capsys):
    shutil.copytree(sound, tmp_path / "cache")
    folder = cache.open(tmp_path / "cache").backbone_dir
    module = tf.saved_model.load(str(folder))
    changed = tf.Module()
    changed.resize, changed.decode, changed.features = module.resize, module.decode, module.features
    changed.before = module
    change(changed)
    shutil.rmtree(folder)
    tf.saved_model.save(changed, str(folder))
    manifest.write(folder)
    places = ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    arguments = [*places, "--solver", "sgd", "--how_many_training_steps", "1"]
    assert console.run(main, arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot load the backbone in {folder} (")
    assert re.search(CHANGES[change], error)
    assert error.endswith("delete it and run the extraction again")
