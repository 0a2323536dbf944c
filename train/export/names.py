"""Names in the tutorial's frozen graph: the output's, which a flag chooses, and reserved ones."""

from __future__ import annotations

import argparse
import re

PLACEHOLDER = "Placeholder"  # the input, as in the tutorial
NETWORK = "network"  # the scope of everything between input and output


def tensor_name(text: str) -> str:
    """The value of a flag that names the output of a frozen graph: no other operation of it has this name."""
    if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no tensor name; use letters, digits, _ . / -")
    if text.split("/")[0] in (PLACEHOLDER, NETWORK):
        raise argparse.ArgumentTypeError(f"{text!r} is another tensor of the graph; choose another name")
    return text
