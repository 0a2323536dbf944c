"""Which devices run the network, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from cache.errors import UserError


def choose(devices: str) -> list[str]:
    """The names of the devices to use, such as ["GPU:0", "GPU:1"].

    `devices`: "auto" (every GPU, or else the processor), or a list with commas such as "GPU:0,GPU:2" or "CPU:0".
    Raises UserError for a device that this machine does not have.
    """
    present = [device.name.split("device:")[-1] for device in tf.config.list_logical_devices()]
    gpus = [name for name in present if name.startswith("GPU:")]
    if devices == "auto":
        return gpus or ["CPU:0"]
    chosen = [name.strip().upper() for name in devices.split(",")]
    for name in chosen:
        if name not in present:
            raise UserError(f"--devices {devices}: this machine has no {name}, only {', '.join(present)}")
    return list(dict.fromkeys(chosen))


def strategy(devices: list[str]) -> tf.distribute.Strategy:
    """One replica of the network on each of `devices`."""
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(f"/{devices[0]}")
    return tf.distribute.MirroredStrategy([f"/{name}" for name in devices])


@contextlib.contextmanager
def running_in(precision: str, devices: list[str]) -> Iterator[str]:
    """Makes the graphs that run inside the `with` compute in `precision`; gives what that is here.

    "mixed" is float16 on GPUs and bfloat16 on processors, by grappler's rewrite of the graph: it reaches modules of
    every kind, where Keras's policy reaches only Keras models. "auto" is mixed where the hardware multiplies such
    numbers itself (tensor cores from compute capability 7.0, AMX or AVX512-BF16), else float32.
    """
    on_gpu = devices[0].startswith("GPU")
    mixed = precision == "mixed" or (precision == "auto" and _has_fast_halves(on_gpu))
    rewrite = "auto_mixed_precision" if on_gpu else "auto_mixed_precision_onednn_bfloat16"
    before = tf.config.optimizer.get_experimental_options().get(rewrite, False)
    tf.config.optimizer.set_experimental_options({rewrite: mixed})
    if precision == "float32":  # whoever asks for it wants all 23 bits, and newer GPUs keep ten unless told
        tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield ("mixed_float16" if on_gpu else "mixed_bfloat16") if mixed else "float32"
    finally:
        # The setting is the whole process's, and a training that follows is not meant.
        tf.config.optimizer.set_experimental_options({rewrite: before})


def _has_fast_halves(on_gpu: bool) -> bool:
    if on_gpu:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
        return all(detail.get("compute_capability", (0, 0)) >= (7, 0) for detail in details)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags
