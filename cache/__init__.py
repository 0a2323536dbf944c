"""The cache of bottlenecks: `extract` fills it, `train` reads it. `cache.open(DIR)` opens one for reading.

The life of a shard, the file that holds bottlenecks:
1. A `Writer` collects rows and writes them to a file whose name starts with a dot. Flushed to disk and renamed, it is
   committed, and never changes again.
2. `Store.publish` writes an index that names it and says which row is which photo's. If the run was killed before
   that, the next run finds the shard and uses its rows.
3. When photos change or are deleted, their rows are no longer used. `compact` and `repair` write the rows that are
   still wanted to new shards, then an index that names these.
4. Only then the old shards are deleted, by the same command, which holds the folder's lock. Readers that have mapped
   a deleted shard keep its content until they close it.
"""

from typing import TYPE_CHECKING, Any

from cache.errors import CacheError, UserError

if TYPE_CHECKING:
    from cache.reader import Cache, open
    from cache.store import Store

__all__ = ["Cache", "CacheError", "Store", "UserError", "open"]


def __getattr__(name: str) -> Any:
    # h5py and numpy take a fifth of a second to import, and `-h` needs neither.
    if name in ("Cache", "open"):
        from cache import reader

        return getattr(reader, name)
    if name == "Store":
        from cache.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
