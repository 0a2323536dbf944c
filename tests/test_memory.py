"""A cache larger than the memory that training may have."""

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
LIMITED = """
import resource, sys
from pathlib import Path
from cache import command
command.import_tensorflow()
from train import run
from train.settings import TrainSettings
allocated = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
bound = allocated + (640 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
solver = sys.argv[3]
l2 = 0.1 if solver == "lbfgs" else None  # one fit instead of a path of them
settings = TrainSettings(Path(sys.argv[1]), Path(sys.argv[2]), solver=solver, how_many_training_steps=400, l2=l2)
result = run.fit(settings)
print("accuracy", result.validation.accuracy)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images whose bottlenecks are those of a few thousand again and again, in the order of their class."""
    directory = tmp_path_factory.mktemp("large") / "cache"
    synthetic.write(directory, 8192)
    label_ids = np.sort(np.resize(np.arange(synthetic.CLASSES, dtype=np.int32), IMAGES))
    synthetic.write_index(directory, label_ids)
    small_cache.write_backbone(directory / store.BACKBONE)
    return directory


@pytest.mark.parametrize("solver", SOLVERS)
def test_training_on_three_gigabytes_allocates_less_than_a_quarter(large, tmp_path, solver):
    command = [sys.executable, "-c", LIMITED, large, tmp_path / "out", solver]
    done = subprocess.run([*map(str, command)], cwd=REPO, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout
