"""What the tests of backbones share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cache.errors import UserError
from extract import backbones
from tests import modules

INCEPTION = "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/5"


def assert_is_the_network(loaded: backbones.Backbone, image_size: tuple[int, int] = (16, 16)) -> None:
    """The backbone computes what `modules.reference` computes, and only constants are left in it."""
    assert (loaded.image_size, loaded.dimension) == (image_size, 8)
    assert not loaded.features.captured_inputs
    assert not loaded.features.variables
    assert loaded.features.output_shapes.as_list() == [None, 8]
    images = modules.random_images(5, image_size)
    together = loaded.features(tf.constant(images)).numpy()
    np.testing.assert_allclose(together, modules.reference(images), atol=1e-5)
    one_by_one = [loaded.features(tf.constant(image[None])).numpy()[0] for image in images]
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)
    assert loaded.features(tf.constant(images[:0])).shape == (0, 8)


def error_of(module: str, image_size: tuple[int, int] | None = None, kind: type[UserError] = UserError) -> str:
    """The message of the UserError that loading raises, which must be one line."""
    with pytest.raises(kind) as caught:
        backbones.load(module, image_size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def hub_folder(handle: str) -> Path:
    """Where hub's cache keeps a module: according to its documentation, in a folder named by the handle's SHA-1."""
    return Path(os.environ["TFHUB_CACHE_DIR"]) / hashlib.sha1(handle.encode()).hexdigest()
