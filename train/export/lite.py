"""The classifier for phones and small boards: TensorFlow Lite files, and their accuracy beside the whole classifier's.

Both kinds take one image, upright and resized as in the extraction, RGB [1, H, W, 3], and return probabilities [1, C]:
- float16: weights of half the size. Input float32 in [0, 1], output float32.
- int8: weights and arithmetic in 8 bits, calibrated on sample photos. Input uint8, the pixels as they are; output
  uint8, 256ths. Operations without an 8-bit form stay float.
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

from cache import files, process
from cache.bar import bar
from cache.errors import UserError, first_line
from cache.reader import Cache
from train.data import photos
from train.export.backbone import image_shape, load_backbone, probabilities
from train.random_streams import RandomStream
from train.solvers.head import Head

MOST_TESTED = 2000  # test photos, chosen at random: the accuracy is right to a point, and it takes minutes


@dataclass(frozen=True)
class Accuracy:
    """The share of the same test photos that each form of the classifier gets right."""

    images: int  # the number of photos
    thumbnails: int  # how many of them were enlarged thumbnails
    classifier: float  # of the whole classifier
    files: Mapping[str, float]  # by precision


def write(path: Path, cache: Cache, head: Head, precision: str, sample: Sequence[int] | np.ndarray = ()) -> None:
    """Writes the whole classifier as a TensorFlow Lite file of `precision`, "float16" or "int8".

    int8 is calibrated on the photos `sample` (int [n], rows of the index), as far as there are pictures of them.
    Raises UserError if there is none, for a network that TensorFlow Lite cannot hold, and for a file that cannot be
    written.
    """
    model = tf.Module()
    model.backbone = load_backbone(cache)
    spec = tf.TensorSpec([1, *image_shape(cache.backbone)], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": probabilities(model.backbone, head, images)}

    model.classify = classify
    converter = tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        images = _calibration(_decoded(cache, model.backbone, sample))
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    with process.quiet_stderr():
        try:
            content = converter.convert()
        except (ConverterError, ValueError, RuntimeError) as error:
            lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            reason = f"it has no {', '.join(lacking)}" if lacking else first_line(error)
            raise UserError(
                f"TensorFlow Lite cannot hold {cache.backbone.module} as {precision} ({reason}); leave out --tflite, "
                "or extract with another --module"
            ) from None
    files.write(path, content)


def accuracy(paths: Mapping[str, Path], cache: Cache, head: Head, test: np.ndarray, seed: int) -> Accuracy | None:
    """The accuracy of the TensorFlow Lite files `paths`, by precision, and of the whole classifier.

    It is measured on the photos `test` (int [n], rows of the index) of which there is a picture, or MOST_TESTED of
    them, chosen at random. All forms get the same pixels. None if there is no picture of any photo.
    """
    rows = np.random.default_rng([seed, RandomStream.LITE_TEST_SAMPLE]).permutation(test)[:MOST_TESTED]
    backbone = load_backbone(cache)
    interpreters = {precision: _Interpreter(path) for precision, path in paths.items()}
    hits, classifier_hits = dict.fromkeys(paths, 0), 0
    count, thumbnails = 0, 0
    decoded = _decoded(cache, backbone, rows)
    for photo, pixels in bar(decoded, "test", total=len(rows), leave=False, delay=1, unit=" photos"):
        label_id = int(cache.label_ids[photo.row])
        images = tf.cast(pixels[np.newaxis], tf.float32) / 255
        classifier_hits += int(np.argmax(probabilities(backbone, head, images))) == label_id
        for precision, interpreter in interpreters.items():
            hits[precision] += interpreter.label_id(pixels) == label_id
        count, thumbnails = count + 1, thumbnails + photo.is_thumbnail
    if not count:
        return None
    by_precision = {precision: hit / count for precision, hit in hits.items()}
    return Accuracy(count, thumbnails, classifier_hits / count, by_precision)


class _Interpreter:
    """A TensorFlow Lite file, ready to run."""

    def __init__(self, path: Path):
        with warnings.catch_warnings(), process.quiet_stderr():
            # TensorFlow will move it to the package ai-edge-litert; the files stay the same.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
            self._interpreter = tf.lite.Interpreter(model_content=path.read_bytes(), num_threads=process.cores())
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
    """The images to calibrate on, float32 [1, H, W, 3] in [0, 1]. Raises UserError if there is none."""
    images = [pixels[np.newaxis].astype(np.float32) / 255 for _, pixels in decoded]
    if not images:
        raise UserError("int8 is calibrated on training photos, and none of the sample can be read; choose float16")
    # The converter derives the input's scale from the values in the sample. With 0 and 1 among them it is exactly
    # 1/255, so that pixels can go in as they are.
    images[0][0, 0, 0], images[0][0, -1, -1] = 0.0, 1.0
    return images


def _decoded(
    cache: Cache, backbone: tf.Module, rows: Sequence[int] | np.ndarray
) -> Iterator[tuple[photos.Photo, np.ndarray]]:
    """The photos at `rows` that can be read, with their pixels as the network gets them, uint8 [H, W, 3]."""
    for photo in photos.read(cache, rows):
        try:
            with tf.device("/CPU:0"):  # see `saved_model.Classifier`
                pixels = backbone.decode(tf.constant(photo.encoded)).numpy()
        except tf.errors.OpError:  # it was changed since the extraction
            continue
        yield photo, pixels
