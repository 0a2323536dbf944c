"""Names of modules, as `--module` takes them. Nothing here imports TensorFlow or uses the network."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
import urllib.parse
from pathlib import Path
from typing import Literal

from cache.errors import UserError, first_line
from extract.backbones import efficientnet_lite, saved_model
from extract.settings import DEFAULT_MODULE as DEFAULT

# The tutorial's networks, with the image size that each was published for.
HUB_MODULES = {
    "inception_v3": 299,
    "nasnet_large": 331,
    "pnasnet_large": 331,
    "mobilenet_v1_100_224": 224,
    "mobilenet_v2_100_224": 224,
}

# The networks of keras.applications by their default image size, which only the source code of Keras states.
_KERAS_NAMES_BY_SIZE = {
    224: """ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge
            DenseNet121 DenseNet169 DenseNet201 EfficientNetB0 EfficientNetV2B0
            MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small NASNetMobile
            ResNet50 ResNet101 ResNet152 ResNet50V2 ResNet101V2 ResNet152V2 VGG16 VGG19""",
    240: "EfficientNetB1 EfficientNetV2B1",
    260: "EfficientNetB2 EfficientNetV2B2",
    299: "InceptionResNetV2 InceptionV3 Xception",
    300: "EfficientNetB3 EfficientNetV2B3",
    331: "NASNetLarge",
    380: "EfficientNetB4",
    384: "EfficientNetV2S",
    456: "EfficientNetB5",
    480: "EfficientNetV2M EfficientNetV2L",
    528: "EfficientNetB6",
    600: "EfficientNetB7",
}
KERAS_MODULES = {name: size for size, names in _KERAS_NAMES_BY_SIZE.items() for name in names.split()}

Kind = Literal["built-in", "hub", "keras", "path"]


def parse(module: str) -> tuple[Kind, str]:
    """The kind of a module, and its name among those of its kind: a hub handle, a name in KERAS_MODULES, or a path.

    Raises UserError for a module that does not exist.
    """
    if module == DEFAULT:
        return "built-in", DEFAULT
    if module in HUB_MODULES:
        return "hub", _handle(module)
    if module.startswith(("http://", "https://", "gs://")):
        return "hub", module
    if module.startswith("keras:"):
        return "keras", _keras_name(module.removeprefix("keras:"))
    path = os.path.expanduser(module)
    if os.path.isdir(path):
        if not saved_model.is_in(path):
            raise UserError(f"{module} is no SavedModel: there is no saved_model.pb in it")
        return "path", path
    if os.path.exists(path):
        raise UserError(f"{module} is a file: give the folder of a SavedModel, which holds saved_model.pb")
    if os.sep in module or module.startswith((".", "~")):
        raise UserError(f"{module} does not exist: give the folder of a SavedModel, or one of {_choices()}")
    raise UserError(f"unknown module {module!r}{_suggestion(module)}: give one of {_choices()}")


def identity(module: str) -> str:
    """A text that changes if a module's weights may have changed: a digest of its files, a handle, or a version.

    Raises UserError for a module that does not exist or cannot be read.
    """
    kind, name = parse(module)
    if kind == "built-in":
        return efficientnet_lite.weights_digest()
    if kind == "keras":
        return f"keras:{name} {importlib.metadata.version('keras')}"
    if kind == "hub":
        return name
    try:
        return saved_model.digest(name)
    except OSError as error:
        raise UserError(f"{module} cannot be read: {first_line(error)}") from error


def short_name(module: str) -> str:
    """A name for the module that is safe in a file system, such as `inception_v3` or `keras-ResNet50`.

    Raises UserError for a module that does not exist.
    """
    kind, name = parse(module)
    if kind == "hub":
        short_names = {_handle(short): short for short in HUB_MODULES}
        name = short_names.get(name) or urllib.parse.urlsplit(name).path
    elif kind == "keras":
        name = f"keras-{name}"
    elif kind == "path":
        name = Path(name).resolve().name
    # The end of a long handle says more than its beginning. A dot in front would hide the folder.
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[-64:].strip("-.") or "module"


def _handle(short: str) -> str:
    return f"https://tfhub.dev/google/imagenet/{short}/feature_vector/5"


def _keras_name(name: str) -> str:
    for known in KERAS_MODULES:
        if known.lower() == name.lower():
            return known
    known_names = ", ".join(sorted(KERAS_MODULES))
    raise UserError(f"keras.applications has no {name!r}{_suggestion(name)}: it has {known_names}")


def _suggestion(name: str) -> str:
    """` (did you mean ...?)`, or nothing if no name is similar."""
    modules = {known: known for known in (DEFAULT, *HUB_MODULES)}
    modules |= {known.lower(): f"keras:{known}" for known in KERAS_MODULES}
    similar = [modules[match] for match in difflib.get_close_matches(name.lower(), modules, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""


def _choices() -> str:
    names = ", ".join((DEFAULT, *HUB_MODULES))
    return f"{names}, keras:NAME, a TensorFlow Hub URL, or the path of a SavedModel"
