"""Readings of GPUs from drivers that a C compiler makes; pynvml and ctypes load them as they load NVIDIA's."""

import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from extract.engines import nvml
from tests.processes import REPO

# GPU n has the bytes n as its UUID. CUDA_VISIBLE_DEVICES changes CUDA's numbers of the GPUs, but not NVML's.
CUDA = r"""
#include <stdlib.h>
#include <string.h>
static int count(void) { return getenv("CUDA_VISIBLE_DEVICES") ? 1 : 2; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) {
    if (ordinal >= count()) return 101;
    *device = getenv("CUDA_VISIBLE_DEVICES") ? atoi(getenv("CUDA_VISIBLE_DEVICES")) : ordinal;
    return 0;
}
#ifndef OLD
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, device, 16); return 0; }
#endif
"""
NVML = r"""
#include <string.h>
#ifndef KIND
#define KIND "GPU"
#endif
static int devices[2] = {0, 1};
int nvmlInitWithFlags(unsigned flags) {
#ifdef NO_DRIVER
    return 9;
#endif
    return 0;
}
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
const char *nvmlErrorString(int code) { return "made up"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (!strcmp(uuid, KIND "-00000000-0000-0000-0000-000000000000")) *handle = &devices[0];
    else if (!strcmp(uuid, KIND "-01010101-0101-0101-0101-010101010101")) *handle = &devices[1];
    else return 6;
    return 0;
}
#ifndef OLD
int nvmlDeviceGetUtilizationRates(int *device, unsigned *rates) {
#ifdef NO_USE
    return 3;
#endif
    rates[0] = *device ? 40 : 87;
    rates[1] = 99;
    return 0;
}
#endif
int nvmlDeviceGetMemoryInfo(int *device, unsigned long long *memory) {
#ifdef NO_MEMORY
    return 3;
#endif
    memory[0] = 80ULL << 30;
    memory[2] = (*device ? 3ULL : 12ULL) << 30;
    return 0;
}
"""
SOURCES = {"libcuda": CUDA, "libnvidia-ml": NVML}
WATCH = """
import json, sys, threading, time
from extract.engines import nvml
nvml.INTERVAL = 0.02
with nvml.watching(["GPU:0", "GPU:1"]) as gpus:
    while not gpus.latest and any(thread.name == "nvml" for thread in threading.enumerate()):
        time.sleep(0.01)
print(json.dumps([str(gpus), gpus.mean_use(), nvml.count()]))
sys.exit(99 if "tensorflow" in sys.modules else 0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of a library, `libcuda` or `libnvidia-ml`, that was compiled with these macros."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")

    @functools.cache
    def compiled(name, macros):
        folder = tmp_path_factory.mktemp(name)
        command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", folder / f"{name}.so.1"]
        command += [f"-D{macro}" for macro in macros]
        subprocess.run(command, input=SOURCES[name], text=True, check=True)
        return str(folder)

    return compiled


@pytest.fixture
def watch(library):
    """Reads two GPUs, in a process of its own, with drivers that were compiled with these macros.

    None for the macros stands for no such library. Returns the text of the readings, the mean use and the number of
    GPUs that the driver finds.
    """

    def run(nvml_macros=(), cuda_macros=(), **environment):
        folders = []
        for name, macros in (("libcuda", cuda_macros), ("libnvidia-ml", nvml_macros)):
            if macros is not None:
                folders.append(library(name, macros))
            elif _is_there(f"{name}.so.1"):
                pytest.skip(f"this machine has {name}")
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", WATCH],
            cwd=REPO,
            env=inherited | {"LD_LIBRARY_PATH": ":".join(folders)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


def _is_there(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def test_use_and_memory_of_each_gpu(watch):
    assert watch() == ["GPU:0 87% 12/80 GiB, GPU:1 40% 3/80 GiB", 0.635, 2]


def test_cudas_first_gpu_may_be_nvmls_second(watch):
    # CUDA has one GPU only, so there is no reading of GPU:1.
    assert watch(CUDA_VISIBLE_DEVICES="1") == ["GPU:0 40% 3/80 GiB", 0.4, 2]


MEMORY = "GPU:0 12/80 GiB, GPU:1 3/80 GiB"
INCOMPLETE = {
    "no use": ({"nvml_macros": ("NO_USE",)}, [MEMORY, None, 2]),
    "no memory": ({"nvml_macros": ("NO_MEMORY",)}, ["GPU:0 87%, GPU:1 40%", 0.635, 2]),
    "an old driver": ({"nvml_macros": ("OLD",)}, [MEMORY, None, 2]),
    "neither": ({"nvml_macros": ("NO_USE", "NO_MEMORY")}, ["", None, 2]),
    "MIG instances": ({"nvml_macros": ('KIND="MIG"', "NO_USE")}, [MEMORY, None, 2]),
    "other GPUs": ({"nvml_macros": ('KIND="other"',)}, ["", None, 2]),
    "no driver loaded": ({"nvml_macros": ("NO_DRIVER",)}, ["", None, 0]),
    "no NVML": ({"nvml_macros": None}, ["", None, 0]),
    "no CUDA": ({"cuda_macros": None}, ["", None, 2]),
    "an old CUDA": ({"cuda_macros": ("OLD",)}, ["", None, 2]),
    "nothing": ({"nvml_macros": None, "cuda_macros": None}, ["", None, 0]),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_a_driver_does_not_answer_is_left_out_and_nothing_else(watch, case):
    libraries, expected = INCOMPLETE[case]
    assert watch(**libraries) == expected


def test_cpus_are_not_watched():
    with nvml.watching(["CPU:0"]) as gpus:
        assert (str(gpus), gpus.mean_use()) == ("", None)


def test_the_mean_use_counts_the_readings_that_know_it():
    gpus = nvml.Gpus()
    gpus.add([nvml.Reading("GPU:0", 50, None), nvml.Reading("GPU:1", None, None)])
    gpus.add([nvml.Reading("GPU:0", None, None), nvml.Reading("GPU:1", 0, (0, 2**30))])
    assert gpus.mean_use() == 0.25
    assert str(gpus) == "GPU:1 0% 0/1 GiB"
