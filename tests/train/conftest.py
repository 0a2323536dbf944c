"""What the tests of training share: small caches and trained classifiers, which none of them changes."""

import pytest

import cache
from tests import small_cache
from tests.train.runs import WithoutTensorFlow, quick


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Three classes of 50 photos, in two shards of different types."""
    return small_cache.make(tmp_path_factory.mktemp("small"), dtypes=("f2", "f4"))


@pytest.fixture(scope="session")
def opened(cache_dir):
    return cache.open(cache_dir)


@pytest.fixture(scope="session")
def trained(cache_dir, tmp_path_factory):
    """The result of a short run of sgd on `cache_dir`."""
    from train import run

    return run.train(quick(cache_dir, tmp_path_factory.mktemp("trained") / "out"))


@pytest.fixture(scope="session")
def without_tensorflow():
    """Runs commands and fails if they import TensorFlow."""
    process = WithoutTensorFlow()
    yield process
    process.close()
