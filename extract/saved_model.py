"""What a SavedModel computes, in whichever of its formats it was written, and on which images.

TensorFlow is imported by `entry` alone: `digest` and `image_size` need none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cache.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

Size = tuple[int, int]  # height, width in pixels
Network = Callable[["tf.Tensor"], Any]  # images float32 [N, H, W, 3] -> a tensor, or tensors by name


def entry(module: str, folder: str) -> tuple[Network, list[tf.TensorSpec]]:
    """The function of a SavedModel that takes images, to be traced, and the specs of those images.

    `module` is what errors call it. Raises UserError if no such function is there, and whatever TensorFlow
    raises if the files are damaged.
    """
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    # Only TensorFlow 2 writes objects beside the graph.
    written_by_tf2 = parse_saved_model(folder).meta_graphs[0].HasField("object_graph_def")
    network, specs = (_of_objects if written_by_tf2 else _of_graph)(module, folder)
    return network, _of_images(module, specs)


def image_size(module: str, specs: list[tf.TensorSpec], given: Size | None = None, default: Size | None = None) -> Size:
    """The image size to use: the signature's, or where that leaves it open the given one or else the default.

    Raises UserError if that leaves it undecided, or if the given size contradicts the signature.
    """
    sizes = [tuple(spec.shape[1:3]) if spec.shape.rank else (None, None) for spec in specs]
    fixed = {size for size in sizes if None not in size}
    if given is None and len(fixed) == 1:
        return fixed.pop()
    wanted = given or default
    takes = f"{module} takes images of {' or '.join(sorted({pixels(size) for size in sizes}))} pixels"
    if wanted is None:
        raise UserError(f"{takes}: say which size with --image_size")
    if not any(size[0] in (None, wanted[0]) and size[1] in (None, wanted[1]) for size in sizes):
        raise UserError(f"{takes}, not {pixels(wanted)}: leave out --image_size")
    return wanted


def pixels(size: tuple[int | None, ...]) -> str:
    """`299 by 299`, or `any by any` where a signature leaves it open."""
    return " by ".join("any" if length is None else str(length) for length in size)


def listed(names: list[str], what: str) -> str:
    return f"its {what} are {', '.join(names)}" if names else f"it has no {what}"


def digest(folder: str, walk: Callable[[str], Any] = os.walk, opened: Callable[[str, str], Any] = open) -> str:
    """SHA-256, in hex, of the names and contents of a SavedModel's files, wherever the folder is."""
    total = hashlib.sha256()
    paths = (os.path.join(parent, file) for parent, _, files in walk(folder) for file in files)
    for name, path in sorted((os.path.relpath(path, folder), path) for path in paths):
        # Other files, such as fingerprint.pb or a README, have no bearing on what the model computes.
        if name.startswith(("saved_model.pb", "variables/", "assets/", "tfhub_module.pb")):
            contents = hashlib.sha256()
            with opened(path, "rb") as file:
                while block := file.read(1 << 20):
                    contents.update(block)
            total.update(name.encode() + b"\0" + contents.digest())
    return total.hexdigest()


def _of_objects(module: str, folder: str) -> tuple[Network, list[Any]]:
    """TensorFlow 2: the loaded object itself if it can be called, as hub modules can, else its signature."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    if callable(loaded):
        call = loaded.__call__
        arguments = call.function_spec.fullargspec
        options = {"training": False} if "training" in arguments.args + arguments.kwonlyargs else {}
        positional = [concrete.structured_input_signature[0] for concrete in call.concrete_functions]
        return lambda images: loaded(images, **options), [specs[0] for specs in positional if specs]
    signature = loaded.signatures[_signature_name(module, loaded.signatures)]
    inputs = signature.structured_input_signature[1]
    name = _only_input(module, inputs)
    # The network holds on to `loaded`, whose variables a signature alone would let go.
    return lambda images, _owner=loaded: signature(**{name: images}), [inputs[name]]


def _of_graph(module: str, folder: str) -> tuple[Network, list[Any]]:
    """TensorFlow 1: the signature of a graph, its variables made constants in a session.

    tf.saved_model.load reads these too, but leaves the reference variables of old graphs as they are, and a
    function with those in it loses their values when it is saved.
    """
    import tensorflow as tf
    from tensorflow.python.eager.wrap_function import function_from_graph_def
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    # A hub module has one graph without tags, to infer with, and may have another to train with.
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
    found = listed(names, "signatures")
    raise UserError(f"{module} has no signature `serving_default` or `default`: {found}")


def _only_input(module: str, inputs: Mapping[str, Any]) -> str:
    if len(inputs) != 1:
        raise UserError(f"{module} does not take images alone: {listed(sorted(inputs), 'inputs')}")
    return next(iter(inputs))


def _of_images(module: str, specs: list[Any]) -> list[tf.TensorSpec]:
    """Those of the specs that batches of float32 images fit."""
    import tensorflow as tf

    tensors = [spec for spec in specs if isinstance(spec, tf.TensorSpec)]
    images = [
        spec for spec in tensors if spec.dtype == tf.float32 and spec.shape.is_compatible_with([None, None, None, 3])
    ]
    if not images:
        found = " or ".join(sorted({f"{spec.dtype.name} {spec.shape}" for spec in tensors}))
        raise UserError(
            f"{module} takes {found or 'no single tensor'}: a backbone takes images, float32 (None, height, width, 3)"
        )
    batches = [spec for spec in images if not spec.shape.rank or spec.shape[0] is None]
    if not batches:
        size = images[0].shape[0]
        raise UserError(f"{module} takes batches of {size} images only: export it for batches of any size")
    return batches
