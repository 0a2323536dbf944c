"""Event files for TensorBoard, written without TensorBoard, which training does not need.

The records are the same as those of TensorBoard's `scalar`, `histogram` and `image`; the protocol is in
tensorflow/core/framework/summary.proto. They are written straight to the event file: through the operations of
`tf.summary`, a point of the learning curve would cost as much as several training steps.
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

from cache import files
from cache.console import print
from cache.errors import UserError
from cache.plain_path import plain
from cache.reader import Cache
from cache.text import printable
from train.data import split
from train.random_streams import RandomStream
from train.report.evaluate import Evaluation

if TYPE_CHECKING:
    from train.result import Result

SAMPLE = 2000  # bottlenecks for the projector: as many as a browser turns smoothly

_BUCKETS = 30  # of a histogram, as in TensorBoard's own
_PIXELS = 640  # the approximate side of the confusion matrix's image
_RIGHT, _WRONG = np.array([37, 99, 201]), np.array([201, 60, 37])  # the colours of a cell with all of a class's photos

Writer: TypeAlias = tf.io.TFRecordWriter


def writer(folder: Path) -> Writer:
    """A writer of a new event file in `folder`.

    Deletes the event files of an earlier run there: TensorBoard would draw both runs as one zigzag curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _delete_events(folder)
    name = f"events.out.tfevents.{int(time.time()):010}.{os.uname().nodename}.v2"
    with plain(folder) as path:
        events = tf.io.TFRecordWriter(os.path.join(path, name))
    events.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return events


def scalars(events: Writer, step: int, values: Mapping[str, float]) -> None:
    """Writes each value as the scalar of its name."""
    metadata = SummaryMetadata(data_class=DATA_CLASS_SCALAR, plugin_data=_plugin("scalars"))
    summaries = []
    for name, value in values.items():
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(), float_val=[value])
        summaries.append(Summary.Value(tag=name, tensor=tensor, metadata=metadata))
    _write(events, step, summaries)


def histograms(events: Writer, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes the distribution of each array's values, as rows of (left edge, right edge, count)."""
    metadata = SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=_plugin("histograms"))
    summaries = []
    for name, value in values.items():
        counts, edges = np.histogram(value.astype(np.float64), _BUCKETS)
        rows = np.stack([edges[:-1], edges[1:], counts], axis=1)
        summaries.append(Summary.Value(tag=name, tensor=tf.make_tensor_proto(rows), metadata=metadata))
    _write(events, step, summaries)


def conclude(result: Result) -> None:
    """Writes the test's figures and confusion matrix, and a sample of the bottlenecks, into logs_dir.

    If that cannot be written, prints a warning and goes on: the classifier is worth more.
    """
    settings = result.settings
    rows = np.flatnonzero(result.parts != split.LEFT_OUT)
    try:
        with files.writing(settings.logs_dir):
            _evaluation(settings.logs_dir / "test", result.steps, result.test, result.cache.labels)
            generator = np.random.default_rng([settings.seed, RandomStream.PROJECTOR_SAMPLE])
            _projector(settings.logs_dir / "train", result.cache, rows, generator)
    except UserError as error:
        print(f"warning: {error}; TensorBoard lacks the test's figures", file=sys.stderr)


def _evaluation(folder: Path, step: int, test: Evaluation | None, labels: Sequence[str]) -> None:
    if test is None:
        _delete_events(folder)  # else those of an earlier run would show
        return
    with writer(folder) as events:
        scalars(events, step, {"accuracy": test.accuracy, "cross_entropy": test.cross_entropy})
        order = ", ".join(map(printable, labels))
        description = f"A row for each true class, a column for each predicted class, in this order: {order}."
        _image(events, step, "confusion", matrix_image(test.confusion), description)


def matrix_image(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix [C, C] as an image uint8 [h, w, 3].

    The larger the share of a class's photos in a cell, the stronger its colour, blue on the diagonal and red elsewhere.
    If there are more classes than pixels, neighbours share a cell.
    """
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

    As text, because the plugin takes a binary file for text if its bytes happen to be UTF-8.
    """
    if len(rows) > SAMPLE:
        rows = np.sort(generator.choice(rows, SAMPLE, replace=False, shuffle=False))
    labels, paths = cache.labels, cache.paths
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "bottlenecks.tsv", "w", encoding="ascii") as file:
        file.writelines("\t".join(numbers) + "\n" for numbers in _formatted(cache.bottlenecks(rows)))
    with open(folder / "metadata.tsv", "w", encoding="utf-8") as file:
        file.write("label\tpath\n")
        file.writelines(f"{printable(labels[cache.label_ids[r]])}\t{printable(paths[r])}\n" for r in rows)
    (folder / "projector_config.pbtxt").write_text(
        'embeddings {\n  tensor_name: "bottlenecks"\n  tensor_path: "bottlenecks.tsv"\n'
        '  metadata_path: "metadata.tsv"\n}\n'
    )


def _delete_events(folder: Path) -> None:
    """Deletes the event files in `folder`, and nothing else."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)  # another training into the same folder may delete them as well


def _formatted(vectors: np.ndarray) -> np.ndarray:
    """The numbers as text, rounded to float16, an object array of the same shape.

    There are only 65,536 such numbers: formatting each of them once takes a third of the time.
    """
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    texts = np.array([f"{number:.4g}" for number in numbers.tolist()], object)
    largest = np.finfo(np.float16).max
    return texts[np.clip(vectors, -largest, largest).astype(np.float16).view(np.uint16)]


def _image(events: Writer, step: int, name: str, pixels: np.ndarray, description: str) -> None:
    """Writes uint8 [h, w, 3] as the image of that name."""
    height, width, _ = pixels.shape
    strings = [b"%d" % width, b"%d" % height, tf.io.encode_png(pixels).numpy()]
    metadata = SummaryMetadata(
        data_class=DATA_CLASS_BLOB_SEQUENCE, plugin_data=_plugin("images"), summary_description=description
    )
    _write(events, step, [Summary.Value(tag=name, tensor=tf.make_tensor_proto(strings), metadata=metadata)])


def _write(events: Writer, step: int, summaries: Iterable[Summary.Value]) -> None:
    events.write(Event(wall_time=time.time(), step=step, summary=Summary(value=summaries)).SerializeToString())
    events.flush()  # so that a TensorBoard that is open shows it


def _plugin(name: str) -> SummaryMetadata.PluginData:
    return SummaryMetadata.PluginData(plugin_name=name)
