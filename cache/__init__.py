"""The cache of bottlenecks: what `extract` fills and `train` reads. `cache.open(DIR)` opens one."""

from typing import TYPE_CHECKING, Any

from cache.errors import CacheError, UserError

if TYPE_CHECKING:
    from cache.reader import Cache, open

__all__ = ["Cache", "CacheError", "UserError", "open"]


def __getattr__(name: str) -> Any:
    # h5py and numpy take a fifth of a second to import, and `-h` needs neither.
    if name in ("Cache", "open"):
        from cache import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
