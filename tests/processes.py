"""Runs of the commands in processes of their own."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]


def extract_with_nothing_to_do(cache_dir, flags):
    """What an extraction prints that imports no TensorFlow, complains of nothing, and leaves `cache_dir` as it is."""
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")}
    script = f"""
import sys
from cache import command
from extract.__main__ import main
status = command.run(main, {list(map(str, flags))})
sys.exit(99 if "tensorflow" in sys.modules else status)"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")} == before
    return done.stdout
