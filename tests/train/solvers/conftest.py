"""The cache that the solvers' tests share."""

import pytest

from tests import small_cache
from tests.problems import COUNTS


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Classes of different sizes, whose photos are neighbours, as an extraction leaves them."""
    return small_cache.open_with(tmp_path_factory.mktemp("solvers"), counts=COUNTS, dtypes=("f2", "f4"), noise=60)
