"""Batches of every size give the bottlenecks that the extraction has cached."""

import asyncio
import contextlib
import importlib.util
import itertools
import threading
import time

import numpy as np
import pytest

import cache
from extract import backbones, engines
from extract.service import network
from extract.service.batcher import Batcher
from extract.service.metrics import Metrics
from extract.service.refused import DeadError, Refused
from extract.service.settings import ServeSettings
from tests.extract.engines.test_memory import hungry_module
from tests.extract.service import serving
from tests.extract.service.gated import GatedEngine
from tests.extract.service.reference import ROUNDING

ENGINES = ["tensorflow", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
LATER = 3600.0  # seconds


@pytest.fixture(scope="module")
def known(served):
    """Photos, and the bottlenecks that the cache has of them: float32 [n, D]."""
    count = 3 * serving.PHOTOS
    opened = cache.open(served / "cache")
    rows = [list(opened.paths).index(path) for path in serving.photo_paths(count)]
    return serving.photos(served, count), opened.bottlenecks(np.array(rows))


@pytest.fixture(scope="module", params=ENGINES)
def loaded(request, served):
    settings = ServeSettings(cache_dir=served / "cache", engine=request.param, precision="float32")
    with contextlib.ExitStack() as open_until_the_end:
        yield network.load(settings, network.find(settings), open_until_the_end)


class Driven:
    """A batcher whose engines wait while `hold` is there."""

    def __init__(self, ladder, decode, folder):
        self.hold = folder / "hold"
        self.sizes, self.deaths = [], []
        self.metrics = Metrics(lambda images, _: self.sizes.append(images))
        gated = {rung: GatedEngine(engine, folder) for rung, engine in ladder.items()}
        self.in_flight = max(engine.in_flight for engine in ladder.values())
        self.batcher = Batcher(gated, decode, 2, self.metrics, self.deaths.append)
        self.batcher.open()

    def submit(self, content, deadline=LATER):
        return self.batcher.submit(content, time.monotonic() + deadline)

    async def fill(self, content):
        """Submits images until every slot has a batch of one, and returns their answers."""
        self.hold.touch()
        before, answers = self.started(), []
        for _ in range(self.in_flight):
            answers.append(self.submit(content))
            await until(lambda: self.started() == before + len(answers))
        return answers

    def metric(self, name):
        [line] = [line for line in self.metrics.text().decode().splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def started(self):
        return self.metric("retrain_batch_images_count")

    async def decoded(self, count):
        await until(lambda: len(self.batcher._ready) == count)


async def until(is_so):
    end = time.monotonic() + serving.PATIENCE
    while not is_so():
        assert time.monotonic() < end, "nothing comes"
        await asyncio.sleep(0.002)


@pytest.fixture
def drive(loaded, tmp_path):
    """`drive(work)` runs the coroutine `work(driven)`, with a batcher on the ladder of the network or another one."""

    def run(work, ladder=None, decode=None):
        async def whole():
            driven = Driven(ladder or loaded.ladder, decode or loaded.decode, tmp_path)
            try:
                await asyncio.wait_for(work(driven), serving.PATIENCE)
            finally:
                driven.hold.unlink(missing_ok=True)
                driven.batcher.close()

        asyncio.run(whole())

    return run


def test_the_ladder_doubles(loaded):
    rungs = list(loaded.ladder)
    assert rungs[0] == 1 and all(b == 2 * a for a, b in itertools.pairwise(rungs))


def test_at_every_size_of_batch_the_bottlenecks_are_those_of_the_cache(drive, loaded, known):
    contents, wanted = known
    largest = max(loaded.ladder)

    async def work(driven):
        for size in range(1, largest + 1):
            driven.sizes.clear()
            before = driven.started(), driven.metric("retrain_batch_images_sum")
            first = together(await driven.fill(contents[0]))
            batch = together([driven.submit(content) for content in contents[:size]])
            await driven.decoded(size)
            driven.hold.unlink()
            assert_bottlenecks(await first, wanted[[0] * driven.in_flight])
            assert_bottlenecks(await batch, wanted[:size])
            # One batch, and not of each image alone or in any other division.
            assert driven.sizes == [1] * driven.in_flight + [size]
            batches, images = driven.started() - before[0], driven.metric("retrain_batch_images_sum") - before[1]
            assert (batches, images) == (driven.in_flight + 1, driven.in_flight + size)

    drive(work)


def test_more_than_the_largest_batch_are_several(drive, loaded, known):
    contents, wanted = known
    largest = max(loaded.ladder)
    places = [n % len(contents) for n in range(2 * largest + 3)]

    async def work(driven):
        first = together(await driven.fill(contents[0]))
        rest = together([driven.submit(contents[place]) for place in places])
        await driven.decoded(len(places))
        driven.hold.unlink()
        await first
        assert_bottlenecks(await rest, wanted[places])
        assert driven.sizes == [1] * driven.in_flight + [largest, largest, 3]

    drive(work)


def test_who_is_gone_or_late_takes_no_place_in_a_batch(drive, known):
    contents, wanted = known

    async def work(driven):
        first = together(await driven.fill(contents[0]))
        gone, late, there = (
            driven.submit(contents[1]),
            driven.submit(contents[2], 0.3),
            driven.submit(contents[3]),
        )
        await driven.decoded(3)
        gone.cancel()
        await asyncio.sleep(0.4)
        driven.hold.unlink()
        await first
        np.testing.assert_allclose(await there, wanted[3], rtol=0, atol=ROUNDING)
        with pytest.raises(Refused) as caught:
            await late
        assert (caught.value.status, "--deadline_seconds" in caught.value.message) == (503, True)
        assert gone.cancelled()
        assert driven.sizes == [1] * driven.in_flight + [1]

    drive(work)


def test_a_broken_image_fails_alone(drive, known):
    contents, wanted = known

    async def work(driven):
        broken = driven.submit(contents[1][:-50])
        whole = driven.submit(contents[2])
        with pytest.raises(Refused) as caught:
            await broken
        assert (caught.value.status, caught.value.reason) == (422, "image")
        np.testing.assert_allclose(await whole, wanted[2], rtol=0, atol=ROUNDING)

    drive(work)


def test_when_the_network_fails_everybody_is_told(drive, loaded, known, tmp_path):
    """Those whose batch runs or fails, those that are ready, and those that are still being decoded."""
    contents, _ = known
    decodes, may_decode = threading.Event(), threading.Event()

    def decode(content):
        if content == b"slow":
            decodes.set()
            assert may_decode.wait(serving.PATIENCE)
        return loaded.decode(contents[0])

    async def work(driven):
        slots = driven.in_flight
        running = await driven.fill(contents[0])
        slow = driven.submit(b"slow")
        failing = driven.submit(contents[1])
        await until(decodes.is_set)
        await driven.decoded(1)
        (tmp_path / "fail").touch()
        driven.hold.unlink()
        ends = await asyncio.gather(*running, slow, failing, return_exceptions=True)
        may_decode.set()
        # The first of the running ones frees the slot of the one that fails, and may have been answered before.
        assert all(isinstance(end, DeadError) for end in ends[slots:]), ends
        assert all(isinstance(end, (DeadError, np.ndarray)) for end in ends[:slots])
        [reason] = driven.deaths
        assert "the device has fallen off the bus" in reason
        with pytest.raises(DeadError):
            await driven.submit(contents[0])

    try:
        drive(work, decode=decode)
    finally:
        may_decode.set()
        (tmp_path / "fail").unlink(missing_ok=True)


class Narrow(GatedEngine):
    """An engine that bears one batch at a time, as one for another batch size may, and notices a second one."""

    def __init__(self, inner, folder):
        super().__init__(inner, folder)
        self.in_flight, self.most, self._now = 1, 0, 0

    def start(self, images):
        self._now += 1
        self.most = max(self.most, self._now)
        fetch = super().start(images)

        def fetch_and_count():
            found = fetch()
            self._now -= 1
            return found

        return fetch_and_count


def test_no_engine_gets_more_batches_than_it_bears(drive, loaded, known, tmp_path):
    contents, wanted = known
    narrow = Narrow(loaded.ladder[1], tmp_path)

    async def work(driven):
        assert driven.in_flight > 1
        driven.hold.touch()
        answers = []
        for count in range(1, 4):
            answers.append(driven.submit(contents[count]))
            # Taken one by one, so that each is a batch of its own: what waits for its engine is no longer ready.
            await until(lambda: driven.batcher.images == max(0, len(answers) - 2))
        driven.hold.unlink()
        assert_bottlenecks(await asyncio.gather(*answers), wanted[1:4])
        assert narrow.most == 1

    drive(work, ladder={**loaded.ladder, 1: narrow})


def together(answers):
    return asyncio.gather(*answers)


def assert_bottlenecks(found, wanted):
    np.testing.assert_allclose(np.array(found), wanted, rtol=0, atol=ROUNDING)


def test_what_does_not_fit_into_memory_goes_in_halves(drive, loaded, tmp_path, known):
    """The rungs above what fits warn once, when the service starts, and answer all the same."""
    if loaded.ladder[1].name != "tensorflow":
        pytest.skip("only this engine halves")
    backbone = backbones.load(hungry_module(tmp_path / "hungry", most=2), None)
    ladder = {
        size: engines.build("tensorflow", backbone, ["CPU:0"], precision="float32", batch_size=size)
        for size in (1, 2, 4, 8)
    }
    contents, wanted = known  # a module of the same weights has made these

    async def work(driven):
        assert [engine.images_at_once for engine in ladder.values()] == [1, 2, 4, 8]  # a black image counts for none
        first = together(await driven.fill(contents[0]))
        batch = together([driven.submit(content) for content in contents[:7]])
        await driven.decoded(7)
        driven.hold.unlink()
        await first
        with pytest.warns(UserWarning, match="images at once: going on with"):
            assert_bottlenecks(await batch, wanted[:7])
        assert [engine.images_at_once for engine in ladder.values()] == [1, 2, 4, 2]
        assert driven.sizes == [1] * driven.in_flight + [7] and not driven.deaths

    drive(work, ladder=ladder)
