"""Names: of the files of a classifier, and in the tutorial's frozen graph."""

from __future__ import annotations

import argparse
import re

from cache.layout import HEAD

SAVED_MODEL = "saved_model"
LABELS = "labels.txt"
METRICS = "metrics.json"
REPORT = "report.html"
FROZEN_GRAPH = "frozen_graph.pb"
LITE = {precision: f"classifier_{precision}.tflite" for precision in ("float16", "int8")}
FILES = (LABELS, HEAD, METRICS, REPORT, FROZEN_GRAPH, *LITE.values(), SAVED_MODEL)
# What TensorFlow puts into the folder of a SavedModel, and what macOS puts into any folder.
IN_SAVED_MODEL = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", ".DS_Store"}

PLACEHOLDER = "Placeholder"  # the input, as in the tutorial
NETWORK = "network"  # the scope of everything between input and output


def tensor_name(text: str) -> str:
    """The value of a flag that names the output of a frozen graph: no other operation of it has this name."""
    if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no tensor name; use letters, digits, _ . / -")
    if text.split("/")[0] in (PLACEHOLDER, NETWORK):
        raise argparse.ArgumentTypeError(f"{text!r} is another tensor of the graph; choose another name")
    return text
