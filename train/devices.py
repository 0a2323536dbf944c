"""Where the layer is fitted, and what to do where memory ends there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from cache.errors import UserError
from train.settings import TrainSettings


def choose(name: str) -> str:
    """TensorFlow's name of the device: for `auto` the first GPU, where there is one. Raises UserError for none."""
    # Ten bits, to which newer GPUs would round before they multiply, are too few for a line search.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if name == "cpu":  # else TensorFlow would take some memory of every GPU all the same
        with contextlib.suppress(RuntimeError):  # it has begun already
            tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.list_logical_devices("GPU") if name != "cpu" else []
    if name == "gpu" and not gpus:
        raise UserError("TensorFlow sees no GPU; leave --device out, or install TensorFlow's CUDA packages")
    if gpus:  # sums that threads share out anew each time would round differently; on a processor none do
        tf.config.experimental.enable_op_determinism()
    return gpus[0].name if gpus else "/CPU:0"


@contextlib.contextmanager
def memory_for(settings: TrainSettings, device: str) -> Iterator[None]:
    """Turns a lack of memory, of NumPy or of TensorFlow, into a UserError with the flags that make less of it do."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        batch = f"lower --train_batch_size, it is {settings.train_batch_size:,}"
        remedy = {
            "sgd": f"{batch}, or --validation_batch_size, it is {settings.validation_batch_size:,}",
            "sweep": f"{batch}, or fit a single head with --solver sgd",
            "lbfgs": "fit with --solver sgd, which needs less",
        }[settings.solver]
        elsewhere = ", or fit on the processor: python -m train --device cpu" if "GPU" in device else ""
        raise UserError(f"not enough memory for {settings.solver}; {remedy}{elsewhere}") from None
