"""`python -m train`: fits a softmax layer to cached bottlenecks and exports a classifier."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from cache import command
from cache.errors import UserError
from train.names import tensor_name
from train.settings import SOLVERS, TrainSettings


def parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m train",
        description="Trains a classifier on the bottlenecks that `python -m extract` cached: a softmax layer on top "
        "of a network that stays as it is. Needs the cache alone, not the photos, and takes seconds.",
    )
    add = parser.add_argument
    add("--cache_dir", type=command.path, default="bottlenecks", help="the cache that the extraction filled")
    add(
        "--output_dir",
        type=command.path,
        default="retrained",
        help="gets saved_model/, labels.txt, metrics.json, report.html and logs/; a former run's are replaced",
    )
    add(
        "--module",
        help="which network's bottlenecks to train on; needed where the cache holds several networks'",
    )
    add(
        "--solver",
        choices=SOLVERS,
        default=SOLVERS[0],
        help="lbfgs: logistic regression to convergence, the validation images choosing the strength of L2 and then "
        "training, too; needs no tuning. sgd: the tutorial's gradient descent. sweep: 64 heads at once by gradient "
        "descent, learning rates by strengths by class weights, the validation images choosing one",
    )
    add(
        "--class_weights",
        choices=("balanced", "none"),
        default=None,
        help="balanced: all classes count alike, none: all images do (default: balanced for sgd, as in the tutorial; "
        "lbfgs and sweep try both)",
    )
    add(
        "--l2",
        type=command.not_negative_float,
        default=None,
        help="strength of L2 regularisation, against overfitting. lbfgs fits this one instead of choosing; sgd's "
        "default is 0. Equals 1 / (C N) for scikit-learn's C and N training images",
    )
    add(
        "--no_refit",
        action="store_true",
        help="skip lbfgs's last fit, which repeats the chosen one on training and validation images together (never "
        "done where --split names the validation images)",
    )
    add(
        "--how_many_training_steps",
        type=command.positive,
        default=4000,
        help="batches that sgd and sweep train on; more help as long as the validation accuracy rises",
    )
    add(
        "--learning_rate",
        type=command.positive_float,
        default=0.01,
        help="how far one step of sgd goes: too small trains slowly, too large jumps about or diverges",
    )
    add(
        "--train_batch_size",
        type=command.positive,
        default=100,
        help="images in a step of sgd and sweep",
    )
    add(
        "--validation_batch_size",
        type=command.batch_size,
        default=100,
        help="validation images drawn for each point of sgd's learning curve; -1 takes them all, which is smoother; "
        "lbfgs and sweep always do",
    )
    add(
        "--test_batch_size",
        type=command.batch_size,
        default=-1,
        help="test images behind the final test accuracy, chosen at random; -1 takes them all",
    )
    add(
        "--split",
        type=command.path,
        default="auto",
        metavar="auto|hash|folders|FILE",
        help="which images train, validate and test: a hash of the path chooses, the folders train/, validation/ (or "
        "val/) and test/ above the classes, or a CSV file of lines path,part; auto takes the folders where all "
        "images lie in such",
    )
    add(
        "--testing_percentage",
        type=command.percentage,
        default=10.0,
        help="share of the images held back for the final test accuracy, where --split does not name them; a hash of "
        "the path chooses them, so an image stays on its side when others are added",
    )
    add(
        "--validation_percentage",
        type=command.percentage,
        default=10.0,
        help="share of the images that choose among fits and draw the validation curve, where --split does not name "
        "them; the same hash picks them. lbfgs trains on them in its last fit, see --no_refit",
    )
    add(
        "--eval_step_interval",
        type=command.positive,
        default=10,
        help="steps between two points of sgd's learning curve",
    )
    add(
        "--seed",
        type=command.natural,
        default=0,
        help="of the first weights and all draws; the same seed repeats a run",
    )
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where to fit; auto: on a GPU if there is one",
    )
    add(
        "--resume",
        action="store_true",
        help="go on where Ctrl-C or SIGTERM stopped the last run with these flags",
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
        type=tensor_name,
        default="final_result",
        help="name of the softmax output in the frozen graph",
    )
    add(
        "--print_misclassified_test_images",
        action="store_true",
        help="print the path and the predicted label of each test image that the classifier gets wrong",
    )
    return parser


# The solvers that a flag means something to; the other flags are for all of them.
MEANT_FOR = {
    "learning_rate": ("sgd",),
    "validation_batch_size": ("sgd",),
    "eval_step_interval": ("sgd",),
    "how_many_training_steps": ("sgd", "sweep"),
    "train_batch_size": ("sgd", "sweep"),
    "l2": ("lbfgs", "sgd"),
    "class_weights": ("lbfgs", "sgd"),
    "no_refit": ("lbfgs",),
}


def main(arguments: list[str] | None = None) -> None:
    known = parser()
    flags = known.parse_args(arguments)
    for name, solvers in MEANT_FOR.items():
        if getattr(flags, name) != known.get_default(name) and flags.solver not in solvers:
            others = " or ".join(solvers)
            raise UserError(
                f"--{name} means nothing to --solver {flags.solver}; add --solver {others}, or leave it out"
            )
    from train import run

    flags.cache_dir, flags.output_dir = Path(flags.cache_dir), Path(flags.output_dir)
    run.train(TrainSettings(**vars(flags)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is told to stop saves what it has
    sys.exit(command.run(main))
