"""The parts that photos are split into, and what people call them."""

from __future__ import annotations

TRAIN, VALIDATION, TEST, LEFT_OUT = 0, 1, 2, 3
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
WORDS = {  # the names that a folder or a line of a file may use
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), TEST),
}
