"""What the tests share. TensorFlow's log lines are not what they look for."""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    """The path of a small SavedModel."""
    from tests import modules  # TensorFlow, which some of the tests do not need

    return modules.make_tf2_hub_module(tmp_path_factory.mktemp("modules") / "tiny")
