"""The bar that shows how far long work is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOGGED = 30  # seconds between two states of the bar where they do not replace each other, but fill a log


def bar(items: Iterable[Any] | None = None, desc: str | None = None, **settings: Any) -> tqdm:
    """tqdm's, on standard error, with its `settings`; of a log that standard error goes to it does not fill pages."""
    redrawn = sys.stderr.isatty() or "ipykernel" in sys.modules  # notebooks say that they are no terminal
    seconds = {} if redrawn else {"mininterval": LOGGED, "maxinterval": LOGGED}
    return tqdm(items, desc, **seconds, **settings)
