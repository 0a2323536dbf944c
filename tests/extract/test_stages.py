"""The clocks of the stages, and the sentence that sums them up."""

import re
import time

import pytest

from extract import stages
from extract.stages import DECODING, NETWORK, STARTING, WRITING, Clocks, Setup


def test_time_is_counted_once_for_the_innermost_stage():
    clocks = Clocks()

    def decoded():
        yield from clocks.waiting(DECODING, slow(range(3), 0.02))

    def slow(items, seconds):
        for item in items:
            time.sleep(seconds)
            yield item

    items = []
    for item in clocks.waiting(NETWORK, slow(decoded(), 0.01)):
        with clocks.clock(WRITING):
            time.sleep(0.005)
        items.append(item)
    assert items == [0, 1, 2]
    # sleep() never returns early, so each stage slept at least that long. No second is counted twice.
    assert clocks.seconds[DECODING] >= 3 * 0.02
    assert clocks.seconds[NETWORK] >= 3 * 0.01
    assert clocks.seconds[WRITING] >= 3 * 0.005
    shares = [int(share) for share in re.findall(r" (\d+)%", clocks.shares(3))]
    assert len(shares) == 3
    assert sum(shares) <= 101  # rounding


def test_the_first_wait_can_count_for_another_stage():
    clocks = Clocks()

    def items():
        time.sleep(0.05)
        yield 0
        yield 1

    assert list(clocks.waiting(NETWORK, items(), first=STARTING)) == [0, 1]
    assert clocks.seconds[STARTING] >= 0.05 > clocks.seconds[NETWORK]
    assert re.search(r"2 photos in .*; waited for starting \d+%, the network \d+%$", clocks.shares(2))


def test_a_stage_that_fails_is_still_counted():
    clocks = Clocks()
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
    (STARTED, GPU | {"gpu_use": 0.3}, "too short to say: most of the time went into starting"),
    ({}, CPU, "too short to say: "),
]


@pytest.mark.parametrize(("seconds", "setup", "sentence"), VERDICTS)
def test_the_verdict_names_the_stage_and_the_remedy(seconds, setup, sentence):
    verdict = stages.verdict(seconds, Setup(**setup))
    assert verdict.startswith(sentence) if sentence.startswith("too short") else verdict == sentence
