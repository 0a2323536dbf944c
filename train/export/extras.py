"""What flags ask for beside the SavedModel: TensorFlow Lite files and the frozen graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.console import print
from train.data import photos
from train.data.parts import TEST, TRAIN
from train.export import lite, tutorial
from train.export.names import FROZEN_GRAPH, LITE, PLACEHOLDER

if TYPE_CHECKING:
    from train.result import Result

FILES = (FROZEN_GRAPH, *LITE.values())


def write(result: Result, folder: Path) -> dict[str, Any]:
    """Writes what the settings ask for into `folder`, and prints it; returns the `exports` of metrics.json.

    Raises UserError as the functions of `lite` and `tutorial` do.
    """
    settings, exports = result.settings, dict[str, Any]()
    if settings.frozen_graph:
        path = folder / FROZEN_GRAPH
        tutorial.frozen_graph(result.cache, settings.final_tensor_name)(path, result.head)
        exports[path.name] = {"output": settings.final_tensor_name, "bytes": path.stat().st_size}
        print(f"{path.name}: {PLACEHOLDER} takes images, {settings.final_tensor_name} has the probabilities")
    if settings.tflite:
        paths = {precision: folder / LITE[precision] for precision in settings.tflite}  # each once
        exports |= _write_lite(result, paths)
    return exports


def _write_lite(result: Result, paths: dict[str, Path]) -> dict[str, Any]:
    cache, head, seed = result.cache, result.head, result.settings.seed
    training, test = (np.flatnonzero(result.parts == part) for part in (TRAIN, TEST))
    for precision, path in paths.items():
        sample = photos.calibration_sample(cache, training, seed) if precision == "int8" else ()
        lite.write(path, cache, head, precision, sample)
    accuracy = lite.accuracy(paths, cache, head, test, seed)
    exports: dict[str, Any] = {}
    for precision, path in paths.items():
        exports[path.name] = {"bytes": path.stat().st_size}
        if accuracy:
            exports[path.name] |= {
                "accuracy": accuracy.files[precision],
                "classifier_accuracy": accuracy.classifier,
                "images": accuracy.images,
                "thumbnails": accuracy.thumbnails,
            }
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {_in_words(accuracy, precision)}")
    return exports


def _in_words(accuracy: lite.Accuracy | None, precision: str) -> str:
    if accuracy is None:
        return "accuracy unknown: there is neither a photo nor a thumbnail of any test image"
    thumbnails = f", {accuracy.thumbnails} of them enlarged thumbnails" if accuracy.thumbnails else ""
    return (
        f"test accuracy {accuracy.files[precision]:.1%}, whole classifier {accuracy.classifier:.1%} on the same "
        f"{accuracy.images} photos{thumbnails}"
    )
