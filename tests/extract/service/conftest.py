"""What the tests of the service share: something to serve, and a server that all tests may ask and none may stop."""

import pytest

from tests.extract.service import serving


@pytest.fixture(scope="session")
def served(made_once):
    """A folder with photos, their cache and a classifier, see `serving.make`. Tests do not change it."""
    return made_once("served", serving.make)[0]


@pytest.fixture(scope="session")
def server(served):
    """The service on `served`, for tests that leave it as it is. It must end well after all of them."""
    running = serving.Server(served)
    yield running
    assert running.process.poll() is None, "".join(running.said)
    status = running.stop()
    said = "".join(running.said)
    assert status == 0 and "Traceback" not in said, said


@pytest.fixture(scope="session")
def wanted(served):
    """What the service must answer of the first photos, computed in other ways."""
    from tests.extract.service import reference

    return reference.expected(served)
