"""The forms of the classifier that are made only when they are asked for: TensorFlow Lite, and the frozen graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from train import export, lite, photos, split
from train.names import PLACEHOLDER

if TYPE_CHECKING:
    from train.result import Result

FROZEN_GRAPH = "frozen_graph.pb"
LITE = {name: f"classifier_{name}.tflite" for name in ("float16", "int8")}
FILES = (FROZEN_GRAPH, *LITE.values())


def ship(result: Result) -> dict[str, Any]:
    """Writes what the settings ask for into output_dir, and tells so; returns it as metrics.json has it.

    Raises UserError as the functions of `lite` and `export` do.
    """
    settings, cache, head = result.settings, result.cache, result.head
    told: dict[str, Any] = {}
    if settings.frozen_graph:
        path = settings.output_dir / FROZEN_GRAPH
        export.write_frozen_graph(path, cache, head, settings.final_tensor_name)
        told[path.name] = {"output": settings.final_tensor_name, "bytes": path.stat().st_size}
        print(f"{path.name}: {PLACEHOLDER} takes images, {settings.final_tensor_name} has the probabilities")
    if not settings.tflite:
        return told
    training, test = (np.flatnonzero(result.sets == name) for name in (split.TRAIN, split.TEST))
    files = {name: settings.output_dir / LITE[name] for name in dict.fromkeys(settings.tflite)}
    for precision, path in files.items():
        samples = photos.samples(cache, training, settings.seed) if precision == "int8" else ()
        lite.write(path, cache, head, precision, samples)
    found = lite.accuracy(files, cache, head, test, settings.seed)
    for precision, path in files.items():
        size = path.stat().st_size
        told[path.name] = {"bytes": size}
        if found:
            told[path.name] |= {
                "accuracy": found.files[precision],
                "classifier_accuracy": found.classifier,
                "images": found.images,
                "thumbnails": found.thumbnails,
            }
        print(f"{path.name}: {size / 1e6:.1f} MB, {_accuracy(found, precision)}")
    return told


def _accuracy(found: lite.Accuracy | None, precision: str) -> str:
    if found is None:
        return "accuracy unknown: of no test image is there a photo or a thumbnail"
    small = f", {found.thumbnails} of them enlarged thumbnails" if found.thumbnails else ""
    return (
        f"test accuracy {found.files[precision]:.1%}, that of the whole classifier on the same {found.images} images "
        f"{found.classifier:.1%}{small}"
    )
