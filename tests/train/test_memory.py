"""A cache larger than the memory that training may have, and batches that are."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from cache import console, layout
from tests import forked, small_cache
from train import run
from train.__main__ import main
from train.settings import SOLVERS, TrainSettings

IMAGES = 240_000  # 614 MB of bottlenecks in float16, twice that in float32
MOST = 540  # MB. A fit of a handful of photos takes up to 340 of them, most of it TensorFlow's.


def write(directory, images):
    """Images whose bottlenecks are those of a few thousand again and again, in the order of their class."""
    synthetic.write(directory, 8192)
    label_ids = np.sort(np.resize(np.arange(synthetic.CLASSES, dtype=np.int32), images))
    synthetic.write_index(directory, label_ids)
    small_cache.write_backbone(directory / layout.BACKBONE)
    return directory


def limit(megabytes):
    """Bounds what this process may allocate from here on, mapped files aside: those the system can drop."""
    allocated = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    bound = allocated + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


@pytest.fixture(scope="module")
def large(made_once):
    folder, _ = made_once("large", lambda folder: str(write(folder / "cache", IMAGES)))
    return folder / "cache"


def fit(cache_dir, output_dir, solver):
    from train.solvers import lbfgs

    limit(MOST)
    lbfgs._ITERATIONS = 1  # the others need no other memory
    settings = TrainSettings(
        cache_dir,
        output_dir,
        solver=solver,
        how_many_training_steps=100,
        class_weights="none",
        l2=0.1 if solver == "lbfgs" else None,  # one fit, and one with the validation photos
        testing_percentage=2.0,
        validation_percentage=2.0,
    )
    print("accuracy", run.fit(settings).validation.accuracy, flush=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_training_allocates_less_than_its_cache_is_large(large, tmp_path, solver):
    size = IMAGES * synthetic.DIMENSION * np.dtype(np.float16).itemsize
    assert size > MOST << 20
    status, out, errors = forked.Child(fit, large, tmp_path / "out", solver).communicate()
    assert status == 0, errors.decode()[-2000:]
    assert b"accuracy" in out


TOO_LARGE = {
    "lower --train_batch_size, it is 200,000, or": ["--solver", "sgd", "--train_batch_size", "200000"],
    "or --validation_batch_size, it is 400,000": ["--solver", "sgd", "--validation_batch_size", "400000"],
    "or fit a single head with --solver sgd": ["--solver", "sweep", "--train_batch_size", "200000"],
}


def command(flags):
    limit(640)
    sys.exit(console.run(main, flags))


def test_too_little_memory_is_one_line_with_the_flag_that_helps(tmp_path):
    """All at once, in one test: TensorFlow waits 10 s for memory before it gives up."""
    # So few images that only a batch of them, which may have each many times, is large.
    cache_dir = write(tmp_path / "cache", 4000)
    flags = ["--cache_dir", cache_dir, "--how_many_training_steps", 20, "--output_dir"]
    children = {
        remedy: forked.Child(command, [*map(str, [*flags, tmp_path / str(number), *TOO_LARGE[remedy]])])
        for number, remedy in enumerate(TOO_LARGE)
    }
    for remedy, child in children.items():
        status, _, errors = child.communicate()
        assert status == 2, errors.decode()[-2000:]
        (error,) = errors.decode().splitlines()
        assert error.startswith("error: not enough memory for ")
        assert remedy in error
