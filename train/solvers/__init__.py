"""Ways to fit the softmax layer. A solver is a generator that trains and yields its Progress now and then."""

from __future__ import annotations

from collections.abc import Iterator

from train.solvers.problem import Problem, Progress, State


def solve(problem: Problem, state: State | None = None) -> Iterator[Progress]:
    """Fits with the solver of the settings, from the start or from the `state` of an earlier Progress.

    The last Progress has the result. Raises UserError for a learning rate that makes the cross entropy infinite.
    """
    # Each solver needs TensorFlow, which takes seconds to import.
    if problem.settings.solver == "sgd":
        from train.solvers.sgd import sgd

        return sgd(problem, state)
    if problem.settings.solver == "sweep":
        from train.solvers.sweep import sweep

        return sweep(problem, state)
    from train.solvers.lbfgs import lbfgs

    return lbfgs(problem, state)
