"""Networks of keras.applications."""

from __future__ import annotations

import contextlib
import hashlib
import io
import urllib.error

from cache.errors import UserError, first_line
from extract.backbones.download import timeout, unreachable
from extract.backbones.names import KERAS_MODULES
from extract.backbones.network import Network, Size, pixels


def load(name: str, image_size: Size | None) -> Network:
    """The network `name`, as `KERAS_MODULES` spells it, with its own preprocessing.

    It has the weights of ImageNet and ends in a global average. `image_size` None stands for its default.
    Raises UserError if it cannot be built, UnreachableError if its weights cannot be downloaded.
    """
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UserError(f"keras:{name} needs Keras on TensorFlow, not on {backend}: unset KERAS_BACKEND")
    size = image_size or (KERAS_MODULES[name], KERAS_MODULES[name])
    constructor = getattr(keras.applications, name)
    try:
        # Keras prints its downloads on standard output, which belongs to the command's own results.
        with timeout(), contextlib.redirect_stdout(io.StringIO()):
            model = constructor(include_top=False, weights="imagenet", pooling="avg", input_shape=(*size, 3))
    # Keras raises a bare Exception for a failed download, and any error at all for a damaged file.
    except Exception as error:
        if isinstance(error.__context__ or error, (urllib.error.URLError, TimeoutError)):
            remedy = "put its weights file into ~/.keras/models (or $KERAS_HOME/models)"
            raise unreachable(f"keras:{name}", error, remedy) from error
        problem = f"keras:{name} cannot be built for images of {pixels(size)} pixels"
        raise UserError(f"{problem}: {first_line(error)}") from error

    digest = hashlib.sha256(name.encode())
    for array in model.get_weights():
        digest.update(str(array.shape).encode() + array.tobytes())

    # A network and its preprocess_input share a module: keras.applications.resnet, .mobilenet_v2, ...
    application = getattr(keras.applications, constructor.__module__.rpartition(".")[2])
    return Network(
        lambda images: model(application.preprocess_input(images * 255.0), training=False), size, digest.hexdigest()
    )
