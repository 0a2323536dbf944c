"""The device that the head is fitted on, and what to do if its memory is too small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from cache.errors import UserError
from train.settings import TrainSettings


def choose(name: str) -> str:
    """TensorFlow's name of the device `cpu`, `gpu`, or `auto`, which is the first GPU if there is one.

    Raises UserError for `gpu` if there is none.
    """
    # Newer GPUs would round factors to ten bits before they multiply, which are too few for a line search.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if name == "cpu":  # otherwise TensorFlow would take some memory of every GPU all the same
        with contextlib.suppress(RuntimeError):  # TensorFlow has started already
            tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.list_logical_devices("GPU") if name != "cpu" else []
    if name == "gpu" and not gpus:
        raise UserError("TensorFlow sees no GPU; leave --device out, or install TensorFlow's CUDA packages")
    if gpus:  # where threads share out a sum anew each time, it rounds differently; on processors none do
        tf.config.experimental.enable_op_determinism()
    return gpus[0].name if gpus else "/CPU:0"


@contextlib.contextmanager
def memory_for(settings: TrainSettings, device: str) -> Iterator[None]:
    """Turns a lack of memory, of NumPy or of TensorFlow, into a UserError with the flags that need less of it."""
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
