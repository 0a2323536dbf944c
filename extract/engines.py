"""Who runs the network. An engine takes batches of images, and gives back how to fetch their bottlenecks."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cache.errors import UserError
from extract import devices
from extract.backbone import Backbone

Fetch = Callable[[], np.ndarray]  # waits for the bottlenecks of a batch, float32 [n, D]
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Engine:
    """Something that runs the network."""

    name: str
    batch_size: int  # for each device
    start: Callable[[tf.Tensor], Fetch]  # on at most a whole batch of images, uint8 [n, height, width, 3]
    in_flight: int  # batches that may be started before the first is fetched
    at_once: Callable[[], int]  # images on each device: `batch_size`, or what is left of it where memory ended


def choose(name: str, names: list[str]) -> str:
    """The engine that "auto" stands for with the devices `names`, or `name` itself.

    Raises UserError for one that cannot run here.
    """
    if name != "openvino":
        on_cpu = names == ["CPU:0"]
        return "openvino" if name == "auto" and on_cpu and importlib.util.find_spec("openvino") else "tensorflow"
    if not importlib.util.find_spec("openvino"):
        raise UserError("--engine openvino: it is not installed; pip install openvino, or use --engine tensorflow")
    if names != ["CPU:0"]:
        raise UserError(f"--engine openvino runs on the processor, not on {', '.join(names)}; use --engine tensorflow")
    return name


def build(name: str, backbone: Backbone, names: list[str], precision: str, batch_size: int | None = None) -> Engine:
    """The engine `name`, as `choose` gives it, on the devices `names`, in what `devices.running_in` gives.

    `batch_size` is for each device; None: what runs fastest there. Raises UserError for a network that it cannot run.
    """
    if name == "openvino":
        # A batch runs on each core, and what passes between two layers of a larger one leaves the core's cache: 8 ran
        # fastest of 1 to 64 with EfficientNet-Lite0 and Inception V3 alike. TensorFlow spreads one over the cores.
        return openvino(backbone, precision, batch_size or 8)
    return tensorflow(backbone, names, batch_size or (256 if names[0].startswith("GPU") else 32))


def tensorflow(backbone: Backbone, names: list[str], batch_size: int) -> Engine:
    """The network on each of the devices `names`, sharing batches of up to len(names) * `batch_size`.

    Where that exhausts a device's memory, it goes on with half as many images at once. Raises UserError where a
    single one does.
    """
    strategy = devices.strategy(names)
    at_once = batch_size

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(_forward(backbone), args=(images,)))

    def launch(images: tf.Tensor, first: int) -> Fetch:
        size = len(names) * at_once
        # On the processor: the first GPU would else get the images of all.
        with tf.device("CPU:0"):
            some = images[first : first + size]
            parts = tf.split(_padded(some, size), len(names))
        values = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        results = step(values)
        return lambda: np.concatenate([part.numpy() for part in results])[: len(some)]

    def start(images: tf.Tensor) -> Fetch:
        nonlocal at_once
        while True:
            try:
                fetches = [launch(images, first) for first in range(0, len(images), len(names) * at_once)]
            except tf.errors.OpError as error:
                if not _tells_of_memory(error):
                    raise
                at_once = _halved(at_once, names)
            else:
                return lambda: np.concatenate([fetch() for fetch in fetches])

    # One batch running and one waiting behind it.
    return Engine("tensorflow", batch_size, start, in_flight=2, at_once=lambda: at_once)


def openvino(backbone: Backbone, precision: str, batch_size: int) -> Engine:
    """The network on the processor by OpenVINO, several batches at once, in what `devices.running_in` gives.

    Raises UserError for a network that OpenVINO cannot run.
    """
    import openvino as ov

    core = ov.Core()
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
    }
    try:
        compiled = core.compile_model(openvino_model(core, backbone, batch_size), "CPU", hints)
    except (RuntimeError, OSError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise UserError(
            f"OpenVINO cannot run {backbone.module} ({reason.strip()}); use --engine tensorflow, or smaller batches"
        ) from error
    # One more than run at once, so that none of these waits while a batch's bottlenecks are taken.
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1
    requests = itertools.cycle([compiled.create_infer_request() for _ in range(count)])

    def start(images: tf.Tensor) -> Fetch:
        request = next(requests)
        request.start_async([_padded(images, batch_size).numpy()])

        def fetch() -> np.ndarray:
            request.wait()
            return request.get_output_tensor(0).data[: len(images)].copy()

        return fetch

    return Engine("openvino", batch_size, start, in_flight=count, at_once=lambda: batch_size)


def run(engine: Engine, batches: Iterable[tuple[Tag, tf.Tensor]]) -> Iterator[tuple[Tag, np.ndarray]]:
    """Each batch's tag and bottlenecks, in order; the devices work on the next batches while this one is taken."""
    flying: list[tuple[Tag, Fetch]] = []
    for tag, images in batches:
        flying.append((tag, engine.start(images)))
        if len(flying) == engine.in_flight:
            tag, fetch = flying.pop(0)
            yield tag, fetch()
    for tag, fetch in flying:
        yield tag, fetch()


def _forward(backbone: Backbone) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda images: backbone.features(tf.cast(images, tf.float32) / 255)


def _tells_of_memory(error: tf.errors.OpError) -> bool:
    """cuDNN has errors of its own for it, "No algorithm worked" among them, with the cause somewhere in the text."""
    told = any(cause in error.message.lower() for cause in ("out of memory", "resource_exhausted", "alloc_failed"))
    return told or isinstance(error, tf.errors.ResourceExhaustedError)


def _halved(at_once: int, names: list[str]) -> int:
    """Half of a batch that a device's memory could not hold, and a warning. Raises UserError for a single image."""
    where = f"the memory of {' or '.join(names)}"
    if at_once == 1:
        raise UserError(f"{where} cannot hold the network with a single image; use a smaller --module, or --devices")
    warnings.warn(f"{where} cannot hold {at_once} images at once: going on with {at_once // 2}", stacklevel=1)
    return at_once // 2


def _padded(images: tf.Tensor, size: int) -> tf.Tensor:
    """`images` with black ones behind them, `size` in all.

    Another shape would be compiled and tuned anew on a GPU, and kernels chosen by the batch's size would round a
    vector differently depending on which images came with it.
    """
    missing = size - len(images)
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else images


def openvino_model(core: Any, backbone: Backbone, batch_size: int) -> Any:
    """The network as an OpenVINO model, from uint8 [batch_size, height, width, 3]."""
    shape = [None, *backbone.image_size, 3]
    traced = tf.function(_forward(backbone), input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function(), aggressive_inlining=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frozen.pb")
        path.write_bytes(frozen.graph.as_graph_def().SerializeToString())
        model = core.read_model(path)
    model.reshape([batch_size, *backbone.image_size, 3])
    return model
