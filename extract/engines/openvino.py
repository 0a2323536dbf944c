"""OpenVINO as the engine, on the CPU."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cache.errors import UserError
from extract.backbones import Backbone
from extract.engines.engine import Engine, Fetch, of_pixels, pad


def build(backbone: Backbone, precision: str, batch_size: int) -> Engine:
    """The backbone on the CPU, several batches at once, in what `devices.running_in` yields.

    Raises UserError for a backbone that OpenVINO cannot run.
    """
    core = _core()
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
    }
    try:
        compiled = core.compile_model(convert(core, backbone, batch_size), "CPU", hints)
    except (RuntimeError, OSError) as error:
        # OpenVINO lists the calls that led to an error first, and its reason last.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else "no reason given"
        raise UserError(
            f"OpenVINO cannot run {backbone.module} ({reason}); use --engine tensorflow, or smaller batches"
        ) from error
    return _OpenVINO(compiled, batch_size)


@functools.cache
def _core() -> Any:
    return ov.Core()


class _OpenVINO(Engine):
    name = "openvino"

    def __init__(self, compiled: Any, batch_size: int) -> None:
        self.batch_size = batch_size
        # One more than run at once, so that no core waits while the bottlenecks of a batch are fetched.
        self.in_flight = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1
        self._requests = itertools.cycle([compiled.create_infer_request() for _ in range(self.in_flight)])

    def start(self, images: tf.Tensor) -> Fetch:
        request = next(self._requests)
        request.start_async([pad(images, self.batch_size).numpy()])

        def fetch() -> np.ndarray:
            request.wait()
            return request.get_output_tensor(0).data[: len(images)].copy()

        return fetch


def convert(core: Any, backbone: Backbone, batch_size: int) -> Any:
    """The backbone as an OpenVINO model of uint8 [batch_size, height, width, 3].

    Raises RuntimeError or OSError for a backbone that OpenVINO cannot read.
    """
    model = _read(core, backbone).clone()
    model.reshape([batch_size, *backbone.image_size, 3])
    return model


@functools.lru_cache(maxsize=1)  # a service compiles it for several sizes of batch; reading takes longer than compiling
def _read(core: Any, backbone: Backbone) -> Any:
    """The backbone as an OpenVINO model of any number of images."""
    spec = tf.TensorSpec([None, *backbone.image_size, 3], tf.uint8)
    traced = tf.function(of_pixels(backbone), input_signature=[spec], autograph=False)
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function(), aggressive_inlining=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frozen.pb")
        path.write_bytes(frozen.graph.as_graph_def().SerializeToString())
        return core.read_model(path)
