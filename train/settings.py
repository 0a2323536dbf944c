"""The choices of a training run. Each one that is a flag of `python -m train` has its default and its help here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import console
from cache.console import flag
from train.export.names import tensor_name

SOLVERS = ("lbfgs", "sgd", "sweep")  # the first one is the default


@dataclass(frozen=True)
class TrainSettings:
    """How to train: on which cache, with which solver, into which folder."""

    cache_dir: Path = flag("the cache that the extraction filled", default=Path("bottlenecks"), type=console.to_path)
    output_dir: Path = flag(
        "gets latest/ with saved_model/, labels.txt, head.h5, metrics.json and report.html, and logs/ for TensorBoard; "
        "those of an earlier run are replaced",
        default=Path("retrained"),
        type=console.to_path,
    )
    module: str | None = flag(
        "the network whose bottlenecks train; needed if the cache holds those of several networks", default=None
    )
    solver: str = flag(
        "lbfgs: logistic regression to convergence; the validation photos choose the strength of L2 and then train, "
        "too; needs no tuning. sgd: the tutorial's gradient descent. sweep: 64 heads at once by gradient descent, "
        "learning rates by strengths by class weights; the validation photos choose one",
        default=SOLVERS[0],
        choices=SOLVERS,
    )
    class_weights: str | None = flag(
        "balanced: all classes count alike; none: all photos do (default: balanced for sgd, as in the tutorial; lbfgs "
        "and sweep try both)",
        default=None,
        choices=("balanced", "none"),
    )
    l2: float | None = flag(
        "strength of L2 regularisation, against overfitting. lbfgs fits this one instead of choosing; sgd's default is "
        "0. Equals 1 / (C N) for scikit-learn's C and N training photos",
        default=None,
        type=console.not_negative_float,
    )
    no_refit: bool = flag(
        "skip lbfgs's last fit, which repeats the chosen one on training and validation photos together (never done if "
        "--split names the validation photos)",
        default=False,
    )
    how_many_training_steps: int = flag(
        "batches that sgd and sweep train on; more help as long as the validation accuracy rises",
        default=4000,
        type=console.positive,
    )
    learning_rate: float = flag(
        "how far one step of sgd goes: too small trains slowly, too large jumps about or diverges",
        default=0.01,
        type=console.positive_float,
    )
    train_batch_size: int = flag("photos in a step of sgd and sweep", default=100, type=console.positive)
    validation_batch_size: int = flag(
        "validation photos drawn for each point of sgd's learning curve; -1 takes them all, which is smoother; lbfgs "
        "and sweep always do",
        default=100,
        type=console.batch_size,
    )
    test_batch_size: int = flag(
        "test photos behind the final test accuracy, chosen at random; -1 takes them all",
        default=-1,
        type=console.batch_size,
    )
    split: str = flag(
        "which photos train, validate and test: a hash of the path chooses, the folders train/, validation/ (or val/) "
        "and test/ above the classes, or a CSV file of lines path,part; auto takes the folders if all photos lie in "
        "such",
        default="auto",
        type=console.path,
        metavar="auto|hash|folders|FILE",
    )
    testing_percentage: float = flag(
        "share of the photos held back for the final test accuracy, if --split does not name them; a hash of the path "
        "chooses them, so a photo stays on its side when others are added",
        default=10.0,
        type=console.percentage,
    )
    validation_percentage: float = flag(
        "share of the photos that choose among fits and draw the validation curve, if --split does not name them; the "
        "same hash picks them. lbfgs trains on them in its last fit, see --no_refit",
        default=10.0,
        type=console.percentage,
    )
    eval_step_interval: int = flag(
        "steps between two points of sgd's learning curve", default=10, type=console.positive
    )
    seed: int = flag("of the first weights and all draws; the same seed repeats a run", default=0, type=console.natural)
    device: str = flag("where to fit; auto: on a GPU if there is one", default="auto", choices=("auto", "cpu", "gpu"))
    resume: bool = flag("go on where Ctrl-C or SIGTERM stopped the last run with these flags", default=False)
    tflite: Sequence[str] | None = flag(
        "write TensorFlow Lite files of these precisions too, and print their accuracy on test photos; takes a minute "
        "or more, and int8 needs the photos or the cache's thumbnails (default: none)",
        default=None,
        choices=("float16", "int8"),
        nargs="+",
    )
    frozen_graph: bool = flag("write frozen_graph.pb too, as TensorFlow's old tutorial does", default=False)
    final_tensor_name: str = flag(
        "name of the softmax output in the frozen graph", default="final_result", type=tensor_name
    )
    print_misclassified_test_images: bool = flag(
        "print the path and the predicted label of each test photo that the classifier gets wrong", default=False
    )
    # For callers, not flags:
    use_augmentations: bool = True  # whether the cached augmentations of the training photos train, too
    summaries_dir: Path | None = None  # for TensorBoard; None: `logs` in output_dir
    intermediate_store_frequency: int = 0  # steps of sgd between two more points for the caller; 0: none

    @property
    def logs_dir(self) -> Path:
        return self.summaries_dir or self.output_dir / "logs"

    @property
    def balanced(self) -> bool:
        """Whether all classes count alike, whatever their sizes. By default they do with sgd, as in the tutorial.

        lbfgs, which by default tries both, begins with all photos alike.
        """
        return self.class_weights == "balanced" or (self.class_weights is None and self.solver == "sgd")
