"""Fixtures that tests of the cache share."""

import pytest


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A store that does not exist yet. Work on it comes two photos a piece: a few photos make several shards."""
    from cache.store import Store
    from tests.fake_photos import BACKBONE

    monkeypatch.setattr("cache.work.PIECE", 2)
    return Store(tmp_path / "tiny-0123456789abcdef", BACKBONE)
