"""The devices that run a backbone, and the precision in which they compute."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from cache.errors import UserError
from extract.engines import nvml

_CPUINFO = Path("/proc/cpuinfo")
_FAST_BFLOAT16 = {"amx_bf16", "avx512_bf16"}
_SLOW_BFLOAT16 = {"avx512f", "avx_ne_convert"}  # the least with which oneDNN computes in bfloat16


def choose(devices: str) -> list[str]:
    """The names of the devices to use, such as ["GPU:0", "GPU:1"].

    `devices` is "auto" (every GPU, or else the CPU), or a list with commas such as "GPU:0,GPU:2" or "CPU:0".
    Warns if "auto" stands for the CPU although there are GPUs, which TensorFlow cannot use. Raises UserError for a
    device that this machine does not have.
    """
    present = [device.name.split("device:")[-1] for device in tf.config.list_logical_devices()]
    if devices == "auto":
        gpus = [name for name in present if name.startswith("GPU:")]
        if not gpus:
            _warn_of_unused_gpus()
        return gpus or ["CPU:0"]
    chosen = [name.strip().upper() for name in devices.split(",")]
    for name in chosen:
        if name not in present:
            raise UserError(f"--devices {devices}: this machine has no {name}, only {', '.join(present)}")
    return list(dict.fromkeys(chosen))


def _warn_of_unused_gpus() -> None:
    are_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # on purpose
    if not are_hidden and (count := nvml.count()):
        warnings.warn(
            f"the network runs on the CPU: TensorFlow can use none of the {count} GPUs that the NVIDIA driver finds. "
            "`pip install 'tensorflow[and-cuda]'` installs what it needs; with TF_CPP_MIN_LOG_LEVEL=0 it prints what "
            "is missing",
            stacklevel=1,
        )


def precision(wanted: str, devices: list[str]) -> str:
    """What `--precision` stands for on `devices`: "float32", "mixed_float16" or "mixed_bfloat16".

    "mixed" is float16 on GPUs and bfloat16 on CPUs, by grappler's rewrite of the graph: it works for modules of every
    kind, whereas Keras's policy works for Keras models only. "auto" is "mixed" if the hardware itself multiplies such
    numbers (tensor cores from compute capability 7.0, AMX or AVX512-BF16), else "float32". Older GPUs, and CPUs
    without AVX-512, compute in float32 in any case, because grappler does not rewrite their graphs.
    """
    on_gpu = devices[0].startswith("GPU")
    is_slow = wanted == "mixed" and not on_gpu and not _SLOW_BFLOAT16.isdisjoint(_processor())
    if is_slow or (wanted != "float32" and _has_fast_16_bits(devices)):
        return "mixed_float16" if on_gpu else "mixed_bfloat16"
    return "float32"


@contextlib.contextmanager
def running_in(wanted: str, devices: list[str]) -> Iterator[str]:
    """Makes the graphs that run inside the `with` compute in `precision(wanted, devices)`, and yields that."""
    chosen = precision(wanted, devices)
    rewrite = "auto_mixed_precision" if devices[0].startswith("GPU") else "auto_mixed_precision_onednn_bfloat16"
    rewrite_before = tf.config.optimizer.get_experimental_options().get(rewrite, False)
    tf32_before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.optimizer.set_experimental_options({rewrite: chosen != "float32"})
    # Whoever asks for float32 wants all 23 bits of the fraction. By default, newer GPUs keep ten.
    tf.config.experimental.enable_tensor_float_32_execution(tf32_before and wanted != "float32")
    try:
        yield chosen
    finally:
        # These options hold for the whole process, and a training may follow in it.
        tf.config.optimizer.set_experimental_options({rewrite: rewrite_before})
        tf.config.experimental.enable_tensor_float_32_execution(tf32_before)


def _has_fast_16_bits(devices: list[str]) -> bool:
    if devices[0].startswith("GPU"):
        gpus = tf.config.list_physical_devices("GPU")
        chosen = [gpu for gpu in gpus if gpu.name.split("device:")[-1] in devices]
        details = [tf.config.experimental.get_device_details(gpu) for gpu in chosen]
        return all(detail.get("compute_capability", (0, 0)) >= (7, 0) for detail in details)
    return not _FAST_BFLOAT16.isdisjoint(_processor())


def _processor() -> list[str]:
    """The words of the processor's description, its features among them."""
    return _CPUINFO.read_text().split() if _CPUINFO.exists() else []
