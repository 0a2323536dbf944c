"""The batches of gradient descent: which images each step gets, and how the steps are cut into calls of a graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from train.data.batches import Images, is_resident
from train.random_streams import RandomStream

LONGEST_CALL = 400  # steps per graph call; Ctrl-C and the progress bar wait that long
SHUFFLE_BYTES = 32 << 20  # of bottlenecks of a set that is not resident, read in runs and mixed before they are batches
RUN_BYTES = 128 << 10  # of a run at most: as much as systems read ahead
RUNS_OF_CLASS = 8  # in a buffer, on average, so that a cache sorted by class still gives fair batches
_STEPS_AT_ONCE = 100  # at most, whose batches one generator draws


@dataclass(frozen=True, eq=False)
class Schedule:
    """The batches of all steps of a run, drawn at random.

    A step's batch depends on the seed and the step alone, however the steps are cut into calls. So a run that was
    interrupted ends as it would have.
    """

    images: Images
    batch_size: int
    balanced: bool  # whether each class is as likely as any other, or each image
    seed: int

    @property
    def longest_call(self) -> int:
        """Steps in one call at most. Of a set that is not resident, their bottlenecks fill the shuffle buffer."""
        if is_resident(self.images):
            return LONGEST_CALL
        return max(1, min(_STEPS_AT_ONCE, SHUFFLE_BYTES // (self.images.row_bytes * self.batch_size)))

    @property
    def run(self) -> int:
        """How many adjacent images are drawn together."""
        return run_length(self.images, self._steps_at_once * self.batch_size)

    @property
    def _steps_at_once(self) -> int:
        return min(_STEPS_AT_ONCE, self.longest_call)

    def calls(self, done: int, steps: int, intervals: Sequence[int], points: int) -> Iterator[list[int]]:
        """For each call, the steps after which the head is wanted: multiples of any of `intervals`, and its last step.

        The calls go from step `done` to `steps`. Each has `points` such heads at most, and ends at a multiple of
        `longest_call` at the latest.
        """
        longest, ends = self.longest_call, list[int]()
        while done < steps:
            done = min(steps, *((done // every + 1) * every for every in (longest, *intervals)))
            ends.append(done)
            if done == steps or done % longest == 0 or len(ends) == points:
                yield ends
                ends = []

    def batches(self, done: int, ends: Iterable[int]) -> Iterator[np.ndarray]:
        """The batches from step `done` to each of `ends` in turn: places in `images.by_class`, int64 [K, B].

        The batches of several steps are drawn at once: of a set that is not resident, as many as fill the shuffle
        buffer.
        """

        @functools.lru_cache(2)
        def draws(number: int) -> np.ndarray:
            generator = np.random.default_rng([self.seed, RandomStream.TRAINING_BATCHES, number])
            shape = self._steps_at_once, self.batch_size
            return draw(self.images, generator, shape, balanced=self.balanced, run=self.run)

        for end in ends:
            parts = []
            while done < end:
                number, first = divmod(done, self._steps_at_once)
                parts.append(draws(number)[first : first + end - done])
                done += len(parts[-1])
            yield np.concatenate(parts)


def draw(
    images: Images, generator: np.random.Generator, shape: tuple[int, ...], *, balanced: bool = True, run: int = 1
) -> np.ndarray:
    """Places in the rows of `images.by_class`, int64 of that shape: a class uniformly, then one of its images.

    So classes are balanced whatever their sizes, as in the tutorial. Classes without an image are not drawn. If not
    `balanced`, every image is as likely as any other. With each image come the ones after it, `run` in all, from the
    last image of the class on to its first; then all are mixed.
    """
    rows, starts, counts = images.by_class
    if not balanced:
        starts, counts = np.zeros(1, np.int64), np.array([len(rows)])
    size = math.prod(shape)
    classes = generator.integers(len(starts), size=-(-size // run))
    places = generator.integers(counts[classes])
    if run > 1:
        classes, places = np.repeat(classes, run), (places[:, np.newaxis] + np.arange(run)).reshape(-1)
        order = generator.permutation(len(places))[:size]
        classes, places = classes[order], places[order] % counts[classes[order]]
    return (starts[classes] + places).reshape(shape)


def run_length(images: Images, count: int) -> int:
    """How many adjacent images are drawn together if `count` images are drawn at once; 1 for a resident set."""
    if is_resident(images):
        return 1
    _, starts, _ = images.by_class
    return max(1, min(RUN_BYTES // images.row_bytes, count // (RUNS_OF_CLASS * len(starts))))
