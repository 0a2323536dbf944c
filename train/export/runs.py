"""The classifiers in an output_dir: each training's in a folder of its own, and a link to the newest.

    runs/2026-11-29T03-05-12.123456Z/    all that one training wrote: saved_model/, labels.txt, metrics.json, ...
    latest -> runs/2026-11-29T03-05-12.123456Z

A folder gets its name when everything in it is on disk, and then the link is replaced at once. So a training that is
killed leaves the former classifier or the new one, whole. Where there are no links, the run with the last name is the
newest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cache import files
from cache.layout import LATEST, RUN, RUNS
from train.export import labels
from train.export.names import FILES, IN_SAVED_MODEL, SAVED_MODEL


@contextlib.contextmanager
def publishing(output_dir: Path) -> Iterator[Path]:
    """An empty folder to write a classifier into, which at the end becomes the newest run of output_dir.

    The former run is then deleted, as is what killed trainings left. Another training that publishes into the same
    output_dir waits meanwhile. Raises UserError when the run cannot be written; then the former one stays.
    """
    runs = output_dir / RUNS
    with files.writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
        files.sync(output_dir)
    with files.locked(runs) as is_alone:
        age = 0 if is_alone else files.ABANDONED
        files.sweep([runs], f"{RUN}.*", age)
        for name in (LATEST, *FILES):  # an earlier version wrote the files beside the link
            files.sweep([output_dir], f"{name}.*", age)
        run = runs / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}Z"
        with files.replacing_folder(run) as folder:
            yield folder
        with files.writing(output_dir / LATEST):
            _point_to(run)
        with contextlib.suppress(OSError):  # what this user may not delete waits for the next training
            for other in runs.glob(RUN):
                # Without the lock, a later run is that of a training which ended at the same moment.
                if other.name < run.name or (is_alone and other != run):
                    files.delete(other)
            _delete_classifier(output_dir)


def newest(output_dir: Path) -> Path | None:
    """The folder of the newest classifier: the link, or the last run where that is missing. None: there is no run."""
    latest = output_dir / LATEST
    if (latest / SAVED_MODEL).is_dir():
        return latest
    return max((output_dir / RUNS).glob(RUN), default=None)


def _point_to(run: Path) -> None:
    """Makes the link lead to `run`. What has its name, and is neither the link nor a copy of a run, stays."""
    latest = run.parents[1] / LATEST
    if latest.is_dir() and not latest.is_symlink():  # a tool has copied what the link led to
        _delete_classifier(latest)
        with contextlib.suppress(OSError):  # there is more in it
            latest.rmdir()
    if not os.path.lexists(latest) or (latest.is_symlink() and latest.readlink().parent == Path(RUNS)):
        files.replace_link(latest, Path(RUNS, run.name))


def _delete_classifier(folder: Path) -> None:
    """Deletes the classifier that lies in `folder` itself, where earlier versions put it, and nothing else.

    Raises OSError.
    """
    saved_model = folder / SAVED_MODEL
    if not (saved_model / labels.ASSET).is_file() or not IN_SAVED_MODEL.issuperset(os.listdir(saved_model)):
        return
    for name in FILES:  # the SavedModel last: it shows that the files are ours
        files.delete(folder / name)
