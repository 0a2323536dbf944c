"""Backbones: every kind of module, frozen, against a reference; and what a user can get wrong."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cache.errors import UserError
from extract import backbone
from tests import modules

INCEPTION = "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/5"
# Keras 3.15 with numpy 2: nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every download fails at once, and no cache of this machine's own is seen."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub_cache"))


def assert_is_the_network(loaded: backbone.Backbone, image_size: tuple[int, int] = (16, 16)) -> None:
    """The backbone computes what `modules.reference` does, and is as frozen as a backbone has to be."""
    assert (loaded.image_size, loaded.dimension) == (image_size, 8)
    assert not loaded.features.captured_inputs and not loaded.features.variables
    assert loaded.features.output_shapes.as_list() == [None, 8]
    images = modules.random_images(5, image_size)
    together = loaded.features(tf.constant(images)).numpy()
    np.testing.assert_allclose(together, modules.reference(images), atol=1e-5)
    one_by_one = [loaded.features(tf.constant(image[None])).numpy()[0] for image in images]
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)
    assert loaded.features(tf.constant(images[:0])).shape == (0, 8)


def error_of(module: str, image_size: tuple[int, int] | None = None, kind: type[UserError] = UserError) -> str:
    """The message of the UserError that loading raises; one line, as all of them must be."""
    with pytest.raises(kind) as caught:
        backbone.load(module, image_size)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Every format


def test_tf2_hub_module(tmp_path: Path) -> None:
    assert_is_the_network(backbone.load(modules.make_tf2_hub_module(tmp_path / "module")))


@pytest.mark.parametrize("resource_variables", [True, False])
@pytest.mark.parametrize("control_flow_v2", [True, False])
def test_tf1_hub_module(tmp_path: Path, resource_variables: bool, control_flow_v2: bool) -> None:
    module = modules.make_tf1_hub_module(
        tmp_path / "module", resource_variables=resource_variables, control_flow_v2=control_flow_v2
    )
    assert_is_the_network(backbone.load(module))


@pytest.mark.parametrize("name", ["serving_default", "default", "embed"])
def test_serving_signature(tmp_path: Path, name: str) -> None:
    assert_is_the_network(backbone.load(modules.make_serving_module(tmp_path / "module", name=name)))


def test_one_output_of_several_is_the_feature_vector(tmp_path: Path) -> None:
    kernel, bias = modules.parameters(8, 0)

    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        vector = modules.network(images, tf.constant(kernel, tf.float32), tf.constant(bias, tf.float32))
        return {"default": vector, "another": -vector}

    module = modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16)))
    assert_is_the_network(backbone.load(module))


def test_signature_of_hub_goes_before_the_serving_one(tmp_path: Path) -> None:
    spec = [modules.image_spec((16, 16))]
    mean = tf.function(lambda images: tf.reduce_mean(images, axis=[1, 2]), input_signature=spec)
    largest = tf.function(lambda images: tf.reduce_max(images, axis=[1, 2]), input_signature=spec)
    signatures = {"serving_default": largest, "default": mean}
    tf.saved_model.save(tf.Module(), str(tmp_path / "module"), signatures=signatures)
    images = modules.random_images(2)
    features = backbone.load(str(tmp_path / "module")).features(tf.constant(images))
    np.testing.assert_allclose(features, images.mean(axis=(1, 2)), atol=1e-6)


def test_dimension_that_only_shows_when_it_runs(tmp_path: Path) -> None:
    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # With the batch size open, the -1 could be anything.
        return {"vector": tf.reshape(tf.reduce_mean(images, axis=[2, 3]), [tf.shape(images)[0], -1])}

    loaded = backbone.load(modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16))))
    assert loaded.dimension == 16 and loaded.features.output_shapes.as_list() == [None, 16]
    images = modules.random_images(2)
    np.testing.assert_allclose(loaded.features(tf.constant(images)), images.mean(axis=(2, 3)), atol=1e-6)


def test_a_network_is_bound_to_no_device(module: str) -> None:
    for name in (module, backbone.DEFAULT):
        graph = backbone.load(name).features.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        assert len(nodes) > 10 and not {node.device for node in nodes if node.device}


def test_half_precision_features_come_out_as_float32(tmp_path: Path) -> None:
    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"vector": tf.cast(tf.reduce_mean(images, axis=[1, 2]), tf.float16)}

    loaded = backbone.load(modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16))))
    features = loaded.features(tf.fill([2, 16, 16, 3], 0.25))
    assert features.dtype == tf.float32 and np.array_equal(features, np.full((2, 3), 0.25))


@pytest.mark.parametrize("height", [16, None])
def test_exported_keras_model(tmp_path: Path, height: int | None) -> None:
    import keras

    model = keras.Sequential([keras.Input((height, 16, 3)), keras.layers.GlobalAveragePooling2D()])
    model.export(tmp_path / "module", verbose=False)
    loaded = backbone.load(str(tmp_path / "module"), (16, 16))
    images = modules.random_images(3)
    np.testing.assert_allclose(loaded.features(tf.constant(images)), images.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
def test_frozen_features_survive_saving_and_work_in_every_place(tmp_path: Path, make) -> None:
    loaded = backbone.load(make(tmp_path / "module"))
    images = modules.random_images(7)
    expected = modules.reference(images)

    holder = tf.Module()
    holder.features = tf.function(loaded.features, input_signature=[modules.image_spec((16, 16))])
    tf.saved_model.save(holder, str(tmp_path / "saved"))
    shutil.rmtree(tmp_path / "module")
    again = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(again.features(images), expected, atol=1e-5)

    piped = tf.data.Dataset.from_tensor_slices(images).batch(3).map(loaded.features)
    np.testing.assert_allclose(np.concatenate(list(piped)), expected, atol=1e-5)

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    run = tf.function(lambda batch: strategy.run(loaded.features, args=(batch,)))
    np.testing.assert_allclose(run(tf.constant(images)), expected, atol=1e-5)


# The image size


@pytest.mark.parametrize(
    "make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module, modules.make_serving_module]
)
def test_open_image_size_has_to_be_given(tmp_path: Path, make) -> None:
    module = make(tmp_path / "module", image_size=None)
    assert "--image_size" in error_of(module)
    assert_is_the_network(backbone.load(module, (20, 12)), image_size=(20, 12))


def test_fixed_image_size_may_be_repeated_but_not_contradicted(tmp_path: Path) -> None:
    module = modules.make_tf2_hub_module(tmp_path / "module", image_size=(16, 24))
    assert backbone.load(module, (16, 24)).image_size == (16, 24)
    message = error_of(module, (24, 16))
    assert "16 by 24" in message and "24 by 16" in message and "--image_size" in message


def test_image_size_that_the_network_cannot_take(tmp_path: Path) -> None:
    module = modules.make_tf2_hub_module(tmp_path / "module", image_size=None)
    assert "17 by 16" in error_of(module, (17, 16))
    assert "0 by 16" in error_of(module, (0, 16))


# Modules that are no backbones


def test_input_must_be_images(tmp_path: Path) -> None:
    def first_pixel(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.reshape(images, [tf.shape(images)[0], -1])[:, :3], tf.float32)

    uint8 = modules.image_spec((16, 16), tf.uint8)
    flat = tf.TensorSpec([None, 768], tf.float32)
    grey = tf.TensorSpec([None, 16, 16, 1], tf.float32)
    four = tf.TensorSpec([4, 16, 16, 3], tf.float32)
    assert "uint8 (None, 16, 16, 3)" in error_of(modules.save_signature(tmp_path / "1", first_pixel, uint8))
    assert "float32 (None, 768)" in error_of(modules.save_signature(tmp_path / "2", first_pixel, flat))
    assert "float32 (None, 16, 16, 1)" in error_of(modules.save_signature(tmp_path / "3", first_pixel, grey))
    assert "batches of 4" in error_of(modules.save_signature(tmp_path / "4", first_pixel, four))


def test_images_must_be_the_only_input(tmp_path: Path) -> None:
    def scaled(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(images, axis=[1, 2]) * factor

    factor = tf.TensorSpec([], tf.float32, name="factor")
    module = modules.save_signature(tmp_path / "module", scaled, modules.image_spec((16, 16)), factor)
    assert "factor, images" in error_of(module)


def test_outputs_that_are_no_feature_vector(tmp_path: Path) -> None:
    def save(name: str, function) -> str:
        return modules.save_signature(tmp_path / name, function, modules.image_spec((16, 16)))

    two = save("two", lambda images: {"left": images[:, 0, 0], "right": images[:, 0, 1]})
    assert "left, right" in error_of(two)
    maps = save("maps", lambda images: {"maps": tf.nn.avg_pool2d(images, 4, 4, "SAME")})
    message = error_of(maps)
    assert "(1, 4, 4, 3)" in message and "feature vector" in message
    whole = save("whole", lambda images: {"mean": tf.reduce_mean(images, axis=[0, 1, 2])})
    assert "feature vector is (1, D)" in error_of(whole)
    labels = save("labels", lambda images: {"labels": tf.argmax(images[:, 0], axis=-1)})
    assert "int64" in error_of(labels)


def test_state_that_cannot_be_frozen(tmp_path: Path) -> None:
    module = tf.Module()
    values = tf.lookup.KeyValueTensorInitializer([0], [1.0])
    module.table = tf.lookup.StaticHashTable(values, default_value=0.0)
    spec = [modules.image_spec((16, 16))]
    factor = tf.constant(0)
    module.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, axis=[1, 2]) * module.table.lookup(factor), input_signature=spec
    )
    tf.saved_model.save(module, str(tmp_path / "module"))
    assert "state" in error_of(str(tmp_path / "module"))


def test_broken_module_in_the_cache_of_hub_says_where_it_lies() -> None:
    hub_folder(INCEPTION).mkdir(parents=True)
    (hub_folder(INCEPTION) / "saved_model.pb").write_bytes(b"\xff" * 10)
    message = error_of("inception_v3")
    assert "inception_v3 cannot be loaded" in message and str(hub_folder(INCEPTION)) in message


def test_signature_must_be_found(tmp_path: Path) -> None:
    spec = [modules.image_spec((16, 16))]
    mean = tf.function(lambda images: tf.reduce_mean(images, axis=[1, 2]), input_signature=spec)
    tf.saved_model.save(tf.Module(), str(tmp_path / "two"), signatures={"one": mean, "other": mean})
    assert "one, other" in error_of(str(tmp_path / "two"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    assert "no signatures" in error_of(str(tmp_path / "none"))


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
@pytest.mark.parametrize("damage", ["graph", "variables", "no variables"])
def test_damaged_module_is_one_quiet_line(tmp_path: Path, make, damage: str, capfd) -> None:
    module = make(tmp_path / "module")
    graph, values = tmp_path / "module" / "saved_model.pb", tmp_path / "module" / "variables"
    if damage == "graph":
        graph.write_bytes(graph.read_bytes()[:-200] + b"\xff" * 100)
    elif damage == "variables":
        data = next(values.glob("*.data*"))
        data.write_bytes(data.read_bytes()[:-64])
    else:
        shutil.rmtree(values)
    capfd.readouterr()
    assert str(module) in error_of(module)
    assert capfd.readouterr() == ("", "")


# Names, and what they stand for


def test_names_that_are_nothing(tmp_path: Path) -> None:
    for check in (backbone.identity, backbone.short_name, backbone.load):
        with pytest.raises(UserError, match=r"did you mean inception_v3"):
            check("inception_v2")
        with pytest.raises(UserError, match=r"did you mean .*keras:ResNet50"):
            check("resnet50")
        with pytest.raises(UserError, match=r"did you mean .*keras:MobileNetV2"):
            check("keras:mobilenetv4")
        with pytest.raises(UserError, match=r"nowhere does not exist"):
            check(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match=r"is no SavedModel"):
            check(str(tmp_path))
        with pytest.raises(UserError, match=r"is a file"):
            check(__file__)


def test_a_wrong_name_is_told_without_importing_tensorflow() -> None:
    program = (
        "import sys\n"
        "from extract import backbone\n"
        "from cache.errors import UserError\n"
        "try: backbone.load('inception_v2')\n"
        "except UserError as error: print(error)\n"
        "for module in ('efficientnet_lite0', 'inception_v3', 'keras:resnet50'):\n"
        "    print(backbone.identity(module), backbone.short_name(module))\n"
        "print(sorted({'tensorflow', 'keras', 'tensorflow_hub'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unknown module 'inception_v2'") and len(lines) == 5
    assert lines[-1] == "[]"


def test_identity_follows_the_contents_not_the_place(tmp_path: Path) -> None:
    module = modules.make_tf1_hub_module(tmp_path / "module")
    before = backbone.identity(module)
    moved = shutil.move(module, tmp_path / "elsewhere")
    assert backbone.identity(str(moved)) == before == backbone.load(str(moved)).weights_digest
    (Path(moved) / "README.md").write_text("a note")
    assert backbone.identity(str(moved)) == before

    for file in ("saved_model.pb", "tfhub_module.pb", "variables/variables.index"):
        changed = tmp_path / f"changed {file.replace('/', ' ')}"
        shutil.copytree(moved, changed)
        contents = bytearray((changed / file).read_bytes())
        contents[-1] ^= 1
        (changed / file).write_bytes(contents)
        assert backbone.identity(str(changed)) != before


def test_identity_of_names() -> None:
    assert backbone.identity("inception_v3") == backbone.identity(INCEPTION) == INCEPTION
    assert backbone.identity("keras:resnet50") == backbone.identity("keras:ResNet50")
    assert re.fullmatch(r"keras:ResNet50 \d+\.\d+.*", backbone.identity("keras:ResNet50"))
    # The package names the file by the first digits of its digest, so this is the publisher's word.
    assert backbone.identity("efficientnet_lite0").startswith("57934424")


def test_short_names(tmp_path: Path) -> None:
    modules.make_serving_module(tmp_path / "my net,\u00e9t\u00e9")
    assert backbone.short_name("efficientnet_lite0") == "efficientnet_lite0"
    assert backbone.short_name("inception_v3") == backbone.short_name(INCEPTION) == "inception_v3"
    assert backbone.short_name("keras:resnet50") == "keras-ResNet50"
    assert backbone.short_name(f"{tmp_path}/my net,\u00e9t\u00e9/") == "my-net-t"
    url = "https://example.org/google/resnet_50/feature_vector/1?format=compressed"
    assert backbone.short_name(url) == "google-resnet_50-feature_vector-1"
    assert len(backbone.short_name("https://example.org/" + "long/" * 100)) <= 64


# TensorFlow Hub and Keras, with no network


def hub_folder(handle: str) -> Path:
    """Where hub's cache keeps a module: its documentation says a folder named by the SHA-1 of the handle."""
    return Path(os.environ["TFHUB_CACHE_DIR"]) / hashlib.sha1(handle.encode()).hexdigest()


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
def test_hub_module_comes_from_the_cache_of_hub(make) -> None:
    handle = "https://tfhub.dev/somebody/tiny/feature_vector/1"
    folder = make(hub_folder(handle))
    loaded = backbone.load(handle)
    assert_is_the_network(loaded)
    assert loaded.weights_digest == backbone.identity(folder)


def test_short_name_is_the_hub_module_and_knows_its_size() -> None:
    def mean_colour(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(images, axis=[1, 2])

    modules.save_signature(hub_folder(INCEPTION), mean_colour, modules.image_spec(None))
    loaded = backbone.load("inception_v3")
    assert (loaded.module, loaded.image_size, loaded.dimension) == ("inception_v3", (299, 299), 3)
    assert backbone.load("inception_v3", (32, 32)).image_size == (32, 32)


@pytest.mark.parametrize("module", ["inception_v3", "https://example.org/module.tar.gz"])
def test_unreachable_hub(module: str, capfd) -> None:
    message = error_of(module, kind=backbone.UnreachableError)
    assert "cannot be downloaded" in message and "efficientnet_lite0" in message
    assert "TFHUB_CACHE_DIR" in message and "SavedModel" in message
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def keras_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloaded weights. Keras reads KERAS_HOME once, on import: hence its own variable."""
    from keras.src.backend import config

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_unreachable_keras_weights(keras_weights: Path, capfd) -> None:
    message = error_of("keras:mobilenetv2", kind=backbone.UnreachableError)
    assert "keras:MobileNetV2 cannot be downloaded" in message and "efficientnet_lite0" in message
    assert capfd.readouterr() == ("", "")


def test_keras_network_with_its_own_preprocessing(keras_weights: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    shape = (64, 96, 3)
    network = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg", input_shape=shape)
    # One look at some images gives the batch norms the statistics that keep random features from fading away.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(modules.random_images(8, (64, 96), seed=2) * 2 - 1, training=True)
    network.save(keras_weights / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5")
    loaded = backbone.load("keras:MobileNetV2", (64, 96))
    assert (loaded.image_size, loaded.dimension) == ((64, 96), 1280)
    assert not loaded.features.captured_inputs
    images = modules.random_images(3, (64, 96))
    expected = network(images * 2 - 1, training=False).numpy()  # this network was trained on pixels from -1 to 1
    assert expected.std(axis=0).mean() > 0.01  # the images are told apart, so that the comparison means something
    np.testing.assert_allclose(loaded.features(tf.constant(images)), expected, atol=1e-3)

    assert "keras:MobileNetV2" in error_of("keras:MobileNetV2", (16, 16))  # it needs 32 pixels or more


def test_keras_network_of_the_caffe_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    layer = keras.layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones")
    network = keras.Sequential([keras.Input((16, 16, 3)), layer, keras.layers.GlobalAveragePooling2D()])

    def constructor(**options: object) -> keras.Model:
        assert options == {"include_top": False, "weights": "imagenet", "pooling": "avg", "input_shape": (16, 16, 3)}
        return network

    constructor.__module__ = keras.applications.VGG16.__module__
    monkeypatch.setattr(keras.applications, "VGG16", constructor)
    images = modules.random_images(2)
    # Blue, green, red, less the mean pixel of ImageNet.
    expected = 255 * images.mean(axis=(1, 2))[:, ::-1] - [103.939, 116.779, 123.68]
    loaded = backbone.load("keras:vgg16", (16, 16))
    np.testing.assert_allclose(loaded.features(tf.constant(images)), expected, rtol=1e-4, atol=1e-3)

    assert backbone.load("keras:VGG16", (16, 16)).weights_digest == loaded.weights_digest
    network.set_weights([2 * array for array in network.get_weights()])
    assert backbone.load("keras:VGG16", (16, 16)).weights_digest != loaded.weights_digest


def test_keras_names_and_sizes_are_those_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras.src.applications import imagenet_utils

    assert set(backbone.KERAS_MODULES) == {name for name in dir(keras.applications) if name[0].isupper()}

    class Found(Exception):
        pass

    def obtain_input_shape(_shape: object, default_size: int, **_options: object) -> None:
        raise Found(default_size)

    # Every constructor asks this function for its input shape before it builds anything.
    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain_input_shape)
    for name, size in backbone.KERAS_MODULES.items():
        if not name.startswith("MobileNetV3"):  # these two settle it themselves, with 224
            with pytest.raises(Found) as found:
                getattr(keras.applications, name)(weights=None)
            assert found.value.args == (size,), name
