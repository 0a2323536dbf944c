"""Inference engines. `start(batch)` returns a function that waits for the batch's bottlenecks.

`devices` chooses where the backbone runs and in which precision, `choose` the engine, and `build` compiles it. `nvml`
reads what the GPUs do meanwhile. Importing this package imports no TensorFlow.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from cache.errors import UserError
from extract.engines.engine import Engine, Fetch, run

if TYPE_CHECKING:
    from extract.backbones import Backbone

__all__ = ["Engine", "Fetch", "build", "choose", "run"]


def choose(name: str, devices: list[str]) -> str:
    """The engine that "auto" stands for on `devices`, such as ["GPU:0", "GPU:1"]; any other `name` stands for itself.

    Raises UserError for an engine that cannot run here.
    """
    if name == "auto":
        return "openvino" if devices == ["CPU:0"] and importlib.util.find_spec("openvino") else "tensorflow"
    if name == "openvino" and not importlib.util.find_spec("openvino"):
        raise UserError("--engine openvino is not installed; pip install openvino, or use --engine tensorflow")
    if name == "openvino" and devices != ["CPU:0"]:
        raise UserError(f"--engine openvino runs on CPU:0, not on {', '.join(devices)}; use --engine tensorflow")
    return name


def build(
    name: str, backbone: Backbone, devices: list[str], *, precision: str, batch_size: int | None = None
) -> Engine:
    """The engine `name`, as `choose` returns it, on `devices`.

    `precision` is what `devices.running_in` yields; the engine must run inside that `with`. `batch_size` counts images
    on each device; None stands for what runs fastest there. Raises UserError for a backbone that the engine cannot run.
    """
    if name == "openvino":
        # Without this package, importing openvino reports nothing to its makers, and forks no process to do so.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        from extract.engines import openvino

        # OpenVINO runs a batch on each core, and what passes between two layers of a larger batch does not fit into the
        # core's cache: 8 ran fastest of 1 to 64, with EfficientNet-Lite0 and Inception V3 alike.
        return openvino.build(backbone, precision, batch_size or 8)
    from extract.engines import tensorflow

    # TensorFlow spreads one batch over all cores.
    return tensorflow.build(backbone, devices, batch_size or (256 if devices[0].startswith("GPU") else 32))
