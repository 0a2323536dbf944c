"""The classifier for phones and small boards: TensorFlow Lite files, and how accurate they are beside the whole one.

Both take one image, upright and resized as the extraction does it, RGB [1, H, W, 3], and return probabilities [1, C]:
- float16: the weights at half their size. Input float32 in [0, 1], output float32.
- int8: weights and arithmetic in 8 bits, calibrated on sample images. Input uint8, the pixels as they are; output
  uint8, 256ths. An operation that has no 8-bit form stays float.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from cache import command
from cache.bar import bar
from cache.errors import UserError
from cache.reader import Cache
from train import export, photos
from train.head import Head

MOST_TESTED = 2000  # test images, chosen at random: enough for an accuracy within a point, and minutes of work


@dataclass(frozen=True)
class Accuracy:
    """The share of the same test images that each form of the classifier gets right."""

    images: int
    thumbnails: int  # of these, enlarged from their thumbnails
    classifier: float  # the whole one
    files: Mapping[str, float]  # of each precision


def write(path: Path, cache: Cache, head: Head, precision: str, samples: Sequence[int] | np.ndarray = ()) -> None:
    """Writes the whole classifier as a TensorFlow Lite file of `precision`, "float16" or "int8".

    int8 is calibrated on the images `samples` (int [n], rows of the index), as far as there are pictures of them.
    Raises UserError where there are none, for a network that TensorFlow Lite cannot hold, and for a file that cannot be
    written.
    """
    model = tf.Module()
    model.backbone = export.load_backbone(cache)
    spec = tf.TensorSpec([1, cache.module.image_height, cache.module.image_width, 3], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": export.probabilities(model.backbone, head, images)}

    model.classify = classify
    converter = tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        images = _calibration(_decoded(cache, model.backbone, samples))
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    with command.quiet_stderr():
        try:
            content = converter.convert()
        except (ConverterError, ValueError, RuntimeError) as error:
            lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"it has no {', '.join(lacking)}" if lacking else first_line
            raise UserError(
                f"TensorFlow Lite cannot hold {cache.module.module} as {precision} ({reason}); leave out --tflite, or "
                "extract with another --module"
            ) from None
    with export.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def accuracy(files: Mapping[str, Path], cache: Cache, head: Head, test: np.ndarray, seed: int) -> Accuracy | None:
    """How many of the images `test` (int [n], rows of the index) each of the `files` gets right, and the classifier.

    All of them see the same pixels. Of more than MOST_TESTED images these are chosen at random. None where there is no
    picture of any.
    """
    rows = np.random.default_rng([seed, 5]).permutation(test)[:MOST_TESTED]
    backbone = export.load_backbone(cache)
    interpreters = {precision: _Interpreter(path) for precision, path in files.items()}
    hits, seen, small = dict.fromkeys(files, 0), 0, 0
    right = 0
    for photo, pixels in bar(
        _decoded(cache, backbone, rows), "test", total=len(rows), leave=False, delay=1, unit=" images"
    ):
        label_id = int(cache.label_ids[photo.row])
        images = tf.cast(pixels[np.newaxis], tf.float32) / 255
        right += int(np.argmax(export.probabilities(backbone, head, images))) == label_id
        for precision, interpreter in interpreters.items():
            hits[precision] += interpreter.label_id(pixels) == label_id
        seen, small = seen + 1, small + photo.is_thumbnail
    if not seen:
        return None
    return Accuracy(seen, small, right / seen, {precision: count / seen for precision, count in hits.items()})


class _Interpreter:
    """A TensorFlow Lite file, ready to run."""

    def __init__(self, path: Path):
        with warnings.catch_warnings(), command.quiet_stderr():
            # It is to move to the package ai-edge-litert one day; the file stays the same.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
            self._interpreter = tf.lite.Interpreter(str(path), num_threads=command.cores())
            self._interpreter.allocate_tensors()
        [self._input], [self._output] = self._interpreter.get_input_details(), self._interpreter.get_output_details()

    def label_id(self, pixels: np.ndarray) -> int:
        """The top-1 class of an image, uint8 [H, W, 3]."""
        image = pixels[np.newaxis]
        if self._input["dtype"] == np.float32:
            image = image.astype(np.float32) / 255
        self._interpreter.set_tensor(self._input["index"], image)
        self._interpreter.invoke()
        return int(self._interpreter.get_tensor(self._output["index"])[0].argmax())


def _calibration(decoded: Iterable[tuple[photos.Photo, np.ndarray]]) -> list[np.ndarray]:
    """float32 [1, H, W, 3] in [0, 1] of each image."""
    images = [pixels[np.newaxis].astype(np.float32) / 255 for _, pixels in decoded]
    if not images:
        raise UserError("int8 is calibrated on training images, and none of those chosen can be read; choose float16")
    # The input's scale comes of the values that are seen: with both ends among them it is 1/255 exactly, and pixels go
    # in as they are.
    images[0][0, 0, 0], images[0][0, -1, -1] = 0.0, 1.0
    return images


def _decoded(
    cache: Cache, backbone: tf.Module, rows: Sequence[int] | np.ndarray
) -> Iterator[tuple[photos.Photo, np.ndarray]]:
    """The images that can be seen, with their pixels as the network gets them: uint8 [H, W, 3]."""
    for photo in photos.read(cache, rows):
        try:
            with tf.device("/CPU:0"):  # see `export.Classifier`
                pixels = backbone.decode(tf.constant(photo.encoded)).numpy()
            yield photo, pixels
        except tf.errors.OpError:  # became unreadable since the extraction
            continue
