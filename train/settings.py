"""The choices of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOLVERS = ("lbfgs", "sgd", "sweep")  # the first one is the default


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings, with the names and defaults of the flags of `python -m train`, whose `-h` describes them.

    `distorted`, `summaries_dir` and `intermediate_store_frequency` have no flag there: `retrain.py` needs them.
    """

    cache_dir: Path
    output_dir: Path
    module: str | None = None
    solver: str = SOLVERS[0]
    class_weights: str | None = None  # None: lbfgs and sweep try both, sgd takes balanced
    l2: float | None = None  # None: lbfgs chooses, sgd takes none
    no_refit: bool = False  # whether lbfgs ends with the fit that the validation images judged
    how_many_training_steps: int = 4000
    learning_rate: float = 0.01
    train_batch_size: int = 100
    validation_batch_size: int = 100  # -1: the whole validation set
    test_batch_size: int = -1  # -1: the whole test set
    split: str = "auto"
    testing_percentage: float = 10.0
    validation_percentage: float = 10.0
    eval_step_interval: int = 10
    distorted: bool = True  # whether the cached distorted versions of the training images train, too
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    print_misclassified_test_images: bool = False
    summaries_dir: Path | None = None  # None: `logs` in output_dir
    tflite: Sequence[str] | None = None  # float16, int8
    frozen_graph: bool = False
    final_tensor_name: str = "final_result"
    intermediate_store_frequency: int = 0  # steps of sgd between two heads for the caller; 0: none

    @property
    def logs_dir(self) -> Path:
        return self.summaries_dir or self.output_dir / "logs"

    @property
    def balanced(self) -> bool:
        """Whether all classes count alike, whatever their sizes. By default they do with sgd, as in the tutorial.

        lbfgs, which by default tries both, first counts all images alike.
        """
        return self.class_weights == "balanced" or (self.class_weights is None and self.solver == "sgd")
