"""Short runs of training for the tests, and commands that need no TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cache import files
from tests.processes import REPO
from train.export import runs
from train.settings import TrainSettings

# A process that has not imported TensorFlow runs one command after the other.
_SERVER = """
import contextlib, importlib, io, json, sys
from cache import console
for line in sys.stdin:
    module, arguments = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = console.run(importlib.import_module(module).main, arguments)
    print(json.dumps([status, out.getvalue(), err.getvalue(), "tensorflow" in sys.modules]), flush=True)
"""


def quick(cache_dir: Path, output_dir: Path, **settings: object) -> TrainSettings:
    """Settings of a run that takes a moment."""
    values = {"solver": "sgd", "how_many_training_steps": 205, "learning_rate": 0.1, "train_batch_size": 20, **settings}
    return TrainSettings(cache_dir, output_dir, **values)  # type: ignore[arg-type]


def publish_files(out: Path) -> None:
    """Publishes files with the names of a classifier's."""
    with runs.publishing(out) as folder:
        for name in ("labels.txt", "metrics.json", "report.html", "saved_model/assets/labels.txt"):
            files.write(folder / name, b"new")


class WithoutTensorFlow:
    """Runs commands that must not import TensorFlow. Starting a process for each would take a second."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, module: str, *arguments: object) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) of `module`'s `main`."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([module, list(map(str, arguments))]), file=self._process.stdin, flush=True)
        status, out, err, has_tensorflow = json.loads(self._process.stdout.readline())
        assert not has_tensorflow, "it has imported TensorFlow"
        return status, out, err

    def error(self, module: str, *arguments: object) -> str:
        """The one line on standard error of a command that must fail."""
        status, _, err = self.run(module, *arguments)
        assert status == 2, err
        (line,) = err.splitlines()
        return line

    def close(self) -> None:
        self._process.communicate()
