"""The progress bar: it moves where somebody watches, and is two or three lines of a log file."""

import io
import sys
import time

import pytest

from cache.bar import bar


@pytest.mark.parametrize("place", ["terminal", "notebook", "log"])
def test_the_bar_does_not_fill_a_log(monkeypatch, place):
    stderr = io.StringIO()
    stderr.isatty = lambda: place == "terminal"
    if place == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr(sys, "stderr", stderr)
    with bar(desc="extract", total=10) as shown:
        for _ in range(10):
            time.sleep(0.05)
            shown.update(1)
    states = stderr.getvalue().count("\r")
    if place == "log":
        assert 2 <= states <= 3  # at the start and at the end
    else:
        assert states > 4
    assert "10/10" in stderr.getvalue()
