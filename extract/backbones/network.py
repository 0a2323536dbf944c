"""What the kinds of modules have in common: the network as it is loaded, before it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True, eq=False)
class Network:
    """A network without its last layer, which may still hold variables."""

    # Takes images float32 [N, H, W, 3] in [0, 1]; returns a tensor, or several in a dictionary, list or tuple.
    call: Callable[[tf.Tensor], Any]
    image_size: Size
    weights_digest: str  # SHA-256, in hex, of the files or arrays that determine the output


def pixels(size: Iterable[int | None]) -> str:
    """`299 by 299`, or `any by any` if a signature leaves the size open."""
    return " by ".join("any" if length is None else str(length) for length in size)


def enumerated(names: list[str], what: str) -> str:
    """`its outputs are a, b`, or `it has no outputs`, if `what` is "outputs"."""
    return f"its {what} are {', '.join(names)}" if names else f"it has no {what}"
