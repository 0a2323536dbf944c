"""SavedModels that a web server sends as an archive: fetched whole, or not at all."""

from __future__ import annotations

import gzip
import http.client
import os
import shutil
import ssl
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from cache import files
from cache.bar import bar
from cache.errors import first_line
from extract.backbones import download, saved_model

_BLOCK = 1 << 16  # bytes read from the server at a time
_GZIP = b"\x1f\x8b"  # with which every file of gzip begins


class CutOffError(Exception):
    """An archive that did not arrive as it was sent, or that was not sent whole. The next time, it may be."""


class ForeignError(Exception):
    """What a server sent is no archive of a SavedModel."""


def fetch(url: str, folder: Path, show_bar: bool) -> None:
    """Makes `folder` of the SavedModel in the archive at `url`, a tar that may be gzipped.

    Redirects are followed. `folder` appears whole, once all bytes are there and every checksum is right. Before that,
    they are in a file without a name, which the system deletes with the process, and in a hidden folder beside
    `folder`, which `files.sweep` deletes. If another process makes `folder` meanwhile, that one stays.

    Raises CutOffError and ForeignError; UserError where the disk refuses; and whatever urllib raises for a server that
    does not answer: OSError, ValueError or http.client.HTTPException.
    """
    files.make_writable(folder.parent, "TFHUB_CACHE_DIR")
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        _receive(url, file, folder, show_bar)
        with files.replacing_folder(folder, keep=saved_model.FILES[0]) as temporary:
            _unpack(file, temporary)
            if not saved_model.is_in(temporary):
                raise ForeignError(f"there is no {saved_model.FILES[0]} in its archive")


def _receive(url: str, file: IO[bytes], folder: Path, show_bar: bool) -> None:
    """Writes to `file` what the server sends, with a bar. For `folder` and the errors see `fetch`."""
    with urllib.request.urlopen(url, context=_certificates()) as response:
        size = response.length  # in bytes; None if the server does not say
        with bar(desc="download", total=size, unit="B", unit_scale=True, disable=not show_bar) as progress:
            received = 0
            while True:
                try:
                    block = response.read(_BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    silent = f"nothing more in {download.SECONDS:g} seconds"
                    reason = silent if isinstance(error, TimeoutError) else first_line(error)
                    raise CutOffError(f"the transfer broke off after {received:,} bytes: {reason}") from error
                if not block:
                    break
                with files.writing(folder):
                    file.write(block)
                received += len(block)
                progress.update(len(block))
    if size is not None and received != size:
        raise CutOffError(f"the transfer broke off after {received:,} of {size:,} bytes")
    with files.writing(folder):
        file.seek(0)  # and writes what is still in memory


def _certificates() -> ssl.SSLContext:
    """The authorities that vouch for a server: the system's, or none if the variable of TensorFlow Hub says so."""
    context = ssl.create_default_context()
    if os.environ.get("TFHUB_DISABLE_CERT_VALIDATION") == "true":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unpack(file: IO[bytes], folder: Path) -> None:
    """Writes the files of an archive into `folder`, which is empty. Raises CutOffError, ForeignError and OSError."""
    is_gzipped = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:gz" if is_gzipped else "r:")  # noqa: SIM115 -- closed below
    except tarfile.TarError as error:
        raise ForeignError("what the server sent is no tar archive") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CutOffError(f"its archive is damaged: {first_line(error)}") from error
    try:
        with archive:
            for member in archive:
                _write(archive, member, folder)
            _check_end(archive)
    # Python raises a ValueError for some headers that make no sense.
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise CutOffError(f"its archive is damaged: {first_line(error)}") from error


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes a member of an archive into `folder`. It gets the permissions of any new file, not the archive's."""
    place = PurePosixPath(member.name.lstrip("/"))
    if ".." in place.parts or not (member.isfile() or member.isdir()):
        # A link or a path upwards could lead the files after it to anywhere on the disk. A SavedModel needs neither.
        raise ForeignError(f"its archive holds {member.name}, which is no file or folder of a SavedModel")
    path = folder / place
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    if content is not None:
        with content, open(path, "wb") as target:
            shutil.copyfileobj(content, target)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises CutOffError unless an archive whose members were all read has the end that every tar has, and a gzip too.

    Python takes the end of the file, or a header that it cannot read, for the end of a tar. But that is a block of
    zeros. And it compares the checksum of a gzip only when it comes to its last byte.
    """
    content = archive.fileobj
    assert content is not None  # as it only is once the archive is closed
    content.seek(archive.offset)
    if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise CutOffError("its archive stops before its end")
    while content.read(_BLOCK):
        pass
