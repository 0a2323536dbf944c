"""The bar that shows the progress of long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30


def bar(items: Iterable[Any] | None = None, desc: str | None = None, **settings: Any) -> tqdm:
    """A tqdm bar on stderr. If stderr is a log file, it refreshes every 30 s only. `settings` are tqdm's."""
    redraws = sys.stderr.isatty() or "ipykernel" in sys.modules  # notebooks do not claim to be a terminal
    intervals = {} if redraws else {"mininterval": _LOG_SECONDS, "maxinterval": _LOG_SECONDS}
    return tqdm(items, desc, **intervals, **settings)
