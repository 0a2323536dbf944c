"""Engines at the limits of a device: what does not fit into its memory, and GPUs that TensorFlow cannot use."""

import os
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

import cache
from cache import command
from extract import devices
from extract.__main__ import main
from tests import modules
from tests.pictures import SIDE, make_folder
from tests.processes import REPO
from tests.test_extract import assert_is_view_of

EXABYTE = 2**60  # more than a processor's addresses reach: no machine gives that much, however it promises memory


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", {"a": 5, "b": 6})


def hungry_module(path, most, failure="memory"):
    """The tests' module, which cannot take more than `most` images at once that are not black."""
    kernel, bias = (tf.constant(values, tf.float32) for values in modules.parameters(8, 0))

    def features(images):
        count = tf.reduce_sum(tf.cast(tf.reduce_max(images, [1, 2, 3]) > 0, tf.int32))
        vectors = modules.network(images, kernel, bias)
        if failure != "memory":  # as cuDNN tells it
            with tf.control_dependencies([tf.debugging.assert_less_equal(count, most, failure)]):
                return {"default": tf.identity(vectors)}
        darkest = tf.reduce_min(images)  # a constant would be folded away, and with it all that is asked for
        extra = tf.fill([tf.where(count > most, tf.constant(EXABYTE // 4, tf.int64), 1)], darkest)
        return {"default": vectors + (tf.reduce_max(extra) - darkest)}

    return modules.save_signature(path / "hungry", features, modules.image_spec((SIDE, SIDE)))


def run(photos, tmp_path, module, flags=""):
    places = f"--image_dir {photos} --cache_dir {tmp_path / 'cache'} --module {module}"
    return command.run(main, f"{places} --engine tensorflow --precision float32 --dtype float32 {flags}".split())


@pytest.mark.parametrize("failure", ["memory", "No algorithm worked! Profiling failure: CUDNN_STATUS_ALLOC_FAILED"])
def test_batches_that_a_device_cannot_hold_get_smaller(tmp_path, photos, capsys, failure):
    module = hungry_module(tmp_path, most=3, failure=failure)
    assert run(photos, tmp_path, module, "--batch_size 10") == 0
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)
    out, err = capsys.readouterr()
    assert "float32 on CPU:0, batches of 2)" in out
    warned = [line for line in err.splitlines() if "warning" in line]
    assert [line.rpartition(" ")[2] for line in warned] == ["5", "2"]
    assert "the memory of CPU:0 cannot hold 10 images at once" in warned[0]


def test_replicas_get_smaller_batches_together(tmp_path, photos):
    script = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from extract.run import extract
from extract.settings import Settings
extract(Settings({str(photos)!r}, {str(tmp_path / "cache")!r}, {hungry_module(tmp_path, most=2)!r}, batch_size=5,
                 precision="float32", dtype="float32", devices="CPU:0,CPU:1"))
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True)
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


def test_a_network_that_no_batch_fits_beside_is_an_error_of_one_line(tmp_path, photos, capsys):
    assert run(photos, tmp_path, hungry_module(tmp_path, most=0)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the memory of CPU:0 cannot hold the network with a single image; use a smaller")


def test_another_error_of_the_network_is_not_taken_for_it(tmp_path, photos):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(photos, tmp_path, hungry_module(tmp_path, most=3, failure="too many"))


DRIVER = r"""
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
"""


@pytest.mark.parametrize("visible", [None, "", "-1", "0"])
def test_gpus_that_tensorflow_cannot_use_are_told_of_unless_they_are_hidden(tmp_path, photos, module, visible):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", library], input=DRIVER, text=True, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    done = subprocess.run(
        [sys.executable, "-m", "extract", *map(str, flags)], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = "warning: the processor runs the network: of the 2 GPUs" in done.stderr
    assert told == (visible in (None, "0"))


@pytest.fixture
def two_gpus(monkeypatch):
    """An old GPU and a new one, as TensorFlow would tell of them."""
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
        ("mixed", ["GPU:0"], "float32"),  # whatever is asked for: grappler would leave it so
    ],
)
def test_the_precision_is_one_that_the_chosen_devices_have(two_gpus, wanted, names, expected):
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
def test_float32_keeps_all_bits_and_leaves_the_process_as_it_was(two_gpus, wanted, before):
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    found = enabled()
    tf.config.experimental.enable_tensor_float_32_execution(before)
    try:
        with devices.running_in(wanted, ["GPU:1"]):
            assert enabled() == (before and wanted != "float32")
        assert enabled() == before
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(found)


@pytest.mark.parametrize(("given", "kept"), [(None, "true"), ("false", "false")])
def test_gpu_memory_is_taken_as_it_is_needed_unless_the_user_says_otherwise(monkeypatch, given, kept):
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", given or "")
    if given is None:
        monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    seen = []
    assert command.run(lambda _: seen.append(os.environ["TF_FORCE_GPU_ALLOW_GROWTH"])) == 0
    assert seen == [kept]
