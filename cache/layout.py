"""Names of the folders and files of a cache, and what describes a backbone."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.errors import CacheError, damage
from cache.files import own_folder
from cache.passed_over import is_passed_over

INDEX, SHARDS, BACKBONE, REJECTED = "index.h5", "shards", "backbone", "rejected.csv"
THUMBNAILS = "thumbnails"
AUGMENTATIONS = "distorted"
SAVED_MODEL = "saved_model.pb"  # in BACKBONE
# In the output_dir of a training, whose classifier may be read without the packages that trained it.
HEAD, RUNS, LATEST = "head.h5", "runs", "latest"
RUN = "[0-9]*-*-*T*-*-*.*Z"  # the names of the folders in RUNS, by time; others in it are not ours
_SUFFIX = ".h5"
_MOST = 1 << 24  # pixels of a side, or numbers of a bottleneck: a crafted file must not overflow what multiplies them


@dataclass(frozen=True)
class BackboneInfo:
    """What describes a backbone and its preprocessing: bottlenecks with equal descriptions are comparable.

    The random changes of an augmentation count as preprocessing.
    """

    module: str  # as given to --module
    identity: str  # changes if the backbone may have changed; known without loading it
    fingerprint: str  # of the weights, the image size and the preprocessing
    image_height: int  # pixels
    image_width: int
    preprocessing: str
    dimension: int  # D, the length of a bottleneck

    def attributes(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, path: Path, attributes: Mapping[str, Any]) -> BackboneInfo:
        """From the attributes of the file `path`. Raises CacheError where they describe no backbone."""
        values = {field.name: attributes.get(field.name) for field in fields(cls)}
        for field in fields(cls):
            value = values[field.name]
            if not (isinstance(value, str) if field.type == "str" else isinstance(value, int) and 0 < value <= _MOST):
                raise damage(path, f"the attribute {field.name}")
        return cls(**values)  # type: ignore[arg-type]

    def augmented(self, augmentation: str) -> BackboneInfo:
        """The same backbone on photos changed as `augmentation` says. Its own fingerprint keeps both from mixing."""
        preprocessing = f"{self.preprocessing}; {augmentation}"
        return replace(
            self,
            identity=f"{self.identity}, {augmentation}",
            fingerprint=hashlib.sha256(f"{self.fingerprint} {preprocessing}".encode()).hexdigest()[:16],
            preprocessing=preprocessing,
        )


BACKBONE_ATTRIBUTES = [field.name for field in fields(BackboneInfo)]  # of the files of its folder


def directories(cache_dir: Path) -> list[Path]:
    """The folders of backbones in a cache_dir that hold anything committed, sorted; [cache_dir] if it is one itself.

    Raises CacheError for a link, which leads out of the cache.
    """
    if is_committed(cache_dir):
        return [cache_dir]
    if not cache_dir.is_dir():
        return []
    entries = (entry for entry in cache_dir.iterdir() if not is_passed_over(os.fsencode(entry.name)))
    found = sorted(entry for entry in entries if entry.is_dir() and is_committed(entry))
    for entry in found:
        if entry.is_symlink():
            raise CacheError(f"{entry} is a link; put the folder itself there, or give {entry.resolve()} alone")
    return found


def augmentations(directory: Path, begun: bool = False) -> list[Path]:
    """The folders of augmentations in a backbone's folder, in order of number.

    Without `begun`, only those that hold anything committed. Raises CacheError for links.
    """
    folder = own_folder(directory, AUGMENTATIONS)
    if not folder.is_dir():
        return []
    numbered = sorted((number, entry.name) for entry in folder.iterdir() if (number := augmentation_number(entry)))
    found = [entry for _, name in numbered if (entry := own_folder(folder, name)).is_dir()]
    return found if begun else list(filter(is_committed, found))


def augmentation_dir(directory: Path, number: int, info: BackboneInfo) -> Path:
    """The folder of augmentation `number` in a backbone's folder. Its name says how it is made: no two kinds mix."""
    return directory / AUGMENTATIONS / f"{number}-{info.fingerprint}"


def augmentation_number(directory: Path) -> int | None:
    """The number of an augmentation, from 1, by the place and the name of its folder; None if it is none."""
    absolute = directory.absolute()
    name = re.fullmatch(r"([1-9][0-9]*)-[0-9a-f]{16}", absolute.name)
    return int(name[1]) if name and absolute.parent.name == AUGMENTATIONS else None


def is_committed(directory: Path) -> bool:
    """Whether a folder holds an index or shards."""
    return (directory / INDEX).exists() or bool(shard_names(directory))


def has_backbone(directory: Path) -> bool:
    """Whether the backbone lies beside its bottlenecks, so that training can export a classifier."""
    return (directory / BACKBONE / SAVED_MODEL).exists()


def shard_names(directory: Path) -> list[str]:
    """The file names of all committed shards, oldest first. Raises CacheError where their folder is a link."""
    return committed_names(directory, SHARDS)


def committed_names(directory: Path, folder: str) -> list[str]:
    """The names of the committed files in SHARDS or THUMBNAILS, oldest first. Raises CacheError for a link."""
    try:
        return sorted(filter(is_committed_name, os.listdir(own_folder(directory, folder))))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_committed_name(name: str) -> bool:
    """Whether this is the name of a committed file. One that starts with a dot is being written, or was."""
    return name.endswith(_SUFFIX) and not name.startswith(".")


def new_name(ending: str | None = None) -> str:
    """A file name that no other writer uses: the time, so that a listing shows the order of work, then `ending`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}{ending or own_ending()}"


def own_ending() -> str:
    """A random ending for file names, by which a writer recognises its own shards."""
    return f"-{secrets.token_hex(4)}{_SUFFIX}"
