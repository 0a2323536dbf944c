"""The clocks of the stages, the readings of the GPUs, and the sentence about both."""

import ctypes
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.bar import bar
from extract import monitor, nvml
from extract.monitor import DECODING, NETWORK, STARTING, WRITING, Monitor, Setup

REPO = Path(__file__).resolve().parent.parent


def test_time_is_counted_once_for_the_innermost_stage():
    clocks = Monitor()

    def decoded():
        yield from clocks.waiting(DECODING, slow(range(3), 0.02))

    def slow(items, seconds):
        for item in items:
            time.sleep(seconds)
            yield item

    seen = []
    for item in clocks.waiting(NETWORK, slow(decoded(), 0.01)):
        with clocks.clock(WRITING):
            time.sleep(0.005)
        seen.append(item)
    assert seen == [0, 1, 2]
    # sleep() never returns early: these are what each stage slept at least, and no second is counted twice.
    assert clocks.seconds[DECODING] >= 3 * 0.02
    assert clocks.seconds[NETWORK] >= 3 * 0.01
    assert clocks.seconds[WRITING] >= 3 * 0.005
    shares = [int(share) for share in re.findall(r" (\d+)%", clocks.shares(3))]
    assert len(shares) == 3
    assert sum(shares) <= 101  # rounding


def test_the_first_wait_can_count_for_another_stage():
    clocks = Monitor()

    def items():
        time.sleep(0.05)
        yield 0
        yield 1

    assert list(clocks.waiting(NETWORK, items(), first=STARTING)) == [0, 1]
    assert clocks.seconds[STARTING] >= 0.05 > clocks.seconds[NETWORK]
    assert re.search(r"2 images in .*; waited for starting \d+%, the network \d+%$", clocks.shares(2))


def test_a_stage_that_fails_is_still_counted():
    clocks = Monitor()
    try:
        with clocks.clock(NETWORK), clocks.clock(DECODING):
            raise ValueError
    except ValueError:
        pass
    with clocks.clock(WRITING):
        pass
    assert set(clocks.seconds) == {NETWORK, DECODING, WRITING}
    assert min(clocks.seconds.values()) >= 0


DECODE_BOUND = {STARTING: 5, DECODING: 70, NETWORK: 20, WRITING: 5}
NETWORK_BOUND = {STARTING: 5, DECODING: 5, NETWORK: 85, WRITING: 5}
WRITE_BOUND = {STARTING: 5, DECODING: 10, NETWORK: 5, WRITING: 80}
BALANCED = {STARTING: 5, DECODING: 40, NETWORK: 40, WRITING: 15}
STARTED = {STARTING: 20, DECODING: 1, NETWORK: 2}
CPU = {"gpus": 0, "cores": 8, "threads": 8}
GPU = {"gpus": 1, "cores": 16, "threads": 16}
VERDICTS = [
    (
        DECODE_BOUND,
        GPU | {"gpu_use": 0.41},
        "decode-bound: the GPU was busy 41% of the time; more CPU cores would help",
    ),
    (
        DECODE_BOUND,
        GPU | {"gpu_use": 0.41, "threads": 4},
        "decode-bound: the GPU was busy 41% of the time; more --decode_threads (now 4 on 16 cores) would help",
    ),
    (DECODE_BOUND, GPU, "decode-bound: more CPU cores would help"),
    (DECODE_BOUND, CPU, "decode-bound: more CPU cores (decoding and the network share them) would help"),
    (DECODE_BOUND, CPU | {"threads": 2}, "decode-bound: more --decode_threads (now 2 on 8 cores) would help"),
    (
        NETWORK_BOUND,
        GPU | {"gpus": 4, "gpu_use": 0.968},
        "network-bound: the GPUs were busy 97% of the time; more or faster GPUs would help",
    ),
    (NETWORK_BOUND, GPU, "network-bound: more or faster GPUs would help"),
    (
        NETWORK_BOUND,
        GPU | {"faster_precision": True},
        "network-bound: --precision auto, or more or faster GPUs would help",
    ),
    (
        NETWORK_BOUND,
        GPU | {"gpu_use": 0.12, "faster_precision": True},
        "network-bound: the GPU was busy 12% of the time; "
        "it waits for work to be copied and started, where a larger --batch_size would help",
    ),
    (
        NETWORK_BOUND,
        CPU,
        "network-bound: a GPU, or more CPU cores (decoding and the network share them) would help",
    ),
    (
        NETWORK_BOUND,
        CPU | {"faster_engine": True, "faster_precision": True},
        "network-bound: --precision auto, or --engine openvino, or a GPU, or more CPU cores "
        "(decoding and the network share them) would help",
    ),
    (
        WRITE_BOUND,
        GPU | {"gpu_use": 0.05},
        "write-bound: the GPU was busy 5% of the time; a faster disk for --cache_dir would help",
    ),
    (WRITE_BOUND, CPU, "write-bound: a faster disk for --cache_dir would help"),
    (BALANCED, GPU | {"gpu_use": 0.0}, "balanced: the GPU was busy 0% of the time; no stage holds up the others"),
    (BALANCED, CPU, "balanced: no stage holds up the others"),
    (STARTED, GPU | {"gpu_use": 0.3}, "too short to tell: most of the time went into starting"),
    ({}, CPU, "too short to tell: "),
]


@pytest.mark.parametrize(("seconds", "setup", "sentence"), VERDICTS)
def test_the_verdict_names_the_stage_and_the_remedy(seconds, setup, sentence):
    found = monitor.verdict(seconds, Setup(**setup))
    assert found.startswith(sentence) if sentence.startswith("too short") else found == sentence


# Drivers as a C compiler makes them: pynvml and ctypes load them as they load NVIDIA's. GPU n has the bytes n as its
# UUID; CUDA's numbers go through CUDA_VISIBLE_DEVICES, NVML's do not.
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
WATCH = """
import sys, time
from extract import nvml
nvml.INTERVAL = 0.05
with nvml.watching(["GPU:0", "GPU:1"]) as gpus:
    time.sleep(0.5)
print(f"{gpus}; {gpus.mean_use()}")
sys.exit(99 if "tensorflow" in sys.modules else 0)
"""


@pytest.fixture
def watch(tmp_path):
    """Watches two GPUs in a process whose drivers were compiled with these macros; None: there is no such library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")

    def run(nvml_macros=(), cuda_macros=(), **environment):
        for name, source, macros in (("libcuda", CUDA, cuda_macros), ("libnvidia-ml", NVML, nvml_macros)):
            if macros is not None:
                command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", tmp_path / f"{name}.so.1"]
                command += [f"-D{macro}" for macro in macros]
                subprocess.run(command, input=source, text=True, check=True)
            elif _is_there(f"{name}.so.1"):
                pytest.skip(f"this machine has {name}")
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", WATCH],
            cwd=REPO,
            env=inherited | {"LD_LIBRARY_PATH": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


def _is_there(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def test_use_and_memory_of_each_gpu(watch):
    assert watch() == "GPU:0 87% 12/80 GiB, GPU:1 40% 3/80 GiB; 0.635"


def test_cudas_first_gpu_may_be_nvmls_second(watch):
    # CUDA shows one GPU: the other name of TensorFlow's that is asked for has no figures.
    assert watch(CUDA_VISIBLE_DEVICES="1") == "GPU:0 40% 3/80 GiB; 0.4"


HALVES = {
    "no use": ({"nvml_macros": ["NO_USE"]}, "GPU:0 12/80 GiB, GPU:1 3/80 GiB; None"),
    "no memory": ({"nvml_macros": ["NO_MEMORY"]}, "GPU:0 87%, GPU:1 40%; 0.635"),
    "an old driver": ({"nvml_macros": ["OLD"]}, "GPU:0 12/80 GiB, GPU:1 3/80 GiB; None"),
    "neither": ({"nvml_macros": ["NO_USE", "NO_MEMORY"]}, "; None"),
    "MIG instances": ({"nvml_macros": ['KIND="MIG"', "NO_USE"]}, "GPU:0 12/80 GiB, GPU:1 3/80 GiB; None"),
    "other GPUs": ({"nvml_macros": ['KIND="other"']}, "; None"),
    "no driver loaded": ({"nvml_macros": ["NO_DRIVER"]}, "; None"),
    "no NVML": ({"nvml_macros": None}, "; None"),
    "no CUDA": ({"cuda_macros": None}, "; None"),
    "an old CUDA": ({"cuda_macros": ["OLD"]}, "; None"),
    "nothing": ({"nvml_macros": None, "cuda_macros": None}, "; None"),
}


@pytest.mark.parametrize("case", HALVES)
def test_what_is_not_answered_is_left_out_and_nothing_else(watch, case):
    libraries, shown = HALVES[case]
    assert watch(**libraries) == shown


def test_processors_are_not_watched():
    with nvml.watching(["CPU:0"]) as gpus:
        assert (str(gpus), gpus.mean_use()) == ("", None)


def test_a_gpu_that_answers_now_and_then_counts_when_it_does():
    gpus = nvml.Gpus()
    gpus.add([nvml.Reading("GPU:0", 50, None), nvml.Reading("GPU:1", None, None)])
    gpus.add([nvml.Reading("GPU:0", None, None), nvml.Reading("GPU:1", 0, (0, 2**30))])
    assert gpus.mean_use() == 0.25
    assert str(gpus) == "GPU:1 0% 0/1 GiB"


@pytest.mark.parametrize("place", ["terminal", "notebook", "log"])
def test_the_bar_does_not_fill_a_log(monkeypatch, place):
    to = io.StringIO()
    to.isatty = lambda: place == "terminal"
    if place == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr(sys, "stderr", to)
    with bar(desc="extract", total=10) as shown:
        for _ in range(10):
            time.sleep(0.05)
            shown.update(1)
    states = to.getvalue().count("\r")
    assert states > 4 if place != "log" else 2 <= states <= 3  # at the start and at the end
    assert "10/10" in to.getvalue()
