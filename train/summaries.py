"""Learning curves for TensorBoard, written without it: TensorFlow alone is enough to train.

The records are those that TensorBoard's own `scalar` and `histogram` make; see the protocol in
tensorflow/core/framework/summary.proto and the plugins `scalars` and `histograms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import (
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)

_BUCKETS = 30  # of a histogram, as many as TensorBoard's own

Writer: TypeAlias = tf.summary.SummaryWriter


def writer(folder: Path) -> Writer:
    """A writer of event files into `folder`.

    The last run's event files there are deleted: TensorBoard would draw both runs as one zigzag curve.
    """
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return tf.summary.create_file_writer(str(folder))


def scalars(to: Writer, step: int, values: Mapping[str, float]) -> None:
    """Writes each value as the scalar of its name."""
    arrays = {name: np.float32(value) for name, value in values.items()}
    _write(to, step, arrays, SummaryMetadata(data_class=DATA_CLASS_SCALAR, plugin_data=_plugin("scalars")))


def histograms(to: Writer, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes the distribution of each array's values, as rows of (left edge, right edge, count)."""
    arrays = {}
    for name, value in values.items():
        counts, edges = np.histogram(value.astype(np.float64), _BUCKETS)
        arrays[name] = np.stack([edges[:-1], edges[1:], counts], axis=1)
    _write(to, step, arrays, SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=_plugin("histograms")))


def _write(to: Writer, step: int, arrays: Mapping[str, Any], metadata: SummaryMetadata) -> None:
    # One record for all: each call of the writer costs as much as several training steps.
    summary = Summary(
        value=[
            Summary.Value(tag=name, tensor=tf.make_tensor_proto(array), metadata=metadata)
            for name, array in arrays.items()
        ]
    )
    with to.as_default():
        tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)


def _plugin(name: str) -> SummaryMetadata.PluginData:
    return SummaryMetadata.PluginData(plugin_name=name)
