"""Photos that lie nowhere on disk, and extractions of them that run no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import cache
from cache.layout import BackboneInfo
from cache.photos import Photos
from cache.shard import Rows
from cache.store import Store
from cache.strings import Strings
from cache.work import Work

CONTENTS = {"a/1.jpg": 1, "a/2.jpg": 2, "a/3.jpg": 3, "b/4.jpg": 4, "b/5.jpg": 5}  # of a folder, see there
DIMENSION = 3
BACKBONE = BackboneInfo("tiny", "tiny at its own size", "0123456789abcdef", 16, 16, "none", DIMENSION)


@dataclass
class Folder:
    """A folder of photos, whose content is a number each."""

    contents: Mapping[str, int]  # by path; the folder of a path is the photo's class
    mtimes: Mapping[str, int] = field(default_factory=dict)  # where it is not 1
    ctimes: Mapping[str, int] = field(default_factory=dict)  # where it is not 1
    listed: int = 100
    unreadable: Collection[str] = ()  # paths
    read: list[str] = field(default_factory=list)  # the paths that `read_fingerprints` was called with

    def photos(self) -> Photos:
        paths = sorted(self.contents)
        labels = sorted({path.split("/")[0] for path in paths})
        return Photos(
            Path("/photos"),
            labels,
            labels,
            Strings.of(paths),
            np.array([size_of(self.contents[path]) for path in paths], np.int64),
            np.array([self.mtimes.get(path, 1) for path in paths], np.int64),
            np.array([self.ctimes.get(path, 1) for path in paths], np.int64),
            np.array([labels.index(path.split("/")[0]) for path in paths], np.int32),
            self.listed,
        )

    def read_fingerprints(self, photos: Photos, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        paths = list(photos.paths.take(positions))
        self.read += paths
        readable = [path not in self.unreadable for path in paths]
        fingerprints = [fingerprint_of(self.contents[path]) for path in paths]
        return positions[readable], np.array(fingerprints, np.uint64)[readable]

    def missing(self, store: Store, **options: object) -> Work:
        return store.missing(self.photos(), self.read_fingerprints, **options)  # type: ignore[arg-type]

    def compute(self, store: Store, work: Work) -> list[str]:
        """Commits each piece of the work as a shard, and rejects what is unreadable. Returns the paths computed."""
        computed = []
        with store.writer(work.photos, "float32", "tensorflow") as writer:
            for positions in work.pieces(writer.ending):
                for position in positions.tolist():
                    if work.photos.paths[position] in self.unreadable:
                        work.reject(position, "broken", retry=False)
                positions = np.array([p for p in positions.tolist() if p not in work.rejected], int)
                writer.append(self.rows(work.photos, positions))
                writer.commit()
                computed += list(work.photos.paths.take(positions))
        return computed

    def extract(self, store: Store) -> Work:
        """A whole extraction: missing, compute, publish."""
        work = self.missing(store)
        self.compute(store, work)
        store.publish(work, self.read_fingerprints)
        return work

    def rows(self, photos: Photos, positions: np.ndarray) -> Rows:
        """The bottlenecks of the photos at `positions`."""
        paths = photos.paths.take(positions)
        contents = [self.contents[path] for path in paths]
        fingerprints = np.array([fingerprint_of(content) for content in contents], np.uint64)
        vectors = np.array([vector_of(content) for content in contents], np.float32).reshape(-1, DIMENSION)
        return Rows(paths, photos.sizes[positions], photos.mtimes[positions], fingerprints, vectors)


def size_of(content: int) -> int:
    """Bytes of a photo: many have the same number."""
    return 1000 + content % 3


def fingerprint_of(content: int) -> int:
    return 2**63 + content


def vector_of(content: int) -> list[float]:
    """The bottleneck of a photo."""
    return [content, content + 0.5, -content]


def missing_paths(work: Work) -> list[str]:
    return list(work.photos.paths.take(work.missing))


def published(directory: Path) -> dict[str, tuple[str, list[float]]]:
    """The label and the bottleneck of each photo of an index, by its path."""
    opened = cache.open(directory)
    vectors = opened.bottlenecks(np.arange(len(opened))).tolist()
    labels = [opened.labels[label_id] for label_id in opened.label_ids]
    return dict(zip(opened.paths, zip(labels, vectors, strict=True), strict=True))


def expected(contents: Mapping[str, int]) -> dict[str, tuple[str, list[float]]]:
    """What is to be `published` of photos with these contents."""
    return {path: (path.split("/")[0], vector_of(content)) for path, content in contents.items()}
