"""Where training runs: which device is chosen, and what holds there."""

from pathlib import Path

import pytest
import tensorflow as tf

from cache.errors import UserError
from tests import forked
from train import devices, run
from train.settings import TrainSettings


def fit_as_on_a_gpu(cache_dir, output_dir):
    """Every solver twice, with a processor that stands in for a GPU."""
    list_devices = tf.config.list_logical_devices
    tf.config.list_logical_devices = lambda kind: list_devices("CPU")
    for solver in ("sgd", "lbfgs", "sweep"):
        settings = TrainSettings(cache_dir, output_dir, solver=solver, device="gpu", how_many_training_steps=100)
        first, second = run.fit(settings, silent=True), run.fit(settings, silent=True)
        assert (first.head.weights == second.head.weights).all()
    with pytest.raises(RuntimeError, match="determinism"):
        tf.random.normal([1])  # without a seed


def test_every_solver_runs_where_tensorflow_must_be_deterministic(cache_dir, tmp_path):
    child = forked.Child(fit_as_on_a_gpu, cache_dir, tmp_path / "out")  # determinism cannot be switched off again
    status, _, errors = child.communicate()
    assert status == 0, errors.decode()


@pytest.mark.parametrize("device", ["/CPU:0", "/device:GPU:0"])
def test_if_a_gpus_memory_is_too_small_the_processor_is_offered(device):
    settings = TrainSettings(Path("cache"), Path("out"))
    with pytest.raises(UserError, match="not enough memory for lbfgs") as error, devices.memory_for(settings, device):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    assert ("--device cpu" in str(error.value)) == ("GPU" in device)
