"""The classifier that the tests of exports share."""

import shutil

import pytest

import cache
from tests import small_cache
from tests.train.runs import quick


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(a folder with `photos` and `moved`, the cache, the result of a run).

    The cache that trained is gone, and its output directory was moved.
    """
    from train import run

    root = tmp_path_factory.mktemp("export")
    cache_dir = small_cache.make(root, dtypes=("f2", "f4"))
    result = run.train(quick(cache_dir, root / "first"))
    opened = cache.open(shutil.copytree(cache_dir, root / "kept"))
    shutil.rmtree(cache_dir)
    shutil.move(root / "first", root / "moved")
    return root, opened, result


@pytest.fixture(scope="session")
def model(world):
    """The SavedModel in `moved`."""
    import tensorflow as tf

    return tf.saved_model.load(str(world[0] / "moved" / "latest/saved_model"))


@pytest.fixture(scope="session")
def photos(world):
    """The paths of the photos, in the cache's order."""
    root, opened, _ = world
    return [root / "photos" / path for path in opened.paths]
