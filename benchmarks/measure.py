"""Measuring on a machine that others use too: contenders take turns, and each turn gives a ratio."""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cache.bar import bar
from cache.errors import UserError, first_line
from cache.process import cores

# Runs once and returns its figure: a rate, seconds, or megabytes.
Contender = Callable[[], float]

SMALLER_IS_BETTER = ("s", "MB")
# Runs a command as the child of a small process. A child of this process would begin with the memory of this one, which
# holds TensorFlow and gigabytes of data, and that would count as the command's peak.
_WATCH = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""
_PACKAGES = ("tensorflow", "keras", "openvino", "numpy", "h5py", "scikit-learn", "pillow")


@dataclass(frozen=True)
class Options:
    """The flags that concern every suite."""

    repeats: int  # turns of each contender
    scale: float  # factor of the size of what is measured; 1 gives figures worth keeping
    photos: Path | None  # has a subfolder for each class; None if no chosen suite needs photos
    scratch: Path  # deleted at the end

    def scaled(self, size: int, least: int = 1) -> int:
        """`size` times the scale, but not below `least`."""
        return max(least, round(size * self.scale))

    @property
    def half_repeats(self) -> int:
        """Turns of contenders that take many seconds each: half as many, rounded up."""
        return math.ceil(self.repeats / 2)

    @property
    def seconds(self) -> float:
        """How long a turn lasts if the contender could run for any time."""
        return max(0.05, min(3.0, 3 * self.scale))


@dataclass(frozen=True)
class Result:
    """One case: our figures, and those of the reference from the same turns."""

    suite: str
    case: str
    unit: str
    ours: Sequence[float]  # one figure for each turn
    reference_name: str | None = None
    reference: Sequence[float] | None = None
    target: float | None = field(default=None, kw_only=True)  # of the ratio; without a reference, of our own figure

    @property
    def ratios(self) -> list[float]:
        """How many times better ours was than the reference, in each turn."""
        pairs = zip(self.ours, self.reference or (), strict=bool(self.reference))
        if self.unit in SMALLER_IS_BETTER:
            return [reference / ours for ours, reference in pairs]
        return [ours / reference for ours, reference in pairs]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.target is None:
            return None
        if self.reference:
            return statistics.median(self.ratios) >= self.target
        figure = statistics.median(self.ours)
        return figure <= self.target if self.unit in SMALLER_IS_BETTER else figure >= self.target


def turns(contenders: Mapping[str, Contender], repeats: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """`repeats` figures of each contender, in turns A B C, C B A, A B C, so that a slow minute slows all of them down.

    With `warm_up`, each runs once before without being counted: that reads files into memory, traces graphs and starts
    threads.
    """
    if warm_up:
        for contender in contenders.values():
            contender()
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in bar(range(repeats), desc="turns", leave=False):
        # Every second turn goes backwards, so that no contender always follows the same other one.
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            figures[name].append(contenders[name]())
    return figures


def rate(amount: float, work: Callable[[], object]) -> Contender:
    """Its figure is amounts per second, where one call of `work` does `amount`."""
    return lambda: amount / _seconds(work)


def rate_for(seconds: float, amount: float, work: Callable[[], object]) -> Contender:
    """Like `rate`, but repeats `work` until `seconds` are over: for contenders of very different speeds."""

    def figure() -> float:
        began, done, spent = time.perf_counter(), 0.0, 0.0
        while not done or spent < seconds:
            work()
            done += amount
            spent = time.perf_counter() - began
        return done / spent

    return figure


def seconds(work: Callable[[], object]) -> Contender:
    """Its figure is the seconds that `work` takes."""
    return lambda: _seconds(work)


def command(arguments: Sequence[str]) -> tuple[float, float]:
    """Runs a command; returns its seconds and its peak memory in MB. Raises UserError if it fails."""
    done = subprocess.run([sys.executable, "-c", _WATCH, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(arguments[:3])} failed ({done.stderr.strip()})")
    spent, peak = done.stdout.splitlines()[-1].split()
    return float(spent), float(peak) / (1e6 if sys.platform == "darwin" else 1e3)  # macOS counts bytes, Linux kB


def table(results: Sequence[Result]) -> str:
    """The results as a table in Markdown, to be pasted into a README."""
    header = ("suite", "case", "ours", "reference", "ratio, median [min..max]", "target", "met?")
    rows = [header, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_json(path: Path, results: Sequence[Result], options: Options) -> None:
    """Writes the results as JSON, with the figure of every turn. Raises UserError if the file cannot be written."""
    content = {
        "machine": machine(),
        "repeats": options.repeats,
        "scale": options.scale,
        "results": [_record(result) for result in results],
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}; choose another --json") from None


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, and versions of Python and packages."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _record(result: Result) -> dict[str, Any]:
    return {
        "suite": result.suite,
        "case": result.case,
        "unit": result.unit,
        "ours": list(result.ours),
        "reference_name": result.reference_name,
        "reference": list(result.reference) if result.reference else None,
        "ratios": result.ratios,
        "ratio": statistics.median(result.ratios) if result.reference else None,
        "target": result.target,
        "met": result.met,
    }


def _row(result: Result) -> tuple[str, ...]:
    ours = f"{_number(statistics.median(result.ours))} {result.unit}"
    if result.reference:
        ratios = result.ratios
        reference = f"{_number(statistics.median(result.reference))} {result.unit}, {result.reference_name}"
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"
    else:
        reference, ratio = "", ""
    target = "" if result.target is None else f"{result.target:g}" + ("" if result.reference else f" {result.unit}")
    met = {None: "", True: "yes", False: "no"}[result.met]
    return result.suite, result.case, ours, reference, ratio, target, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
