"""What an extraction prints while it runs and afterwards: the bar, the verdict, the trace."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache import console
from cache.writer import Writer
from extract import compute
from extract.__main__ import main
from extract.engines import nvml
from extract.run import extract
from extract.settings import Settings
from tests.pictures import make_folder
from tests.processes import REPO


@pytest.fixture
def flags(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 20, "b": 20})
    places = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    return [*places, "--engine", "tensorflow", "--precision", "float32", "--batch_size", "2"]


def traces(directory):
    return sorted(Path(directory).glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_is_where_tensorboard_looks_and_shows_the_network_and_the_decoding(tmp_path, flags):
    flags += ["--trace", str(tmp_path / "new" / "trace")]
    # In a process of its own, without our level for TensorFlow's log, of which the command itself must hide all.
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "extract", *flags]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"\ntrace: tensorboard --logdir {tmp_path}/new/trace\n" in done.stdout
    assert not re.findall("Profiler|oneDNN|absl", done.stderr)
    [trace] = traces(tmp_path / "new" / "trace")
    recorded = trace.read_bytes()
    assert b"MatMul" in recorded  # of the tests' network
    assert b"ParallelMap" in recorded  # of tf.data


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_the_trace_of_a_short_run_holds_something(tmp_path, cache_dir, flags, batches):
    flags[flags.index("--batch_size") + 1] = str(-(-40 // batches))
    main([*flags, "--trace", str(tmp_path / "trace")])
    [trace] = traces(tmp_path / "trace")
    assert b"MatMul" in trace.read_bytes()


def test_a_trace_ends_when_it_holds_enough(tmp_path, cache_dir, flags, monkeypatch):
    """The profiler keeps everything in memory until it is stopped."""
    monkeypatch.setattr(compute, "TRACED", 2)
    traces_written = []
    append = Writer.append

    def append_and_look(self, rows):
        append(self, rows)
        traces_written.append(len(traces(tmp_path / "trace")))

    monkeypatch.setattr(Writer, "append", append_and_look)
    main([*flags, "--trace", str(tmp_path / "trace")])
    # 20 batches: 5 before the trace, 2 in it.
    assert traces_written == [0] * 7 + [1] * 13


def test_a_run_with_nothing_to_do_prints_that_it_has_no_trace(tmp_path, extracted, module, capsys):
    places = ["--image_dir", tmp_path / "photos", "--cache_dir", tmp_path / "cache", "--module", module]
    main([*map(str, places), "--trace", str(tmp_path / "trace")])
    assert "no trace: nothing was computed" in capsys.readouterr().out
    assert not traces(tmp_path / "trace")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/trace"])
def test_a_trace_that_cannot_be_written_is_refused_before_the_work(tmp_path, flags, capsys, place):
    (tmp_path / "file").write_text("")
    assert console.run(main, [*flags, "--trace", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / place}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_trace_that_fails_later_costs_no_bottleneck(tmp_path, cache_dir, flags, module):
    (tmp_path / "file").write_text("")
    settings = Settings(str(tmp_path / "photos"), str(cache_dir), module, trace=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the trace could not be written to .*file"):
        assert extract(settings).computed == 40


def test_an_error_under_the_profiler_is_raised_and_ends_it(tmp_path, cache_dir, flags, monkeypatch):
    def fail(self, rows):
        raise OSError("made up")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "append", fail)
        with pytest.raises(OSError, match="made up"):
            main([*flags, "--trace", str(tmp_path / "trace")])
    main([*flags, "--trace", str(tmp_path / "second")])  # would fail if a profiler still ran
    assert traces(tmp_path / "second")


def test_the_first_lines_are_rates_and_shares_and_one_sentence(cache_dir, flags, capsys):
    main(flags)
    shares, verdict = capsys.readouterr().out.splitlines()[:2]
    stages = re.fullmatch(r"40 photos in [\d.]+ s, \d+ photos/s; waited for (.*) \(tensorflow in float32 .*\)", shares)
    assert [stage.rsplit(" ", 1)[0] for stage in stages[1].split(", ")] == [
        "starting",
        "decoding",
        "the network",
        "writing",
    ]
    assert re.match("(decode|network|write)-bound: |balanced: |too short to say: ", verdict)
    assert "GPU was busy" not in verdict


def test_the_bar_shows_the_readings(cache_dir, flags, capsys, monkeypatch):
    @contextlib.contextmanager
    def watching(names):
        gpus = nvml.Gpus()
        gpus.add([nvml.Reading("GPU:0", 87, (12 << 30, 80 << 30))])
        yield gpus

    monkeypatch.setattr(nvml, "watching", watching)
    main(flags)
    assert re.search(r"40/40 \[\d\d:\d\d<\d\d:\d\d, .*photos/s, GPU:0 87% 12/80 GiB\]", capsys.readouterr().err)
