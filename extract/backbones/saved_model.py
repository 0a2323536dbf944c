"""SavedModels, in whichever format they were written: the function that takes images, and the size of those images.

TensorFlow is imported by `load` alone: `digest` needs none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

from cache.errors import UserError, first_line
from cache.plain_path import plain
from extract.backbones.network import Network, Size, enumerated, pixels

if TYPE_CHECKING:
    import tensorflow as tf

OfImages = Callable[["tf.Tensor"], Any]  # see `Network.call`
Walk = Callable[[str], Iterable[tuple[str, list[str], list[str]]]]  # as os.walk
Open = Callable[[str, str], IO[bytes]]  # as open

FILES = ("saved_model.pb", "saved_model.pbtxt")  # a SavedModel has one of these


def load(module: str, folder: str, image_size: Size | None, *, default_size: Size | None) -> Network:
    """The SavedModel in `folder`, which may be remote. `module` is its name in errors.

    Its image size is the signature's. If that leaves the size open, it is `image_size` or else `default_size`.
    Raises UserError for files that cannot be loaded, if no function takes images, and if the image size remains
    unknown or contradicts the signature.
    """
    import tensorflow as tf

    try:
        remote = (tf.io.gfile.walk, tf.io.gfile.GFile) if "://" in folder else ()
        weights_digest = digest(folder, *remote)
        with plain(folder) as path:
            call, specs = _function_of_images(module, path)
    except UserError:
        raise
    # A SavedModel is somebody's program: a damaged or foreign one may fail with any error.
    except Exception as error:
        place = f" from {folder}" if folder != os.path.expanduser(module) else ""
        raise UserError(f"{module} cannot be loaded as a SavedModel{place}: {first_line(error)}") from error
    return Network(call, _image_size(module, specs, image_size, default_size), weights_digest)


def is_in(folder: str | os.PathLike) -> bool:
    """Whether there is a SavedModel in `folder`, which is local."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in FILES)


def digest(folder: str, walk: Walk = os.walk, open_file: Open = open) -> str:
    """SHA-256, in hex, of the names and contents of a SavedModel's files. Raises OSError.

    `walk` and `open_file` give access to folders that are not local.
    """
    total = hashlib.sha256()
    paths = (os.path.join(parent, file) for parent, _, files in walk(folder) for file in files)
    for name, path in sorted((os.path.relpath(path, folder), path) for path in paths):
        # Other files, such as fingerprint.pb or a README, have no influence on what the model computes.
        if name.startswith(("saved_model.pb", "variables/", "assets/", "tfhub_module.pb")):
            contents = hashlib.sha256()
            with open_file(path, "rb") as file:
                while block := file.read(1 << 20):
                    contents.update(block)
            total.update(os.fsencode(name) + b"\0" + contents.digest())
    return total.hexdigest()


def _function_of_images(module: str, folder: str) -> tuple[OfImages, list[tf.TensorSpec]]:
    """The function of a SavedModel that takes images, to be traced, and the specs of those images.

    Raises UserError if there is no such function, and whatever TensorFlow raises if the files are damaged.
    """
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    # Only TensorFlow 2 writes objects beside the graph.
    written_by_tf2 = parse_saved_model(folder).meta_graphs[0].HasField("object_graph_def")
    call, specs = (_load_tf2 if written_by_tf2 else _load_tf1)(module, folder)
    return call, _specs_of_images(module, specs)


def _image_size(module: str, specs: list[tf.TensorSpec], image_size: Size | None, default_size: Size | None) -> Size:
    """See `load`."""
    sizes = [tuple(spec.shape[1:3]) if spec.shape.rank else (None, None) for spec in specs]
    fixed = {size for size in sizes if None not in size}
    if image_size is None and len(fixed) == 1:
        return fixed.pop()
    wanted = image_size or default_size
    takes = f"{module} takes images of {' or '.join(sorted({pixels(size) for size in sizes}))} pixels"
    if wanted is None:
        raise UserError(f"{takes}: choose a size with --image_size")
    if not any(size[0] in (None, wanted[0]) and size[1] in (None, wanted[1]) for size in sizes):
        raise UserError(f"{takes}, not {pixels(wanted)}: leave out --image_size")
    return wanted


def _load_tf2(module: str, folder: str) -> tuple[OfImages, list[Any]]:
    """TensorFlow 2: the loaded object itself if it can be called, as hub modules can, else its signature."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    if callable(loaded):
        function = loaded.__call__
        arguments = function.function_spec.fullargspec
        options = {"training": False} if "training" in arguments.args + arguments.kwonlyargs else {}
        positional = [concrete.structured_input_signature[0] for concrete in function.concrete_functions]
        return lambda images: loaded(images, **options), [specs[0] for specs in positional if specs]
    signature_name = _signature_name(module, loaded.signatures)
    inputs = loaded.signatures[signature_name].structured_input_signature[1]
    input_name = _only_input(module, inputs)

    def call(images: tf.Tensor) -> Any:
        # By way of `loaded`: a signature alone would not keep its variables alive.
        return loaded.signatures[signature_name](**{input_name: images})

    return call, [inputs[input_name]]


def _load_tf1(module: str, folder: str) -> tuple[OfImages, list[Any]]:
    """TensorFlow 1: the signature of a graph, whose variables are turned into constants in a session.

    tf.saved_model.load reads these too, but leaves the reference variables of old graphs as they are, and a function
    that holds such variables loses their values when it is saved.
    """
    import tensorflow as tf
    from tensorflow.python.eager.wrap_function import function_from_graph_def
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    # A hub module has one graph without tags, for inference, and may have another one for training.
    tag_sets = [set(graph.meta_info_def.tags) for graph in parse_saved_model(folder).meta_graphs]
    tags = next((tags for tags in tag_sets if tags in (set(), {"serve"})), tag_sets[0])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, tags, folder).signature_def
        signature = signatures[_signature_name(module, signatures)]
        image = signature.inputs[_only_input(module, signature.inputs)]
        outputs = {name: tensor.name for name, tensor in signature.outputs.items()}
        graph = convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, session.graph_def, [name.partition(":")[0] for name in outputs.values()]
        )
    function = function_from_graph_def(graph, [image.name], list(outputs.values()))
    spec = tf.TensorSpec(tf.TensorShape(image.tensor_shape), tf.as_dtype(image.dtype))
    return lambda images: dict(zip(outputs, function(images), strict=True)), [spec]


def _signature_name(module: str, signatures: Mapping[str, Any]) -> str:
    # Names like __saved_model_init_op are TensorFlow's own.
    names = sorted(name for name in signatures if not name.startswith("__"))
    for name in ("default", "serving_default"):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise UserError(f"{module} has no signature `serving_default` or `default`: {enumerated(names, 'signatures')}")


def _only_input(module: str, inputs: Mapping[str, Any]) -> str:
    if len(inputs) != 1:
        raise UserError(f"{module} takes other inputs than images: {enumerated(sorted(inputs), 'inputs')}")
    return next(iter(inputs))


def _specs_of_images(module: str, specs: list[Any]) -> list[tf.TensorSpec]:
    """The specs that batches of float32 images match. Raises UserError if there are none."""
    import tensorflow as tf

    tensors = [spec for spec in specs if isinstance(spec, tf.TensorSpec)]
    images = [
        spec for spec in tensors if spec.dtype == tf.float32 and spec.shape.is_compatible_with([None, None, None, 3])
    ]
    if not images:
        inputs = " or ".join(sorted({f"{spec.dtype.name} {spec.shape}" for spec in tensors}))
        raise UserError(
            f"{module} takes {inputs or 'no single tensor'}: a backbone takes images, float32 (None, height, width, 3)"
        )
    batches = [spec for spec in images if not spec.shape.rank or spec.shape[0] is None]
    if not batches:
        size = images[0].shape[0]
        raise UserError(f"{module} takes batches of {size} images only: export it for batches of any size")
    return batches
