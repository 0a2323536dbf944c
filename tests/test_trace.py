"""What an extraction tells while it runs and afterwards: the bar, the verdict, the trace."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache import command
from extract import fill, nvml
from extract.__main__ import main
from extract.run import extract
from extract.settings import Settings
from tests.pictures import make_folder

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def flags(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 20, "b": 20})
    places = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    return [*places, "--engine", "tensorflow", "--precision", "float32", "--batch_size", "2"]


def traces(directory):
    return sorted(Path(directory).glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_is_where_tensorboard_looks_and_shows_the_network_and_the_decoding(tmp_path, flags):
    done = subprocess.run(
        [sys.executable, "-m", "extract", *flags, "--trace", tmp_path / "new" / "trace"],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"\ntrace: tensorboard --logdir {tmp_path}/new/trace\n" in done.stdout
    assert "Profiler" not in done.stderr
    [trace] = traces(tmp_path / "new" / "trace")
    recorded = trace.read_bytes()
    assert b"MatMul" in recorded  # of the tests' network
    assert b"ParallelMap" in recorded  # of tf.data


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_however_short_a_run_its_trace_holds_something(tmp_path, flags, batches):
    flags[flags.index("--batch_size") + 1] = str(-(-40 // batches))
    main([*flags, "--trace", str(tmp_path / "trace")])
    [trace] = traces(tmp_path / "trace")
    assert b"MatMul" in trace.read_bytes()


def test_a_trace_ends_when_it_holds_enough(tmp_path, flags, monkeypatch):
    """The profiler keeps everything in memory until it is stopped."""
    monkeypatch.setattr(fill, "TRACED", 2)
    written = []
    append = fill.Writer.append

    def appended(self, rows):
        append(self, rows)
        written.append(len(traces(tmp_path / "trace")))

    monkeypatch.setattr(fill.Writer, "append", appended)
    main([*flags, "--trace", str(tmp_path / "trace")])
    # 20 batches: 5 before the trace, 2 in it.
    assert written == [0] * 7 + [1] * 13


def test_a_run_with_nothing_to_do_says_that_it_has_no_trace(tmp_path, flags, capsys):
    main(flags)
    main([*flags, "--trace", str(tmp_path / "trace")])
    assert "no trace: nothing was computed" in capsys.readouterr().out
    assert not traces(tmp_path / "trace")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/trace"])
def test_a_trace_that_cannot_be_written_is_refused_before_the_work(tmp_path, flags, capsys, place):
    (tmp_path / "file").write_text("")
    assert command.run(main, [*flags, "--trace", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / place}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_trace_that_fails_later_costs_no_bottleneck(tmp_path, flags, module):
    (tmp_path / "file").write_text("")
    settings = Settings(str(tmp_path / "photos"), str(tmp_path / "cache"), module, trace=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the trace could not be written to .*file"):
        assert extract(settings).computed == 40


def test_an_error_under_the_profiler_is_the_error_and_ends_it(tmp_path, flags, monkeypatch):
    def fail(self, rows):
        raise OSError("made up")

    with monkeypatch.context() as patched:
        patched.setattr(fill.Writer, "append", fail)
        with pytest.raises(OSError, match="made up"):
            main([*flags, "--trace", str(tmp_path / "trace")])
    main([*flags, "--trace", str(tmp_path / "second")])  # would fail if a profiler still ran
    assert traces(tmp_path / "second")


def test_the_last_lines_are_rates_shares_and_one_sentence(flags, capsys):
    main(flags)
    shares, verdict = capsys.readouterr().out.splitlines()[:2]
    stages = re.fullmatch(r"40 images in [\d.]+ s, \d+ images/s; waited for (.*) \(tensorflow in float32 .*\)", shares)
    assert [stage.rsplit(" ", 1)[0] for stage in stages[1].split(", ")] == [
        "starting",
        "decoding",
        "the network",
        "writing",
    ]
    assert re.match("(decode|network|write)-bound: |balanced: |too short to tell: ", verdict)
    assert "GPU was busy" not in verdict


def test_the_bar_shows_the_readings(flags, capsys, monkeypatch):
    @contextlib.contextmanager
    def watching(names):
        gpus = nvml.Gpus()
        gpus.add([nvml.Reading("GPU:0", 87, (12 << 30, 80 << 30))])
        yield gpus

    monkeypatch.setattr(nvml, "watching", watching)
    main(flags)
    assert re.search(r"40/40 \[\d\d:\d\d<\d\d:\d\d, .*images/s, GPU:0 87% 12/80 GiB\]", capsys.readouterr().err)
