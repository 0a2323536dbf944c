"""Where training runs: what is chosen, and what holds there."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from cache.errors import UserError
from tests import small_cache
from train import devices
from train.settings import TrainSettings

ON_A_GPU = """
import sys
from pathlib import Path
import tensorflow as tf
from train import devices, run

list_devices = tf.config.list_logical_devices
tf.config.list_logical_devices = lambda kind: list_devices("CPU")  # stands in for a GPU
for solver in ("sgd", "lbfgs", "sweep"):
    settings = run.TrainSettings(Path(sys.argv[1]), Path(sys.argv[2]), solver=solver, device="gpu",
                                 how_many_training_steps=100)
    first, second = run.fit(settings, silent=True), run.fit(settings, silent=True)
    assert (first.head.weights == second.head.weights).all()
try:
    tf.random.normal([1])  # without a seed
except RuntimeError as error:
    assert "determinism" in str(error), error
else:
    raise AssertionError("TensorFlow was not told to be deterministic")
"""


def test_every_solver_runs_where_tensorflow_must_be_deterministic(tmp_path):
    cache_dir = small_cache.make(tmp_path, noise=80)
    command = [sys.executable, "-c", ON_A_GPU, str(cache_dir), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["/CPU:0", "/device:GPU:0"])
def test_where_a_gpus_memory_ends_the_processor_is_offered(device):
    settings = TrainSettings(Path("cache"), Path("out"))
    with pytest.raises(UserError, match="not enough memory for lbfgs") as error, devices.memory_for(settings, device):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    assert ("--device cpu" in str(error.value)) == ("GPU" in device)
