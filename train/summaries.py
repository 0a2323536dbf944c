"""What TensorBoard shows of a run, written without it: TensorFlow alone is enough to train.

The records are those that TensorBoard's own `scalar`, `histogram` and `image` make, see the protocol in
tensorflow/core/framework/summary.proto. They go straight into an event file: through the operations of `tf.summary`, a
point of the learning curve would cost as much as several training steps.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto
from tensorflow.core.framework.types_pb2 import DT_FLOAT
from tensorflow.core.util.event_pb2 import Event

from cache.errors import UserError
from cache.reader import Cache
from train import export, split
from train.evaluate import Evaluation
from train.markup import printable

if TYPE_CHECKING:
    from train.result import Result

SAMPLE = 2000  # bottlenecks that the projector gets: what it turns smoothly in a browser

_BUCKETS = 30  # of a histogram, as many as TensorBoard's own
_PIXELS = 640  # about the side of the confusion matrix's image
_RIGHT, _WRONG = np.array([37, 99, 201]), np.array([201, 60, 37])  # the colours of all of a class's images in a cell

Writer: TypeAlias = tf.io.TFRecordWriter


def writer(folder: Path) -> Writer:
    """A writer of event files into `folder`.

    The last run's event files there are deleted: TensorBoard would draw both runs as one zigzag curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove(folder)
    to = tf.io.TFRecordWriter(str(folder / f"events.out.tfevents.{int(time.time()):010}.{os.uname().nodename}.v2"))
    to.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return to


def scalars(to: Writer, step: int, values: Mapping[str, float]) -> None:
    """Writes each value as the scalar of its name."""
    metadata = SummaryMetadata(data_class=DATA_CLASS_SCALAR, plugin_data=_plugin("scalars"))
    _write(
        to,
        step,
        [
            Summary.Value(
                tag=name,
                tensor=TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(), float_val=[value]),
                metadata=metadata,
            )
            for name, value in values.items()
        ],
    )


def histograms(to: Writer, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes the distribution of each array's values, as rows of (left edge, right edge, count)."""
    metadata = SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=_plugin("histograms"))
    summaries = []
    for name, value in values.items():
        counts, edges = np.histogram(value.astype(np.float64), _BUCKETS)
        rows = np.stack([edges[:-1], edges[1:], counts], axis=1)
        summaries.append(Summary.Value(tag=name, tensor=tf.make_tensor_proto(rows), metadata=metadata))
    _write(to, step, summaries)


def conclude(result: Result) -> None:
    """Writes what there is to see at the end: the test's numbers and confusion matrix, and the bottlenecks.

    Where logs_dir cannot be written, a warning says so: the classifier is worth more.
    """
    settings = result.settings
    rows = np.flatnonzero(result.sets != split.LEFT_OUT)
    try:
        with export.writing(settings.logs_dir):
            _evaluation(settings.logs_dir / "test", result.steps, result.test, result.cache.labels)
            _projector(settings.logs_dir / "train", result.cache, rows, np.random.default_rng([settings.seed, 4]))
    except UserError as error:
        print(f"warning: {error}; TensorBoard lacks the test's figures", file=sys.stderr)


def _evaluation(folder: Path, step: int, found: Evaluation | None, labels: Sequence[str]) -> None:
    if found is None:
        _remove(folder)  # a former run's must not stay
        return
    with writer(folder) as to:
        scalars(to, step, {"accuracy": found.accuracy, "cross_entropy": found.cross_entropy})
        order = ", ".join(map(printable, labels))
        _image(to, step, "confusion", matrix_image(found.confusion), f"True classes downwards, labels across: {order}.")


def matrix_image(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix [C, C] as uint8 [h, w, 3]: the more of a class's images a cell holds, the stronger its
    colour, blue on the diagonal and red beside it. More classes than fit share a cell with their neighbours."""
    classes = len(confusion)
    if classes > _PIXELS:
        edges = np.arange(_PIXELS) * classes // _PIXELS
        confusion = np.add.reduceat(np.add.reduceat(confusion, edges, axis=0), edges, axis=1)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    full = np.where(np.eye(len(confusion), dtype=bool)[..., np.newaxis], _RIGHT, _WRONG)
    colours = np.round(255 - shares[..., np.newaxis] * (255 - full)).astype(np.uint8)
    side = max(1, _PIXELS // len(confusion))
    return colours.repeat(side, axis=0).repeat(side, axis=1)


def _projector(folder: Path, cache: Cache, rows: np.ndarray, generator: np.random.Generator) -> None:
    """Writes a sample of the bottlenecks at `rows` for TensorBoard's embedding projector, with labels and paths.

    As text: the plugin takes a binary file only where it happens to be no UTF-8.
    """
    if len(rows) > SAMPLE:
        rows = np.sort(generator.choice(rows, SAMPLE, replace=False, shuffle=False))
    labels, paths = cache.labels, cache.paths
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "bottlenecks.tsv", "w", encoding="ascii") as file:
        file.writelines("\t".join(numbers) + "\n" for numbers in _texts(cache.bottlenecks(rows)))
    with open(folder / "metadata.tsv", "w", encoding="utf-8") as file:
        file.write("label\tpath\n")
        file.writelines(f"{printable(labels[cache.label_ids[r]])}\t{printable(paths[r])}\n" for r in rows)
    (folder / "projector_config.pbtxt").write_text(
        'embeddings {\n  tensor_name: "bottlenecks"\n  tensor_path: "bottlenecks.tsv"\n'
        '  metadata_path: "metadata.tsv"\n}\n'
    )


def _remove(folder: Path) -> None:
    """Deletes the event files in `folder`, and nothing else."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()


def _texts(vectors: np.ndarray) -> np.ndarray:
    """The numbers as text, rounded to float16: there are so few of these that each is formatted once, which takes a
    third of the time."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    texts = np.array([f"{number:.4g}" for number in every.tolist()], object)
    largest = np.finfo(np.float16).max
    return texts[np.clip(vectors, -largest, largest).astype(np.float16).view(np.uint16)]


def _image(to: Writer, step: int, name: str, pixels: np.ndarray, description: str) -> None:
    """Writes uint8 [h, w, 3] as the image of that name."""
    height, width, _ = pixels.shape
    strings = [b"%d" % width, b"%d" % height, tf.io.encode_png(pixels).numpy()]
    metadata = SummaryMetadata(
        data_class=DATA_CLASS_BLOB_SEQUENCE, plugin_data=_plugin("images"), summary_description=description
    )
    _write(to, step, [Summary.Value(tag=name, tensor=tf.make_tensor_proto(strings), metadata=metadata)])


def _write(to: Writer, step: int, values: Iterable[Summary.Value]) -> None:
    to.write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)).SerializeToString())
    to.flush()  # who watches, sees it


def _plugin(name: str) -> SummaryMetadata.PluginData:
    return SummaryMetadata.PluginData(plugin_name=name)
