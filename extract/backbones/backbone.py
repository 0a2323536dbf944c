"""Loads a module and freezes it: one function from images to feature vectors, in which only constants are left."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cache.errors import UserError, first_line
from extract.backbones import efficientnet_lite, hub, keras_applications, names, saved_model
from extract.backbones.network import Network, Size, enumerated, pixels

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.types.experimental import ConcreteFunction


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its last layer, ready to run."""

    module: str  # as the user gave it
    image_size: Size  # height, width in pixels
    dimension: int  # D, the length of a feature vector
    weights_digest: str  # SHA-256, in hex, of the files or arrays that determine the output
    features: ConcreteFunction  # images float32 [N, H, W, 3] in [0, 1] -> float32 [N, D]; only constants


def load(module: str, image_size: Size | None = None, show_bar: bool = True) -> Backbone:
    """Loads a module and freezes it.

    `image_size` is (height, width) in pixels. It is needed if the module's signature leaves the size open, and must
    agree with the signature if it does not. `show_bar` says whether stderr shows the progress of a download.

    Raises UserError for a module that does not exist, cannot be read, or does not turn images into feature vectors,
    and for an image size that is missing or contradicts the module; UnreachableError, which is one, if a download
    fails.
    """
    if image_size and min(image_size) < 1:
        raise UserError(f"--image_size is {image_size[0]} by {image_size[1]}: both must be 1 or more")
    kind, name = names.parse(module)
    with _quiet():
        if kind == "built-in":
            network = efficientnet_lite.load(image_size)
        elif kind == "keras":
            network = keras_applications.load(name, image_size)
        else:
            folder = hub.download(name, show_bar) if kind == "hub" else name
            published = names.HUB_MODULES.get(module)
            default_size = (published, published) if published else None
            network = saved_model.load(module, folder, image_size, default_size=default_size)
        features, dimension = _freeze(module, network)
    return Backbone(module, network.image_size, dimension, network.weights_digest, features)


def _freeze(module: str, network: Network) -> tuple[ConcreteFunction, int]:
    """Traces a network for batches of any length, tries it on a black image, and turns variables into constants.

    Returns the frozen function and the length of its feature vectors. `module` is the network's name in errors.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([None, *network.image_size, 3], tf.float32, name="images")
    # Autograph would turn our errors into many lines, and there is no Python control flow to convert.
    trace = partial(tf.function, input_signature=[spec], autograph=False)
    try:
        concrete = trace(lambda images: _vector(module, network.call(images))).get_concrete_function()
        with tf.device("CPU:0"):  # whatever --devices says: a GPU that is full or broken is not the module's fault
            shape = concrete(tf.zeros([1, *network.image_size, 3])).shape
        frozen = convert_variables_to_constants_v2(concrete)
    except UserError:
        raise
    # The module's own operations may reject the image size, or anything else, with any error.
    except Exception as error:
        problem = f"{module} does not run on images of {pixels(network.image_size)} pixels"
        raise UserError(f"{problem}: {first_line(error)}") from error
    if shape.rank == 4:
        raise UserError(
            f"{module} gives feature maps of shape {shape}: choose a module that gives one feature vector "
            "per image (on TensorFlow Hub, one named feature_vector)"
        )
    if shape.rank != 2 or shape[0] != 1:
        raise UserError(f"{module} gives an array of shape {shape} for one image: a feature vector is (1, D)")
    if len(frozen.inputs) != 1:
        raise UserError(f"{module} keeps state other than variables, such as a table: export it without")

    # The function that the conversion makes returns a list, and control flow loses the shape.
    def features(images: tf.Tensor) -> tf.Tensor:
        (vector,) = frozen(images)
        vector.set_shape([None, shape[1]])
        return vector

    return trace(features).get_concrete_function(), int(shape[1])


def _vector(module: str, outputs: Any) -> tf.Tensor:
    """The feature vector among what a network returns, as float32.

    That is the only output, or the one named `default` or `feature_vector`.
    """
    import tensorflow as tf

    if isinstance(outputs, (list, tuple)):
        outputs = {str(index): output for index, output in enumerate(outputs)}
    if isinstance(outputs, dict):
        outputs = outputs[_output_name(module, sorted(outputs))]
    if not outputs.dtype.is_floating:
        raise UserError(f"{module} gives {outputs.dtype.name} numbers: a feature vector is floating point")
    return tf.cast(outputs, tf.float32)


def _output_name(module: str, output_names: list[str]) -> str:
    for name in ("default", "feature_vector"):
        if name in output_names:
            return name
    if len(output_names) == 1:
        return output_names[0]
    raise UserError(f"{module} has no output `default` or `feature_vector`: {enumerated(output_names, 'outputs')}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the libraries log, and their warnings about old formats; whatever matters is raised."""
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
