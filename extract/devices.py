"""Which devices run the network, and in which precision."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from cache.errors import UserError
from extract import nvml

_CPUINFO = Path("/proc/cpuinfo")
_FAST_HALVES = {"amx_bf16", "avx512_bf16"}
_SLOW_HALVES = {"avx512f", "avx_ne_convert"}  # the least with which oneDNN computes in bfloat16


def choose(devices: str) -> list[str]:
    """The names of the devices to use, such as ["GPU:0", "GPU:1"].

    `devices`: "auto" (every GPU, or else the processor), or a list with commas such as "GPU:0,GPU:2" or "CPU:0".
    Warns where "auto" comes to the processor beside GPUs that TensorFlow cannot use. Raises UserError for a device
    that this machine does not have.
    """
    present = [device.name.split("device:")[-1] for device in tf.config.list_logical_devices()]
    gpus = [name for name in present if name.startswith("GPU:")]
    if devices == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not gpus and not hidden and (unused := nvml.count()):
            warnings.warn(
                f"the processor runs the network: of the {unused} GPUs that the NVIDIA driver has, TensorFlow can use "
                "none. `pip install 'tensorflow[and-cuda]'` brings what it needs; with TF_CPP_MIN_LOG_LEVEL=0 it "
                "says what is missing",
                stacklevel=1,
            )
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


def precision(wanted: str, devices: list[str]) -> str:
    """What `--precision` comes to on `devices`: "float32", "mixed_float16" or "mixed_bfloat16".

    "mixed" is float16 on GPUs and bfloat16 on processors, by grappler's rewrite of the graph: it reaches modules of
    every kind, where Keras's policy reaches only Keras models. "auto" is mixed where the hardware multiplies such
    numbers itself (tensor cores from compute capability 7.0, AMX or AVX512-BF16), else float32. Older GPUs, and
    processors without AVX-512, compute in float32 in any case: grappler leaves their graphs alone.
    """
    on_gpu = devices[0].startswith("GPU")
    slowly = wanted == "mixed" and not on_gpu and not _SLOW_HALVES.isdisjoint(_processor())
    mixed = slowly or (wanted != "float32" and _has_fast_halves(devices))
    return ("mixed_float16" if on_gpu else "mixed_bfloat16") if mixed else "float32"


@contextlib.contextmanager
def running_in(wanted: str, devices: list[str]) -> Iterator[str]:
    """Makes the graphs that run inside the `with` compute in what `precision` says, and gives that."""
    chosen = precision(wanted, devices)
    rewrite = "auto_mixed_precision" if devices[0].startswith("GPU") else "auto_mixed_precision_onednn_bfloat16"
    before = tf.config.optimizer.get_experimental_options().get(rewrite, False)
    short = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.optimizer.set_experimental_options({rewrite: chosen != "float32"})
    # Whoever asks for float32 wants all 23 bits, and newer GPUs keep ten unless told.
    tf.config.experimental.enable_tensor_float_32_execution(short and wanted != "float32")
    try:
        yield chosen
    finally:
        # These are the whole process's, and a training that follows is not meant.
        tf.config.optimizer.set_experimental_options({rewrite: before})
        tf.config.experimental.enable_tensor_float_32_execution(short)


def _has_fast_halves(devices: list[str]) -> bool:
    if devices[0].startswith("GPU"):
        gpus = tf.config.list_physical_devices("GPU")
        chosen = [gpu for gpu in gpus if gpu.name.split("device:")[-1] in devices]
        details = [tf.config.experimental.get_device_details(gpu) for gpu in chosen]
        return all(detail.get("compute_capability", (0, 0)) >= (7, 0) for detail in details)
    return not _FAST_HALVES.isdisjoint(_processor())


def _processor() -> list[str]:
    """The words of the processor's description, its features among them."""
    return _CPUINFO.read_text().split() if _CPUINFO.exists() else []
