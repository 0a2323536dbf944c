"""Batches that do not fit into the memory of a device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import tensorflow as tf

import cache
from cache import console
from extract.__main__ import main
from tests import modules
from tests.extract.test_extract import assert_is_view_of
from tests.pictures import SIDE, make_folder
from tests.processes import REPO

EXABYTE = 2**60  # more than a processor can address, so no machine grants that much, however much it overcommits


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("memory") / "photos", {"a": 5, "b": 6})


def save_module(path, zero):
    """The tests' module, plus `zero` of its images and of how many of them are not black."""
    kernel, bias = (tf.constant(values, tf.float32) for values in modules.parameters(dimension=8, seed=0))

    def features(images):
        count = tf.reduce_sum(tf.cast(tf.reduce_max(images, [1, 2, 3]) > 0, tf.int32))
        return {"default": modules.network(images, kernel, bias) + zero(images, count)}

    return modules.save_signature(path, features, modules.image_spec((SIDE, SIDE)))


def hungry_module(path, most):
    """A module that needs an exabyte for more than `most` images at once."""

    def zero(images, count):
        elements = tf.where(count > most, tf.constant(EXABYTE // 4, tf.int64), 1)
        darkest = tf.reduce_min(images)  # no constant, or the array would be folded away
        return tf.reduce_max(tf.fill([elements], darkest)) - darkest

    return save_module(path, zero)


def failing_module(path, most, message):
    """A module that fails with `message` for more than `most` images at once."""

    def zero(images, count):
        with tf.control_dependencies([tf.debugging.assert_less_equal(count, most, message)]):
            return tf.identity(0.0)

    return save_module(path, zero)


def flags(photos, cache_dir, module, *more):
    places = ["--image_dir", photos, "--cache_dir", cache_dir, "--module", module]
    exact = ["--engine", "tensorflow", "--precision", "float32", "--dtype", "float32"]
    return [str(flag) for flag in (*places, *exact, *more)]


CASES = {
    "one device": {"most": 3, "flags": "--devices CPU:0 --batch_size 10"},
    "two devices": {"most": 2, "flags": "--devices CPU:0,CPU:1 --batch_size 5"},
    "no image fits": {"most": 0, "flags": "--devices CPU:0 --batch_size 2"},
}
EXTRACT_EACH = """
import contextlib, io, json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from cache import console
from extract.__main__ import main
outcomes = []
for flags in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = console.run(main, flags)
    outcomes.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(photos, made_once):
    """By case: the cache's folder, and the exit status, standard output and standard error of its extraction."""
    folder, by_case = made_once("memory", partial(extract_each, photos))
    return {case: (folder / f"cache of {case}", *outcome) for case, outcome in by_case.items()}


def extract_each(photos, folder):
    """Runs all cases in one process, on a CPU that TensorFlow takes for two.

    It has no oneDNN, whose allocator waits ten seconds for memory before it gives up.
    """
    arguments = [
        flags(
            photos,
            folder / f"cache of {case}",
            hungry_module(folder / case, options["most"]),
            *options["flags"].split(),
        )
        for case, options in CASES.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", EXTRACT_EACH, json.dumps(arguments)],
        cwd=REPO,
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


def sizes_in_warnings(err):
    """The batch sizes with which an extraction went on."""
    return [int(size) for size in re.findall(r"warning: .* going on with (\d+)$", err, re.MULTILINE)]


def test_batches_that_a_device_cannot_hold_are_halved(photos, outcomes):
    cache_dir, status, out, err = outcomes["one device"]
    assert status == 0
    assert_is_view_of(cache.open(cache_dir), photos)
    assert "float32 on CPU:0, batches of 2)" in out
    assert sizes_in_warnings(err) == [5, 2]
    assert "warning: the memory of CPU:0 cannot hold 10 images at once: going on with 5" in err


def test_the_batches_of_two_devices_are_halved_together(photos, outcomes):
    cache_dir, status, out, err = outcomes["two devices"]
    assert status == 0
    assert_is_view_of(cache.open(cache_dir), photos)
    assert "float32 on CPU:0, CPU:1, batches of 2)" in out
    assert sizes_in_warnings(err) == [2]
    assert "warning: the memory of CPU:0 or CPU:1 cannot hold 5 images at once" in err


def test_a_network_that_a_device_cannot_hold_with_a_single_image_is_an_error_of_one_line(outcomes):
    _, status, _, err = outcomes["no image fits"]
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: the memory of CPU:0 cannot hold the network with a single image; use a smaller")


def test_an_error_of_cudnn_that_states_a_lack_of_memory_counts_as_one(tmp_path, photos, capsys):
    message = "No algorithm worked! Profiling failure: CUDNN_STATUS_ALLOC_FAILED"
    module = failing_module(tmp_path / "module", most=3, message=message)
    assert console.run(main, flags(photos, tmp_path / "cache", module, "--batch_size", 10)) == 0
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)
    out, err = capsys.readouterr()
    assert "float32 on CPU:0, batches of 2)" in out
    assert sizes_in_warnings(err) == [5, 2]


def test_another_error_of_the_network_does_not(tmp_path, photos):
    module = failing_module(tmp_path / "module", most=3, message="too many")
    with pytest.raises(tf.errors.InvalidArgumentError):
        console.run(main, flags(photos, tmp_path / "cache", module))
