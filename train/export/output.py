"""What a run leaves in output_dir: the classifier, its labels, the report, and what flags ask for."""

from __future__ import annotations

import shlex
from dataclasses import replace

from cache import files
from train import checkpoint
from train.export import extras, labels, saved_model
from train.report import metrics, page
from train.result import Result


def write(result: Result) -> None:
    """Writes all of it, and prints where it is. Raises UserError when it cannot be written."""
    folder, settings = result.settings.output_dir, result.settings
    saved_model.write(folder / "saved_model", result.cache, result.head)
    labels.write(folder / "labels.txt", result.cache.labels)
    for name in (*extras.FILES, checkpoint.FILE):  # of an earlier run
        (folder / name).unlink(missing_ok=True)
    _write_report(result)
    print(
        f"{result.how_fitted} in {result.seconds:.1f} s; in {folder}: saved_model/, labels.txt, metrics.json, "
        "report.html\n"
        f"TensorBoard: {settings.logs_dir}\n"
        f"try: python -m train.predict --model {shlex.quote(str(folder))} photo.jpg"
    )
    if settings.tflite or settings.frozen_graph:
        _write_report(replace(result, exports=extras.write(result)))


def _write_report(result: Result) -> None:
    for name, text in (("metrics.json", metrics.metrics(result)), ("report.html", page.html(result))):
        files.write(result.settings.output_dir / name, text.encode())
