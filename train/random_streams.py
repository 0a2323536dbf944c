"""The random streams of a run: whatever draws at random has a stream of its own, so that none changes another's."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class RandomStream(IntEnum):
    """What a generator draws: `np.random.default_rng([seed, RandomStream.TEST_SAMPLE])`.

    The numbers are part of what a seed repeats: a stream keeps its number, and a new one gets a new number.
    """

    INITIAL_WEIGHTS = 0
    TRAINING_BATCHES = 1  # a third number counts the draws
    VALIDATION_BATCHES = 2  # a third number is the step
    TEST_SAMPLE = 3
    PROJECTOR_SAMPLE = 4
    LITE_TEST_SAMPLE = 5
    CALIBRATION_SAMPLE = 6
