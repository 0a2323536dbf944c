"""`python -m train`: fits a softmax layer to cached bottlenecks and exports a classifier."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cache import command


def parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m train",
        description="Trains a classifier on the bottlenecks that `python -m extract` cached: a softmax layer on top "
        "of a network that stays as it is. Needs the cache alone, not the photos, and takes seconds.",
    )
    add = parser.add_argument
    add("--cache_dir", type=Path, default=Path("bottlenecks"), help="the cache that the extraction filled")
    add(
        "--output_dir",
        type=Path,
        default=Path("retrained"),
        help="gets saved_model/, labels.txt, metrics.json, report.html and logs/; a former run's are replaced",
    )
    add(
        "--module",
        help="which network's bottlenecks to train on; needed where the cache holds several networks'",
    )
    add(
        "--how_many_training_steps",
        type=command.positive,
        default=4000,
        help="batches to train on; more help as long as the validation accuracy rises",
    )
    add(
        "--learning_rate",
        type=command.positive_float,
        default=0.01,
        help="how far one step goes: too small trains slowly, too large jumps about or diverges",
    )
    add(
        "--train_batch_size",
        type=command.positive,
        default=100,
        help="images in a step; each draws a class, then an image of it, so that all classes count alike",
    )
    add(
        "--validation_batch_size",
        type=command.batch_size,
        default=100,
        help="validation images drawn for each point of the learning curve; -1 takes them all, which is smoother",
    )
    add(
        "--test_batch_size",
        type=command.batch_size,
        default=-1,
        help="test images behind the final test accuracy, chosen at random; -1 takes them all",
    )
    add(
        "--testing_percentage",
        type=command.percentage,
        default=10.0,
        help="share of the images held back for the final test accuracy; a hash of the path chooses them, so an "
        "image stays on its side when others are added",
    )
    add(
        "--validation_percentage",
        type=command.percentage,
        default=10.0,
        help="share of the images held back to watch the training with; chosen likewise",
    )
    add(
        "--eval_step_interval",
        type=command.positive,
        default=10,
        help="steps between two points of the learning curve",
    )
    add(
        "--seed",
        type=_seed,
        default=0,
        help="of the first weights and all draws; the same seed repeats a run",
    )
    add(
        "--tflite",
        nargs="+",
        choices=("float16", "int8"),
        help="write TensorFlow Lite files of these precisions too, and tell their accuracy on test images; takes a "
        "minute or more, and int8 needs the photos or the cache's thumbnails (default: none)",
    )
    add("--frozen_graph", action="store_true", help="write frozen_graph.pb too, as TensorFlow's old tutorial does")
    add(
        "--final_tensor_name",
        type=command.tensor_name,
        default="final_result",
        help="name of the softmax output in the frozen graph",
    )
    add(
        "--print_misclassified_test_images",
        action="store_true",
        help="print the path and the predicted label of each test image that the classifier gets wrong",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    from train import run

    run.train(run.TrainSettings(**vars(flags)))


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(command.run(main))
