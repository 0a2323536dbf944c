"""The clocks of the stages."""

import re
import time

from extract.monitor import Monitor


def test_time_is_counted_once_for_the_innermost_stage():
    monitor = Monitor()

    def decoded():
        yield from monitor.waiting("decoding", slow(range(3), 0.02))

    def slow(items, seconds):
        for item in items:
            time.sleep(seconds)
            yield item

    seen = []
    for item in monitor.waiting("network", slow(decoded(), 0.01)):
        with monitor.clock("writing"):
            time.sleep(0.005)
        seen.append(item)
    assert seen == [0, 1, 2]
    # sleep() never returns early: these are what each stage slept at least, and no second is counted twice.
    assert monitor.seconds["decoding"] >= 3 * 0.02
    assert monitor.seconds["network"] >= 3 * 0.01
    assert monitor.seconds["writing"] >= 3 * 0.005
    shares = [int(share) for share in re.findall(r" (\d+)%", monitor.verdict(3))]
    assert len(shares) == 3
    assert sum(shares) <= 101  # rounding


def test_a_stage_that_fails_is_still_counted():
    monitor = Monitor()
    try:
        with monitor.clock("network"), monitor.clock("decoding"):
            raise ValueError
    except ValueError:
        pass
    with monitor.clock("writing"):
        pass
    assert set(monitor.seconds) == {"network", "decoding", "writing"}
    assert min(monitor.seconds.values()) >= 0
