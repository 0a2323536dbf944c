"""The files and folders that systems, not people, put among photos."""

from __future__ import annotations

# Network storages, file systems, macOS and Windows put small copies of photos, deleted photos and notes of their own
# into any folder. Whoever sees `@eaDir/rose.jpg/SYNOPHOTO_THUMB_M.jpg` as a photo makes a class of each thumbnail.
_NAMES = frozenset(
    [
        b"@eaDir",  # Synology, as the next two
        b"#recycle",
        b"#snapshot",
        b"@Recycle",  # QNAP, as the next one
        b"@Recently-Snapshot",
        b"RECYCLED",  # Windows of long ago, as the next one; only in capitals, as it wrote them
        b"RECYCLER",
        b"lost+found",
        b"__MACOSX",  # what zip archives made on a Mac leave
    ]
)
_NAMES_IN_ANY_CASE = frozenset(
    [b"$recycle.bin", b"system volume information", b"thumbs.db", b"ehthumbs.db", b"desktop.ini"]  # Windows
)


def is_passed_over(name: bytes) -> bool:
    """Whether a file or folder of this name is hidden, by a dot in front, or a system's own."""
    return name.startswith(b".") or name in _NAMES or name.lower() in _NAMES_IN_ANY_CASE
