"""What a run leaves in output_dir: the classifier, its labels, the report, and what flags ask for."""

from __future__ import annotations

import shlex
from dataclasses import replace

from cache import files
from cache.console import print
from cache.errors import UserError
from train import checkpoint
from train.export import extras, head, labels, runs, saved_model
from train.export.names import HEAD, LABELS, METRICS, REPORT, SAVED_MODEL
from train.report import metrics, page
from train.result import Result


def write(result: Result) -> None:
    """Writes all of it as one folder, which appears at once, and prints where it is.

    Raises UserError when it cannot be written. If only what flags ask for cannot, the rest is there all the same.
    """
    folder, settings, failure = result.settings.output_dir, result.settings, None
    with runs.publishing(folder) as run:
        saved_model.write(run / SAVED_MODEL, result.cache, result.head)
        labels.write(run / LABELS, result.cache.labels)
        head.write(run / HEAD, result)
        try:
            result = replace(result, exports=extras.write(result, run))
        except UserError as error:
            failure = error
            for name in extras.FILES:
                (run / name).unlink(missing_ok=True)
        for name, text in ((METRICS, metrics.metrics(result)), (REPORT, page.html(result))):
            files.write(run / name, text.encode())
    (folder / checkpoint.FILE).unlink(missing_ok=True)
    files.sweep([folder], f"{checkpoint.FILE}.*", age=0)
    print(
        f"{result.how_fitted} in {result.seconds:.1f} s; in {runs.newest(folder)}: {SAVED_MODEL}/, {LABELS}, "
        f"{HEAD}, {METRICS}, {REPORT}"
    )
    print(f"TensorBoard: {settings.logs_dir}")
    print(f"try: python -m train.predict --model {shlex.quote(str(folder))} photo.jpg")
    if failure:
        raise failure
