"""Training that is interrupted and goes on: real processes, real signals."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from cache import console
from tests import forked, small_cache
from tests.processes import REPO
from train import run
from train.__main__ import main
from train.checkpoint import FILE
from train.settings import TrainSettings

# Enough work to be still at it when the signal comes.
FLAGS = {
    "sgd": ["--solver", "sgd", "--how_many_training_steps", "40000", "--eval_step_interval", "1000"],
    "sweep": ["--solver", "sweep", "--how_many_training_steps", "12000"],
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("small"), noise=70)


def flags_of(cache_dir, output_dir, solver, *more):
    return [*map(str, ["--cache_dir", cache_dir, "--output_dir", output_dir, *FLAGS[solver], *more])]


def interrupt(cache_dir, output_dir, solver, kind):
    """A run that gets the signal after its first line of progress: (exit status, standard error)."""
    child = forked.start("train.__main__", *flags_of(cache_dir, output_dir, solver))
    lines = iter(child.stdout.readline, b"")
    assert any(line.startswith(b"Step ") for line in lines)
    child.send_signal(kind)
    status, _, errors = child.communicate()
    return status, errors.decode()


@pytest.fixture(scope="module")
def whole(cache_dir, tmp_path_factory):
    """Runs that nobody interrupts: what `found_in` finds, by solver."""
    root, runs = tmp_path_factory.mktemp("whole"), {}
    for solver in FLAGS:
        main(flags_of(cache_dir, root / solver, solver))
        runs[solver] = found_in(root / solver)
    return runs


def found_in(output_dir):
    metrics = json.loads((output_dir / "latest/metrics.json").read_text())
    return metrics["test"], metrics["validation"], metrics["grid"], [point["step"] for point in metrics["curve"]]


@pytest.mark.parametrize(
    ("solver", "kind"), [("sgd", signal.SIGINT), ("sgd", signal.SIGTERM), ("sweep", signal.SIGTERM)]
)
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(cache_dir, whole, tmp_path, solver, kind):
    saved = tmp_path / "out" / FILE
    status, errors = interrupt(cache_dir, tmp_path / "out", solver, kind)
    assert status == 130, errors
    (message,) = errors.splitlines()
    assert message.startswith("interrupted after step ")
    assert str(saved) in message
    assert "--resume" in message
    with np.load(saved) as arrays:
        assert arrays["weights"].shape == (small_cache.DIMENSION, 3)
        assert np.abs(arrays["weights"]).max() > 0.01
        stopped_at = int(arrays["state_step"])
    assert not (tmp_path / "out" / "latest/metrics.json").exists()

    main(flags_of(cache_dir, tmp_path / "out", solver, "--resume"))
    found = found_in(tmp_path / "out")
    assert found == whole[solver]
    assert 0 < stopped_at < found[3][-1]
    assert not saved.exists()


@pytest.mark.parametrize("further", [0, 3])  # iterations of the third strength
def test_lbfgs_goes_on_at_the_strength_where_it_was(cache_dir, tmp_path, monkeypatch, further):
    # In this process, where it can be interrupted at a chosen iteration.
    settings = TrainSettings(cache_dir, tmp_path / "out")
    fit, seen, seen_of_third = run.fit, [], []

    def interrupted(settings, each):
        def watched(progress, fitting):
            each(progress, fitting)
            seen.append(progress.step)
            seen_of_third.extend([progress.step] if len(progress.grid) == 2 else [])
            if len(seen_of_third) > further:
                raise KeyboardInterrupt

        return fit(settings, watched)

    monkeypatch.setattr(run, "fit", interrupted)
    with pytest.raises(console.Interrupted, match="goes on from there"):
        run.train(settings)
    monkeypatch.undo()
    resumed = run.train(TrainSettings(cache_dir, tmp_path / "out", resume=True))
    whole = run.train(TrainSettings(cache_dir, tmp_path / "whole"))
    np.testing.assert_allclose(resumed.head.weights, whole.head.weights, rtol=1e-5, atol=1e-6)
    assert resumed.curve == whole.curve
    assert resumed.grid == whole.grid
    assert len(seen) < len(whole.curve) + len(whole.grid)


def test_a_checkpoint_that_cannot_be_saved_is_reported(cache_dir, tmp_path, monkeypatch):
    settings, fit = TrainSettings(cache_dir, tmp_path / "out"), run.fit

    def interrupted(settings, each):
        def watched(progress, fitting):
            each(progress, fitting)
            shutil.rmtree(settings.output_dir)
            raise KeyboardInterrupt

        return fit(settings, watched)

    monkeypatch.setattr(run, "fit", interrupted)
    with pytest.raises(console.Interrupted) as error:
        run.train(settings)
    assert str(error.value).startswith(f"interrupted, and nothing is saved: cannot write {tmp_path / 'out' / FILE}: ")


@pytest.fixture(scope="module")
def interrupted(cache_dir, tmp_path_factory):
    """The output directory of an interrupted run of sgd."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    interrupt(cache_dir, folder, "sgd", signal.SIGTERM)
    assert (folder / FILE).exists()
    return folder


@pytest.fixture
def error(cache_dir, interrupted, tmp_path, without_tensorflow):
    """The error of resuming a copy of that run, changed by `change`, with further flags or another cache."""

    def resume(*flags, cache_dir=cache_dir, change=lambda file: None):
        shutil.copytree(interrupted, tmp_path / "out", dirs_exist_ok=True)
        change(tmp_path / "out" / FILE)
        arguments = flags_of(cache_dir, tmp_path / "out", "sgd", *flags, "--resume")
        status, _, errors = without_tensorflow.run("train.__main__", *arguments)
        assert status == 2
        (line,) = [line for line in errors.splitlines() if not line.startswith("warning: ")]
        return line

    return resume


def test_without_an_interrupted_run_there_is_nothing_to_resume(error):
    assert "no run was interrupted; leave --resume out" in error(change=os.unlink)


def test_a_run_with_other_flags_cannot_be_resumed(error):
    assert "belongs to a run with --learning_rate 0.01; do the same" in error("--learning_rate", "0.5")
    assert "belongs to a run without --l2" in error("--l2", "0.5")


def test_a_run_on_other_photos_cannot_be_resumed(error, tmp_path):
    other = small_cache.make(tmp_path / "other", counts=(40, 50, 50))
    assert "on other photos" in error(cache_dir=other)


def leave_out_the_version(file):
    with np.load(file) as arrays:
        kept = dict(arrays)
    description = json.loads(kept["run"].item())
    del description["layout"]
    np.savez(file, **{**kept, "run": np.array(json.dumps(description))})


def test_a_run_of_another_version_cannot_be_resumed(error):
    assert "by another version of this program; leave --resume out" in error(change=leave_out_the_version)


def test_a_damaged_file_cannot_be_resumed(error):
    assert "is damaged; delete it" in error(change=lambda file: file.write_bytes(file.read_bytes()[:-100]))


def replace_by_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def test_a_pipe_in_place_of_the_file_is_no_reason_to_wait_for_ever(error):
    assert "is damaged; delete it" in error(change=replace_by_a_pipe)


def test_a_run_that_is_interrupted_before_its_first_point_leaves_nothing(cache_dir, tmp_path):
    child = forked.start("train.__main__", *flags_of(cache_dir, tmp_path / "out", "sgd"))
    while b"classes" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGINT)
    status, _, errors = child.communicate()
    assert status == 130
    assert errors.decode().splitlines()[-1].startswith("interrupted")
    assert b"Traceback" not in errors
    assert not (tmp_path / "out" / FILE).exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_tensorflow_is_imported_is_not_swallowed(tmp_path, kind):
    (tmp_path / "tensorflow.py").write_text(
        f"import os\ntry: os.kill(os.getpid(), {int(kind)})\nexcept BaseException: pass\n"
    )
    script = (
        f"import signal, sys; signal.signal({int(kind)}, signal.default_int_handler)\n"
        "from cache import console, process\n"
        "sys.exit(console.run(lambda _: process.import_tensorflow()))"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to go on\n")


def test_a_device_that_is_not_there_is_named(cache_dir, tmp_path, capsys):
    flags = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path), "--device", "gpu"]
    assert console.run(main, flags) == 2
    assert "TensorFlow sees no GPU; leave --device out" in capsys.readouterr().err
