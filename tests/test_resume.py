"""Training that is stopped and goes on: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import small_cache
from train.interrupted import FILE

REPO = Path(__file__).parents[1]
ENOUGH = {
    "sgd": ["--how_many_training_steps", "60000", "--eval_step_interval", "1000"],
    "sweep": ["--how_many_training_steps", "40000"],
    "lbfgs": [],
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("small"), noise=70)


def start(cache_dir, out, solver, *flags):
    command = [sys.executable, "-m", "train", "--cache_dir", cache_dir, "--output_dir", out, "--solver", solver, *flags]
    return subprocess.Popen([*map(str, command)], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def first_line_of_progress(child):
    for line in child.stdout:
        if line.startswith("Step "):
            return line
    raise AssertionError(child.stderr.read())


def head_of(out):
    content = json.loads((out / "metrics.json").read_text())
    return content["test"], content["validation"], content["grid"], [point["step"] for point in content["curve"]]


@pytest.mark.parametrize(
    ("solver", "kind"), [("sgd", signal.SIGINT), ("sgd", signal.SIGTERM), ("sweep", signal.SIGTERM)]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(cache_dir, tmp_path, solver, kind):
    flags = ENOUGH[solver]
    child = start(cache_dir, tmp_path / "stopped", solver, *flags)
    first_line_of_progress(child)
    child.send_signal(kind)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    saved = tmp_path / "stopped" / FILE
    (told,) = errors.splitlines()
    assert told.startswith("interrupted after step ")
    assert str(saved) in told
    assert "--resume" in told
    with np.load(saved) as arrays:
        assert arrays["weights"].shape == (small_cache.DIMENSION, 3)
        assert np.abs(arrays["weights"]).max() > 0.01
        stopped_at = int(arrays["state_step"])
    assert not (tmp_path / "stopped" / "metrics.json").exists()

    resumed = start(cache_dir, tmp_path / "stopped", solver, *flags, "--resume")
    assert resumed.wait(300) == 0, resumed.stderr.read()
    whole = start(cache_dir, tmp_path / "whole", solver, *flags)
    assert whole.wait(300) == 0
    found, expected = head_of(tmp_path / "stopped"), head_of(tmp_path / "whole")
    assert 0 < stopped_at < expected[3][-1]
    assert found == expected
    assert not saved.exists()


@pytest.mark.parametrize("further", [0, 3])  # iterations of the third strength
def test_lbfgs_goes_on_at_the_strength_where_it_was(cache_dir, tmp_path, further):
    # In this process, where it can be stopped at a chosen iteration.
    from cache import command
    from train import run
    from train.settings import TrainSettings

    settings = TrainSettings(cache_dir, tmp_path / "out")
    fit, seen, seen_of_third = run.fit, [], []

    def stopped(settings, each):
        def keep(progress, fitting):
            each(progress, fitting)
            seen.append(progress.step)
            seen_of_third.extend([progress.step] * (len(progress.grid) == 2))
            if len(seen_of_third) > further:
                raise KeyboardInterrupt

        return fit(settings, keep)

    run.fit = stopped
    try:
        with pytest.raises(command.Interrupted, match="goes on from there"):
            run.train(settings)
    finally:
        run.fit = fit
    resumed = run.train(TrainSettings(cache_dir, tmp_path / "out", resume=True))
    whole = run.train(TrainSettings(cache_dir, tmp_path / "whole"))
    np.testing.assert_allclose(resumed.head.weights, whole.head.weights, rtol=1e-5, atol=1e-6)
    assert resumed.curve == whole.curve
    assert resumed.grid == whole.grid
    assert len(seen) < len(whole.curve) + len(whole.grid)


def error_of(cache_dir, out, *flags, solver="sgd"):
    child = start(cache_dir, out, solver, *flags)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 2
    (line,) = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    return line


def test_what_cannot_go_on_is_told_in_one_line(cache_dir, tmp_path):
    assert "no run was interrupted; leave --resume out" in error_of(cache_dir, tmp_path, "--resume")
    flags = ENOUGH["sgd"]
    child = start(cache_dir, tmp_path, "sgd", *flags)
    first_line_of_progress(child)
    child.terminate()
    child.communicate(timeout=120)
    other = error_of(cache_dir, tmp_path, *flags, "--learning_rate", "0.5", "--resume")
    assert "belongs to a run with --learning_rate 0.01; do the same" in other
    assert "belongs to a run without --l2" in error_of(cache_dir, tmp_path, *flags, "--l2", "0.5", "--resume")
    assert "on other images" in error_of(
        small_cache.make(tmp_path / "other", counts=(40, 50, 50)), tmp_path, *flags, "--resume"
    )
    with np.load(tmp_path / FILE) as arrays:
        kept = dict(arrays)
    earlier = {name: value for name, value in json.loads(kept["run"].item()).items() if name != "layout"}
    np.savez(tmp_path / FILE, **{**kept, "run": np.array(json.dumps(earlier))})
    assert "by another version of this program; leave --resume out" in error_of(cache_dir, tmp_path, *flags, "--resume")
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    assert "is damaged; delete it" in error_of(cache_dir, tmp_path, *flags, "--resume")


def test_a_run_that_is_stopped_before_its_first_point_leaves_nothing(cache_dir, tmp_path):
    child = start(cache_dir, tmp_path / "out", "sgd", *ENOUGH["sgd"])
    while "classes" not in child.stdout.readline():
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in errors


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_tensorflow_is_imported_is_not_swallowed(tmp_path, kind):
    (tmp_path / "tensorflow.py").write_text(
        f"import os\ntry: os.kill(os.getpid(), {int(kind)})\nexcept BaseException: pass\n"
    )
    script = (
        f"import signal, sys; signal.signal({int(kind)}, signal.default_int_handler); from cache import command\n"
        "sys.exit(command.run(lambda _: command.import_tensorflow()))"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to go on\n")


def test_a_device_that_is_not_there_is_told(cache_dir, tmp_path):
    assert "TensorFlow sees no GPU; leave --device out" in error_of(cache_dir, tmp_path, "--device", "gpu")
