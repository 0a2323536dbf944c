"""What to write instead of a flag that a command does not have: another command's, or one of older scripts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence

EXTRACT, TRAIN, PREDICT = "python -m extract", "python -m train", "python -m train.predict"
_AUGMENT = f"`{EXTRACT} --augment 5` makes random changes, once"
_TFLITE = f"`{TRAIN} --tflite float16` writes the file, with its labels, into --output_dir"
_PREDICT = f"`{PREDICT} --model retrained photo.jpg` labels photos; it reads labels and sizes from the model"
_NO_EPOCHS = f"the default solver of `{TRAIN}` runs to its optimum; --how_many_training_steps is for --solver sgd"

# By flag, without hyphens. Of TensorFlow's retrain.py before and with Hub, its label_image.py, and Hub's
# make_image_classifier; and the flags that one of our commands has and a user may look for in another.
ADVICE: Mapping[str, str] = {
    "architecture": f"`{EXTRACT} --module NAME` names the network, and so does retrain.py's --tfhub_module NAME",
    "tfhub_module": f"`{EXTRACT} --module NAME` names the network; the cache remembers it",
    "module": f"`{EXTRACT} --module NAME` names the network, and so does retrain.py's --tfhub_module NAME",
    "model_dir": "downloaded networks are kept in the folder that the environment variable TFHUB_CACHE_DIR names",
    "image_dir": f"`{EXTRACT} --image_dir` reads the photos; `{TRAIN} --cache_dir` trains without them",
    "bottleneck_dir": "--cache_dir names the folder of bottlenecks",
    "cache_dir": "retrain.py's --bottleneck_dir names the folder of bottlenecks",
    "output_graph": f"`{TRAIN} --frozen_graph` writes frozen_graph.pb into --output_dir",
    "output_labels": f"`{TRAIN}` writes labels.txt into --output_dir",
    "labels_output_file": f"`{TRAIN}` writes labels.txt into --output_dir",
    "saved_model_dir": f"`{TRAIN}` writes saved_model into --output_dir",
    "saved_model_format": f"`{TRAIN}` writes the one SavedModel that TensorFlow 2 reads into --output_dir",
    "output_dir": "retrain.py has a flag for each of its files, such as --saved_model_dir and --output_graph",
    "checkpoint_path": f"`{TRAIN} --resume` goes on after Ctrl-C without being told where",
    "intermediate_store_frequency": "`python retrain.py` writes intermediate graphs",
    "intermediate_output_graphs_dir": "`python retrain.py` writes intermediate graphs",
    "summaries_dir": f"`{TRAIN}` writes them into logs in --output_dir",
    "tflite_output_file": _TFLITE,
    "label_smoothing": f"`{TRAIN}` has none; --l2 keeps weights small",
    "l1_regularizer": f"`{TRAIN} --l2` keeps weights small; left out, validation photos choose it",
    "l2_regularizer": f"`{TRAIN} --l2` keeps weights small; left out, validation photos choose it",
    "dropout_rate": f"`{TRAIN} --l2` keeps weights small; left out, validation photos choose it",
    "train_epochs": _NO_EPOCHS,
    "epochs": _NO_EPOCHS,
    "do_fine_tuning": "the network itself is never trained; a larger --module often gives what fine-tuning would",
    "do_data_augmentation": _AUGMENT,
    "augment": _AUGMENT,
    "flip_left_right": _AUGMENT,
    "random_crop": _AUGMENT,
    "random_scale": _AUGMENT,
    "random_brightness": _AUGMENT,
    "use_mixed_precision": f"`{EXTRACT} --precision auto`, the default, does so where it is faster",
    "assert_accuracy_at_least": "metrics.json in --output_dir has the accuracy, for scripts to compare",
    "batch_size": f"--train_batch_size of `{TRAIN}` is for --solver sgd; --batch_size of `{EXTRACT}` for the network",
    "graph": _PREDICT,
    "image": _PREDICT,
    "labels": _PREDICT,
    "input_layer": _PREDICT,
    "output_layer": _PREDICT,
    "input_height": _PREDICT,
    "input_width": _PREDICT,
    "input_mean": _PREDICT,
    "input_std": _PREDICT,
}
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def advice(unknown: Sequence[str]) -> list[str]:
    """What to write instead of each of the `unknown` arguments of a command line, as far as that is known."""
    lines = []
    for place, argument in enumerate(unknown):
        if not argument.startswith("-"):
            continue
        name, _, value = argument.lstrip("-").partition("=")
        line = ADVICE.get(name)
        if line and name == "architecture":
            line += _of_architecture(value or next(iter(unknown[place + 1 :]), ""))
        if line and line not in lines:
            lines.append(line)
    return lines


def value_of_a_switch(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """What is wrong with `arguments` that give a switch a value, as in `--flip_left_right True`; None if none does."""
    switches = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in switches and f"--{name.removeprefix('--no')}" in switches:
            return f"{name} is no flag; leave out --{name.removeprefix('--no')}"
        if name in switches and not equals:
            value = next(iter(arguments[place + 1 :]), "")
        if name in switches and (equals or value.lower() in _TRUTHS):
            wanted = _TRUTHS.get(value.lower(), True)
            return f"{name} takes no value: {'give it alone' if wanted else 'leave it out'}, without {value}"
    return None


def _of_architecture(value: str) -> str:
    """The handle of a network that the tutorial's --architecture named, such as mobilenet_0.50_224."""
    found = re.fullmatch(r"mobilenet_(0\.25|0\.50|0\.75|1\.0)_(128|160|192|224)(_quantized)?", value)
    if found:
        width = f"{float(found[1]) * 100:03.0f}"
        return f"; {value} is https://tfhub.dev/google/imagenet/mobilenet_v1_{width}_{found[2]}/feature_vector/5"
    return f"; {value} is inception_v3" if value == "inception_v3" else ""
