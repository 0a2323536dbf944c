"""A new head from the cache and the corrections: `python -m train` as a child process on a cache made of both."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache import files, layout, reader
from cache import head as head_files
from cache import index as indexes
from cache.errors import UserError, first_line
from cache.head import Head
from cache.index import Index
from cache.layout import BackboneInfo
from cache.shard import Rows
from cache.strings import ABSENT, Strings, find
from cache.writer import Writer
from extract.service.corrections import HEADS, Corrected, Corrections
from extract.service.heads import Heads, Loaded
from extract.service.refused import DeadError, Refused

NONE, RUNNING, DONE, FAILED = "none", "running", "done", "failed"
_LINES = 20  # of the training's output that are kept
_STAGED = ".training"  # beside the runs of a head: its new one, until it is told to take its place
_WORK = ".cache"  # in the folder of corrections: the cache that a training reads
VectorOf = Callable[[bytes], Awaitable[np.ndarray]]


class Training:
    """The training of a head, of which one runs at a time."""

    def __init__(self, corrections: Corrections, heads: Heads):
        self._corrections = corrections
        self._heads = heads
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._vectors: dict[str, np.ndarray] = {}  # of corrections, by their names, which say their content
        self._state, self._name, self._began, self._seconds = NONE, "", 0.0, 0.0
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._error: str | None = None
        self._new: Head | None = None

    def start(self, name: str, directory: Path, backbone: BackboneInfo, vector_of: VectorOf) -> None:
        """Begins to train the head `name` on the bottlenecks in `directory` and the corrections.

        Raises Refused while another training runs.
        """
        if self._state == RUNNING:
            raise Refused(409, f"the head {self._name} is being trained; wait for it", "busy")
        self._corrections.label(name, ())
        self._state, self._name, self._began = RUNNING, name, time.monotonic()
        self._lines.clear()
        self._error, self._new = None, None
        self._task = asyncio.create_task(self._run(directory, backbone, vector_of))

    def describe(self) -> dict[str, Any]:
        """How far it is, and how good the new head is beside the old one."""
        seconds = time.monotonic() - self._began if self._state == RUNNING else self._seconds
        old = self._heads.by_name.get(self._name)
        return {
            "state": self._state,
            "head": self._name or None,
            "seconds": round(seconds, 1),
            "lines": list(self._lines),
            "error": self._error,
            "old": _quality(old.head) if old else None,
            "new": _quality(self._new) if self._new else None,
        }

    def swap(self) -> Loaded:
        """Puts the new head in the place of the old one, on the disk as well.

        Raises Refused where there is none, and UserError where its folder cannot be written.
        """
        if self._state != DONE or self._new is None:
            raise Refused(409, "there is no new head; train one first", "busy")
        folder, staged = self._folder, self._folder / _STAGED
        [run] = (staged / layout.RUNS).glob(layout.RUN)
        with files.writing(folder):
            (folder / layout.RUNS).mkdir(parents=True, exist_ok=True)
            os.rename(run, folder / layout.RUNS / run.name)
            files.sync(folder / layout.RUNS)
        files.replace_link(folder / layout.LATEST, Path(layout.RUNS, run.name))
        shutil.rmtree(staged, ignore_errors=True)
        self._state = NONE
        return self._heads.put(self._name, folder)

    def discard(self) -> None:
        """Forgets the new head. Raises Refused where there is none."""
        if self._state not in (DONE, FAILED):
            raise Refused(409, "there is no new head to discard", "busy")
        shutil.rmtree(self._folder / _STAGED, ignore_errors=True)
        self._state, self._new = NONE, None

    def end(self) -> None:
        """Stops the training, if one runs."""
        if self._task:
            self._task.cancel()
        if self._process and self._process.returncode is None:
            self._process.kill()

    @property
    def _folder(self) -> Path:
        """Of the head: where it was read from, or else one of its own."""
        loaded = self._heads.by_name.get(self._name)
        return loaded.folder if loaded else self._corrections.folder / HEADS / self._name

    async def _run(self, directory: Path, backbone: BackboneInfo, vector_of: VectorOf) -> None:
        try:
            photos, vectors = await self._bottlenecks(vector_of)
            work = self._corrections.folder / _WORK
            await asyncio.to_thread(_make_cache, work, directory, backbone, photos, vectors)
            await self._train(work)
            self._new = await asyncio.to_thread(head_files.read, self._folder / _STAGED)
            self._state = DONE
        except (UserError, Refused, DeadError) as error:
            self._state, self._error = FAILED, str(error)
        except OSError as error:
            self._state, self._error = FAILED, first_line(error)
        finally:
            if self._state == RUNNING:  # a defect, or the end of the service
                self._state, self._error = FAILED, "the training was stopped"
            self._seconds = time.monotonic() - self._began
            shutil.rmtree(self._corrections.folder / _WORK, ignore_errors=True)

    async def _bottlenecks(self, vector_of: VectorOf) -> tuple[list[Corrected], np.ndarray]:
        """The corrections and their bottlenecks, float32 [n, D]. What is no photo any more is left out."""
        there = await asyncio.to_thread(list, self._corrections)
        found = []
        for photo in there:
            if photo.path.name not in self._vectors:
                content = await asyncio.to_thread(photo.path.read_bytes)
                try:
                    self._vectors[photo.path.name] = await vector_of(content)
                except Refused as refused:
                    self._lines.append(f"left out: {photo.below}: {refused.message}")
                    continue
            found.append(photo)
        vectors = [self._vectors[photo.path.name] for photo in found]
        return found, np.stack(vectors) if vectors else np.zeros((0, 1), np.float32)

    async def _train(self, work: Path) -> None:
        """Runs `python -m train`. Raises UserError with its last line where it fails."""
        staged = self._folder / _STAGED
        await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
        staged.parent.mkdir(parents=True, exist_ok=True)
        # The devices are the service's. -P: a folder `train` where the service runs is not the program.
        arguments = ["-P", "-m", "train", "--cache_dir", str(work), "--output_dir", str(staged), "--device", "cpu"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        rest = b""
        while block := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + block.replace(b"\r", b"\n")).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines if line.strip())
        if await self._process.wait():
            errors = [line for line in self._lines if line.startswith("error: ")]
            raise UserError(errors[-1].removeprefix("error: ") if errors else "the training was stopped")


def _make_cache(
    work: Path, directory: Path, backbone: BackboneInfo, photos: Sequence[Corrected], vectors: np.ndarray
) -> None:
    """A cache of the photos in `directory` and those corrected, whose bottlenecks are `vectors`, float32 [n, D].

    Files are linked where the file system can. A photo of the cache that was corrected is one of the corrections.
    """
    import tensorflow as tf

    from extract.batches import fingerprint

    files.delete(work)
    made = work / directory.name
    made.mkdir(parents=True)
    with files.locked(directory, shared=True):
        for name in (layout.BACKBONE, layout.SHARDS, layout.THUMBNAILS):
            if (directory / name).is_dir():
                shutil.copytree(directory / name, made / name, copy_function=_link)
        prints = [fingerprint(tf.constant(photo.path.read_bytes())).numpy().view(np.uint64)[0] for photo in photos]
        stamps = [photo.path.stat() for photo in photos]
        rows = Rows(
            Strings.of([photo.below for photo in photos]),
            np.array([stamp.st_size for stamp in stamps], np.int64),
            np.array([stamp.st_mtime_ns for stamp in stamps], np.int64),
            np.array(prints, np.uint64),
            vectors.astype(np.float16),
        )
        added = None
        if photos:
            with Writer(made, {**backbone.attributes(), "precision": "", "engine": ""}) as writer:
                writer.append(rows)
            [added] = [name for name in layout.shard_names(made) if name.endswith(writer.ending)]
        kept = np.zeros(0, np.int64)
        if (directory / layout.INDEX).exists():
            opened = reader.open(directory)
            is_corrected = np.isin(opened.fingerprints, rows.fingerprints)
            same = find(rows.paths, opened.paths)  # no index has a path twice
            is_corrected[same[same != ABSENT]] = True
            kept, old = np.flatnonzero(~is_corrected), opened.index
        else:
            none = np.zeros(0, np.int64)
            old = Index(str(directory), [], [], Strings.of([]), none, none, none, none, none)
        indexes.write(made, backbone, _joined(old, kept, [photo.label for photo in photos], rows, added))


def _joined(old: Index, kept: np.ndarray, labels: Sequence[str], rows: Rows, shard: str | None) -> Index:
    """The rows `kept` (int64 [m]) of an index, and those of the new `shard`, which have these labels."""
    classes = sorted({*(old.labels[c] for c in np.unique(old.label_ids[kept])), *labels})
    number = {label: i for i, label in enumerate(classes)}
    renumbered = np.array([number.get(label, -1) for label in old.labels], np.int32)
    own_ids = np.array([number[label] for label in labels], np.int32)
    places = np.arange(len(rows), dtype=np.int32)
    return Index(
        image_dir=old.image_dir,
        labels=classes,
        shards=[*old.shards, *([shard] if shard else [])],
        paths=Strings.concatenate([old.paths.take(kept), rows.paths]),
        sizes=np.concatenate([old.sizes[kept], rows.sizes]),
        mtimes=np.concatenate([old.mtimes[kept], rows.mtimes]),
        label_ids=np.concatenate([renumbered[old.label_ids[kept]], own_ids]),
        shard_ids=np.concatenate([old.shard_ids[kept], np.full(len(rows), len(old.shards))]),
        shard_rows=np.concatenate([old.shard_rows[kept], places]),
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _quality(head: Head) -> dict[str, Any]:
    return {"labels": list(head.labels), "test_accuracy": head.test_accuracy, "test_photos": head.test_photos}
