"""A cache larger than the memory that training may have, and batches that are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from cache import store
from tests import small_cache
from train.settings import SOLVERS

REPO = Path(__file__).parents[1]
IMAGES = 1_200_000  # 3 GB of bottlenecks
# RLIMIT_DATA bounds what a process allocates, mapped files aside: those the system can drop.
LIMIT = """
import resource, sys
from pathlib import Path
from cache import command
command.import_tensorflow()
from train import run
from train.settings import TrainSettings
allocated = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
bound = allocated + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
"""
FIT = """
solver = sys.argv[4]
l2 = 0.1 if solver == "lbfgs" else None  # one fit instead of a path of them
settings = TrainSettings(Path(sys.argv[2]), Path(sys.argv[3]), solver=solver, how_many_training_steps=400, l2=l2)
result = run.fit(settings)
print("accuracy", result.validation.accuracy)
"""
COMMAND = """
from train.__main__ import main
sys.exit(command.run(main, sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images whose bottlenecks are those of a few thousand again and again, in the order of their class."""
    return write(tmp_path_factory.mktemp("large") / "cache", IMAGES)


def write(directory, images):
    synthetic.write(directory, 8192)
    label_ids = np.sort(np.resize(np.arange(synthetic.CLASSES, dtype=np.int32), images))
    synthetic.write_index(directory, label_ids)
    small_cache.write_backbone(directory / store.BACKBONE)
    return directory


@pytest.mark.parametrize("solver", SOLVERS)
def test_training_on_three_gigabytes_allocates_less_than_a_quarter(large, tmp_path, solver):
    command = [sys.executable, "-c", LIMIT + FIT, "640", large, tmp_path / "out", solver]
    done = subprocess.run([*map(str, command)], cwd=REPO, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """So few images that only a batch of them, which may have each many times, is large."""
    return write(tmp_path_factory.mktemp("few") / "cache", 4000)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--solver", "sgd", "--train_batch_size", "200000"], "lower --train_batch_size, it is 200,000, or"),
        (["--solver", "sgd", "--validation_batch_size", "400000"], "or --validation_batch_size, it is 400,000"),
        (["--solver", "sweep", "--train_batch_size", "150000"], "or fit a single head with --solver sgd"),
    ],
    ids=str,
)
def test_too_little_memory_is_one_line_with_the_flag_that_helps(few, tmp_path, flags, remedy):
    flags = [*flags, "--how_many_training_steps", "20", "--cache_dir", few, "--output_dir", tmp_path / "out"]
    command = [sys.executable, "-c", LIMIT + COMMAND, "640", *flags]
    done = subprocess.run([*map(str, command)], cwd=REPO, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2, done.stderr[-2000:]
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: not enough memory for ")
    assert remedy in error
