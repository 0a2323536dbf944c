"""Tables as plain data; `templates/macros.html.j2` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MATRIX = 30  # classes above which a confusion matrix is shown and written as the list of its confusions
# Of the strongest colour: the text on it stays as easy to read as beside it.
_MOST_OPAQUE = 0.55


@dataclass(frozen=True)
class Cell:
    """A cell of a coloured table."""

    text: str
    share: float = 0.0  # from 0 to 1: the larger, the stronger the cell's colour
    colour: str = "good"  # or "bad", as the page's style defines them
    is_chosen: bool = False  # then it is framed
    tip: str = ""  # what shows when the mouse points at the cell

    @property
    def opacity(self) -> float:
        """How opaque the colour is, from 0 to 1."""
        return self.share * _MOST_OPAQUE


@dataclass(frozen=True)
class Row:
    """A row of a coloured table and its name."""

    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A coloured table. All rows have as many cells as there are `columns`, the columns' names."""

    columns: Sequence[str]
    rows: Sequence[Row]
    corner: str = ""  # what the rows' names are names of
    title: str = ""
