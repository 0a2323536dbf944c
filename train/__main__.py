"""`python -m train`: fits a softmax layer to cached bottlenecks and exports a classifier."""

from __future__ import annotations

import sys

from cache import console
from cache.errors import UserError
from train.settings import TrainSettings

DESCRIPTION = """Trains a classifier on the bottlenecks that `python -m extract` cached: a softmax layer on top of a
network that stays as it is. Needs the cache alone, not the photos, and takes seconds."""

# The solvers to which a flag means something. All other flags are for all solvers.
SOLVERS_OF_FLAG = {
    "learning_rate": ("sgd",),
    "validation_batch_size": ("sgd",),
    "eval_step_interval": ("sgd",),
    "how_many_training_steps": ("sgd", "sweep"),
    "train_batch_size": ("sgd", "sweep"),
    "l2": ("lbfgs", "sgd"),
    "class_weights": ("lbfgs", "sgd"),
    "no_refit": ("lbfgs",),
}


def parser() -> console.Parser:
    flags = console.Parser(prog="python -m train", description=DESCRIPTION)
    console.add_flags(flags, TrainSettings)
    return flags


def main(arguments: list[str] | None = None) -> None:
    settings, defaults = TrainSettings(**vars(parser().parse_args(arguments))), TrainSettings()
    for name, solvers in SOLVERS_OF_FLAG.items():
        if getattr(settings, name) != getattr(defaults, name) and settings.solver not in solvers:
            raise UserError(
                f"--{name} means nothing to --solver {settings.solver}; add --solver {' or '.join(solvers)}, or leave "
                "it out"
            )
    from train import run

    run.train(settings)


def script() -> int:
    """The command `retrain-train`."""
    console.interrupt_on_sigterm()
    return console.run(main, is_job=True)


if __name__ == "__main__":
    sys.exit(script())
