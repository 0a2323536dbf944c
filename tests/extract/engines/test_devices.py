"""Which devices and which precision are chosen, and what the process is left with."""

from __future__ import annotations

import os

import pytest
import tensorflow as tf

from cache import console
from extract.__main__ import main
from extract.engines import devices, nvml
from tests.pictures import make_folder

UNUSED_GPUS = "the network runs on the CPU: TensorFlow can use none of the 2 GPUs"


@pytest.fixture
def unusable_gpus(monkeypatch):
    """Two GPUs, for which TensorFlow lacks a library."""
    monkeypatch.setattr(nvml, "count", lambda: 2)
    cpus = tf.config.list_logical_devices("CPU")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: cpus)


@pytest.mark.parametrize("visible", [None, "", "-1", "0"])
def test_unusable_gpus_are_reported_unless_they_are_hidden(unusable_gpus, monkeypatch, recwarn, visible):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.choose("auto") == ["CPU:0"]
    assert devices.choose("CPU:0") == ["CPU:0"]  # whoever names it knows
    assert [str(warning.message)[: len(UNUSED_GPUS)] for warning in recwarn] == (
        [UNUSED_GPUS] if visible in (None, "0") else []
    )


def test_an_extraction_prints_that_gpus_are_unusable(unusable_gpus, tmp_path, monkeypatch, module, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    photos = make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module, "--engine", "tensorflow"]
    assert console.run(main, list(map(str, flags))) == 0
    assert f"warning: {UNUSED_GPUS}" in capsys.readouterr().err


@pytest.fixture
def two_gpus(monkeypatch):
    """An old GPU and a new one, as TensorFlow would describe them."""
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(2)]
    capabilities = dict(zip(gpus, [(6, 1), (8, 0)], strict=True))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capabilities[gpu]}
    )


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        ("auto", ["GPU:1"], "mixed_float16"),
        ("mixed", ["GPU:1"], "mixed_float16"),
        ("float32", ["GPU:1"], "float32"),
        ("auto", ["GPU:0"], "float32"),
        ("auto", ["GPU:0", "GPU:1"], "float32"),
        ("mixed", ["GPU:0"], "float32"),  # in spite of the flag: grappler would not rewrite the graph
    ],
)
def test_the_precision_is_one_that_the_chosen_gpus_have(two_gpus, wanted, names, expected):
    assert devices.precision(wanted, names) == expected


@pytest.mark.parametrize(
    ("features", "auto", "mixed"),
    [
        ("fpu avx2", "float32", "float32"),
        ("fpu avx2 avx512f", "float32", "mixed_bfloat16"),
        ("fpu avx512f avx512_bf16", "mixed_bfloat16", "mixed_bfloat16"),
        (None, "float32", "float32"),  # a Mac
    ],
)
def test_bfloat16_is_for_processors_that_have_it(tmp_path, monkeypatch, features, auto, mixed):
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "cpuinfo")
    if features:
        (tmp_path / "cpuinfo").write_text(f"model name\t: made up\nflags\t\t: {features}\n")
    assert [devices.precision(wanted, ["CPU:0"]) for wanted in ("auto", "mixed")] == [auto, mixed]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("wanted", ["float32", "mixed"])
def test_float32_keeps_all_bits_and_the_process_keeps_its_options(two_gpus, wanted, before):
    is_enabled = tf.config.experimental.tensor_float_32_execution_enabled
    default = is_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(before)
    try:
        with devices.running_in(wanted, ["GPU:1"]):
            assert is_enabled() == (before and wanted != "float32")
        assert is_enabled() == before
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(default)


@pytest.mark.parametrize(("chosen", "kept"), [(None, "true"), ("false", "false")])
def test_gpu_memory_is_allocated_as_needed_unless_the_user_chooses_otherwise(monkeypatch, chosen, kept):
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", chosen or "")
    if chosen is None:
        monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    seen = []
    assert console.run(lambda _: seen.append(os.environ["TF_FORCE_GPU_ALLOW_GROWTH"])) == 0
    assert seen == [kept]
