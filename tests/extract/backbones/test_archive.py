"""Modules of TensorFlow Hub over HTTP: fetched whole from a server on loopback, or not at all."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache import files
from extract import backbones
from extract.backbones import download
from tests import forked, modules, processes
from tests.extract.backbones import web
from tests.extract.backbones.helpers import assert_is_the_network, error_of, hub_folder
from tests.interrupted import die, watched
from tests.pictures import make_folder


@dataclasses.dataclass(frozen=True, repr=False)  # a failure would show its megabytes
class Packed:
    """A module, and the archives of it."""

    digest: str
    tar: bytes
    archive: bytes  # the same, gzipped


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The small module, with an asset of noise that makes it take several blocks."""
    folder = tmp_path_factory.mktemp("packed") / "module"
    module = modules.make_tf2_hub_module(folder)
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "noise").write_bytes(modules.random_images(300).tobytes())
    tar = web.tar(folder)
    return Packed(backbones.identity(module), tar, gzip.compress(tar, compresslevel=1))


@pytest.fixture
def server(no_network: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[web.Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web.serving() as server:
        yield server


@pytest.fixture
def handle(server: web.Server) -> str:
    return f"{server.url}/somebody/tiny/1"


def contents() -> list[str]:
    """The names in hub's cache."""
    return sorted(os.listdir(os.environ["TFHUB_CACHE_DIR"]))


def names_of_one(handle: str) -> list[str]:
    """What hub's cache holds after one download: the module, and a line on what it is."""
    return [hub_folder(handle).name, f"{hub_folder(handle).name}.descriptor.txt"]


def is_whole(handle: str, packed: Packed) -> bool:
    return backbones.identity(str(hub_folder(handle))) == packed.digest


def assert_is_fetched(server: web.Server, handle: str, packed: Packed) -> None:
    """Asked again, the server sends the module, and it is the one in use."""
    server.answer = web.whole(packed.archive)
    asked = len(server.asked)
    assert backbones.load(handle).weights_digest == packed.digest
    assert len(server.asked) == asked + 1
    assert contents() == names_of_one(handle)
    assert is_whole(handle, packed)


# --- the command -----------------------------------------------------------------------------------------------


def start(handle: str, photos: Path, cache_dir: Path) -> processes.Process:
    """`python -m extract` with the module `handle`."""
    flags = ["--image_dir", photos, "--cache_dir", cache_dir, "--module", handle, "--engine", "tensorflow"]
    return processes.Process(_extract, _environment(), flags)


def _environment() -> dict[str, str]:
    """What a process needs that is forked from one without the variables of this test."""
    return {name: os.environ[name] for name in ("TFHUB_CACHE_DIR", "http_proxy", "https_proxy", "no_proxy")}


def _extract(environment: dict[str, str], flags: list[object]) -> int:
    os.environ.update(environment)
    return processes.command("extract", flags)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", {"a": 2, "b": 1})


def test_the_command_fetches_a_module_once_with_a_bar(handle, server, packed, photos, tmp_path) -> None:
    server.answer = web.whole(packed.archive)
    done = start(handle, photos, tmp_path / "bottlenecks").wait()
    assert done.returncode == 0, done.stderr
    assert "3 computed" in done.stdout
    assert "download: 100%" in done.stderr
    assert f"{len(packed.archive) / 1000:.0f}k" in done.stderr
    assert server.asked == ["/somebody/tiny/1?tf-hub-format=compressed"]
    assert contents() == names_of_one(handle)
    assert is_whole(handle, packed)
    assert f"Module: {handle}\n" in Path(f"{hub_folder(handle)}.descriptor.txt").read_text()

    server.answer = lambda request: request.head(503)
    done = start(handle, photos, tmp_path / "others").wait()
    assert (done.returncode, "download" in done.stderr) == (0, False), done.stderr
    assert len(server.asked) == 1


def test_a_transfer_that_is_cut_off_is_one_line(handle, server, packed, photos, tmp_path) -> None:
    half = len(packed.archive) // 2
    server.answer = web.cut(packed.archive, half)
    done = start(handle, photos, tmp_path / "bottlenecks").wait()
    assert (done.returncode, done.stdout) == (2, "")
    *bar, error = filter(None, done.stderr.splitlines())
    assert bar and all(line.startswith("download:") for line in bar)
    assert error.startswith(f"error: {handle} cannot be downloaded (") and error.endswith("or run again")
    assert f"{half:,} of {len(packed.archive):,} bytes" in error
    assert contents() == []
    assert_is_fetched(server, handle, packed)


@pytest.mark.parametrize(("end", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_download_that_is_stopped_leaves_nothing(end, status, handle, server, packed, photos, tmp_path) -> None:
    sent, is_stopped = threading.Event(), threading.Event()

    def answer(request: web.Request) -> None:
        request.head(content_length=len(packed.archive))
        request.send(packed.archive[:100_000])
        sent.set()
        is_stopped.wait(forked.PATIENCE)

    server.answer = answer
    child = start(handle, photos, tmp_path / "bottlenecks")
    assert sent.wait(forked.PATIENCE)
    child.send_signal(end)
    assert child.wait().returncode == status
    is_stopped.set()
    assert contents() == []
    assert_is_fetched(server, handle, packed)


def test_two_at_once_both_get_the_module(handle, server, packed, photos, tmp_path) -> None:
    both = threading.Barrier(2, timeout=forked.PATIENCE)

    def answer(request: web.Request) -> None:
        both.wait()
        web.whole(packed.archive)(request)

    server.answer = answer
    children = [start(handle, photos, tmp_path / name) for name in ("one", "other")]
    for child in children:
        done = child.wait()
        assert done.returncode == 0, done.stderr
        assert "3 computed" in done.stdout
    assert len(server.asked) == 2
    assert contents() == names_of_one(handle)
    assert is_whole(handle, packed)


def load_until(environment: dict[str, str], handle: str, moment: str, call: str, name: str) -> None:
    """Loads a module, and dies at the first `moment` of `call` on a file or folder whose path ends in `name`."""
    os.environ.update(environment)

    def reached(*step: object) -> None:
        if step[:2] == (moment, call) and str(step[2]).endswith(name):
            die()

    with watched(reached):
        backbones.load(handle)


@pytest.mark.parametrize(
    ("moment", "call", "name"),
    [
        ("before", "open", "saved_model.pb"),
        ("amid", "write", "saved_model.pb"),
        ("amid", "write", "noise"),
        ("before", "fsync", ""),
        ("before", "rename", ""),
        ("after", "rename", ""),
    ],
)
def test_whatever_kills_it_while_it_unpacks_the_module_is_whole_or_not_there(
    moment, call, name, handle, server, packed
) -> None:
    server.answer = web.whole(packed.archive)
    done = processes.run(load_until, _environment(), handle, moment, call, name)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert hub_folder(handle).exists() == ((moment, call) == ("after", "rename"))
    if hub_folder(handle).exists():
        assert is_whole(handle, packed)
    hidden = [path for path in hub_folder(handle).parent.iterdir() if path.name.startswith(".")]
    assert backbones.load(handle).weights_digest == packed.digest
    assert is_whole(handle, packed)

    assert all(path.exists() for path in hidden)  # their writer might be at work
    long_ago = time.time() - files.ABANDONED - 1
    for path in hidden:
        os.utime(path, (long_ago, long_ago))
    backbones.load(handle)
    assert [name for name in contents() if name.startswith(".")] == []


# --- answers that hold the module ------------------------------------------------------------------------------


def in_pieces(body: bytes) -> web.Answer:
    def answer(request: web.Request) -> None:
        request.head(content_length=len(body))
        for start in range(0, len(body), 20_000):
            request.send(body[start : start + 20_000])
            time.sleep(0.01)

    return answer


def in_chunks(body: bytes) -> web.Answer:
    def answer(request: web.Request) -> None:
        request.head(transfer_encoding="chunked")
        for start in range(0, len(body), 20_000):
            piece = body[start : start + 20_000]
            request.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        request.send(b"0\r\n\r\n")

    return answer


@pytest.mark.parametrize("make", [web.whole, web.of_unknown_length, in_pieces, in_chunks])
def test_however_the_answer_comes(make, handle, server, packed) -> None:
    server.answer = make(packed.archive)
    loaded = backbones.load(handle)
    assert_is_the_network(loaded)
    assert loaded.weights_digest == packed.digest
    assert contents() == names_of_one(handle)


def test_a_tar_may_come_uncompressed(handle, server, packed) -> None:
    server.answer = web.whole(packed.tar)
    assert backbones.load(handle).weights_digest == packed.digest


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_the_module_is_kept_under_its_own_name(status, handle, server, packed) -> None:
    def answer(request: web.Request) -> None:
        if request.path.startswith("/somebody"):
            request.head(status, location=f"{server.url}/store?key=1", content_length=0)
        elif request.path == "/store?key=1":
            request.head(status, location="/store/archive", content_length=0)
        else:
            web.whole(packed.archive)(request)

    server.answer = answer
    assert backbones.load(handle).weights_digest == packed.digest
    assert server.asked == ["/somebody/tiny/1?tf-hub-format=compressed", "/store?key=1", "/store/archive"]
    assert contents() == names_of_one(handle)


def test_a_question_in_the_handle_is_asked_too(server, packed) -> None:
    server.answer = web.whole(packed.archive)
    assert backbones.load(f"{server.url}/tiny?key=a%20b").weights_digest == packed.digest
    assert server.asked == ["/tiny?key=a+b&tf-hub-format=compressed"]


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_the_library_finds_what_was_fetched(handle, server, packed) -> None:
    import tensorflow_hub

    server.answer = web.whole(packed.archive)
    backbones.load(handle)
    server.answer = lambda request: request.head(503)
    assert tensorflow_hub.resolve(handle) == str(hub_folder(handle))
    assert len(server.asked) == 1


def test_what_a_killed_download_by_the_library_left_delays_nothing(handle, server, packed) -> None:
    folder = hub_folder(handle)
    Path(f"{folder}.0123.tmp").mkdir(parents=True)
    Path(f"{folder}.lock").write_text("a-machine.1.0123")
    folder.mkdir()  # the library takes an empty folder for none, too
    server.answer = web.whole(packed.archive)
    assert backbones.load(handle).weights_digest == packed.digest
    assert is_whole(handle, packed)


def test_no_bar_if_none_is_wanted(handle, server, packed, capfd) -> None:
    server.answer = web.whole(packed.archive)
    backbones.load(handle, None, False)
    assert capfd.readouterr() == ("", "")


def test_where_the_library_is_told_not_to_download_archives_it_is_asked_itself(handle, server, monkeypatch) -> None:
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    assert "404" in error_of(handle, kind=backbones.UnreachableError)
    assert server.asked == ["/somebody/tiny/1?tf-hub-format=uncompressed"]


# --- answers that do not ---------------------------------------------------------------------------------------


def assert_fails(handle: str, *reasons: str) -> None:
    """The error is one line with these words, and nothing is left."""
    message = error_of(handle, kind=backbones.UnreachableError)
    assert message.startswith(f"{handle} cannot be downloaded (") and "--module efficientnet_lite0" in message
    for reason in reasons:
        assert reason in message
    assert contents() == []


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 1])
@pytest.mark.parametrize("kind", [web.cut, "unknown length", "chunks", "reset", "silence"])
def test_a_cut_within_the_archive(kind, share, handle, server, packed, monkeypatch) -> None:
    length = round(share * (len(packed.archive) - 1))
    part = packed.archive[:length]
    is_over = threading.Event()

    def cut_in_a_chunk(request: web.Request) -> None:
        request.head(transfer_encoding="chunked")
        request.send(b"%x\r\n%s" % (len(packed.archive), part))

    def reset(request: web.Request) -> None:
        web.cut(packed.archive, length)(request)
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    def fall_silent(request: web.Request) -> None:
        web.cut(packed.archive, length)(request)
        is_over.wait()

    if kind == "silence":
        monkeypatch.setattr(download, "SECONDS", 0.5)
    kinds = {
        web.cut: web.cut(packed.archive, length),
        "unknown length": web.of_unknown_length(part),
        "chunks": cut_in_a_chunk,
        "reset": reset,
        "silence": fall_silent,
    }
    server.answer = kinds[kind]
    is_nothing_at_all = kind == "unknown length" and not length
    assert_fails(handle, *(["no tar archive"] if is_nothing_at_all else ["run again"]))
    is_over.set()


def with_end(packed: bytes, length: int) -> bytes:
    return packed[:length]


def with_garbage(packed: bytes, length: int) -> bytes:
    """As a tar looks whose next header is damaged."""
    return packed[:length] + b"\xff" * 512 + packed[length + 512 :]


@pytest.mark.parametrize("is_gzipped", [True, False])
@pytest.mark.parametrize("break_off", [with_end, with_garbage])
def test_a_tar_that_stops_between_its_members(break_off: Callable, is_gzipped, handle, server, packed) -> None:
    _, *places = web.starts(packed.tar)
    assert len(places) > 4
    for place in places:
        if break_off == with_garbage and place == places[-1]:
            continue  # after the last member there is no header to damage
        body = break_off(packed.tar, place)
        server.answer = web.whole(gzip.compress(body, compresslevel=1) if is_gzipped else body)
        assert_fails(handle, "its archive stops before its end", "run again")
    assert_is_fetched(server, handle, packed)


@pytest.mark.parametrize("is_gzipped", [True, False])
def test_a_tar_that_stops_within_a_member(is_gzipped, handle, server, packed) -> None:
    for place in web.starts(packed.tar)[1:-1]:
        for more in (100, 600):
            body = packed.tar[: place + more]
            server.answer = web.whole(gzip.compress(body, compresslevel=1) if is_gzipped else body)
            assert_fails(handle, "run again")


@pytest.mark.parametrize("place", [-1, -5, -8], ids=["length", "checksum", "checksum's first byte"])
def test_a_damaged_archive(place, handle, server, packed) -> None:
    damaged = bytearray(packed.archive)
    damaged[place] ^= 1
    server.answer = web.whole(bytes(damaged))
    assert_fails(handle, "damaged", "run again")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


MODEL = member("saved_model.pb"), b"a graph"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>Sign in</html>", "no tar archive"),
        (gzip.compress(b"<html>Sign in</html>" * 100), "no tar archive"),
        (b"PK\3\4" + bytes(2000), "no tar archive"),
        (web.tar_of((member("variables/variables.index"), b"")), "there is no saved_model.pb"),
        (web.tar_of((member("saved_model.pb", tarfile.DIRTYPE), b"")), "there is no saved_model.pb"),
        (web.tar_of((member("tiny/saved_model.pb"), b"a graph")), "there is no saved_model.pb"),
        (web.tar_of(MODEL, (member("../outside"), b"")), "../outside"),
        (web.tar_of(MODEL, (member("variables/../../outside"), b"")), "outside"),
        (web.tar_of(MODEL, (member("variables", tarfile.SYMTYPE, ".."), b"")), "variables"),
        (web.tar_of(MODEL, (member("variables", tarfile.LNKTYPE, "saved_model.pb"), b"")), "variables"),
        (web.tar_of(MODEL, (member("variables", tarfile.FIFOTYPE), b"")), "variables"),
    ],
    ids=[
        "a page",
        "a gzipped page",
        "a zip",
        "no graph",
        "a folder for a graph",
        "a graph in a folder",
        "a path upwards",
        "a path up and down",
        "a link",
        "a hard link",
        "a pipe",
    ],  # pytest would name them by the bytes, in which gzip writes the time
)
def test_what_is_no_archive_of_a_saved_model(body, reason, handle, server) -> None:
    server.answer = web.whole(body)
    assert_fails(handle, reason, "the address of a TensorFlow Hub module")
    assert not (hub_folder(handle).parent / "outside").exists()
    assert not (hub_folder(handle).parents[1] / "outside").exists()


def test_a_path_from_the_root_is_one_in_the_module(handle, server, packed) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(packed.tar)) as old, tarfile.open(fileobj=content, mode="w") as new:
        for old_member in old:
            old_member.name = f"/{old_member.name}"
            new.addfile(old_member, old.extractfile(old_member) if old_member.isfile() else None)
    server.answer = web.whole(gzip.compress(content.getvalue()))
    assert backbones.load(handle).weights_digest == packed.digest


def test_a_server_that_refuses(handle, server) -> None:
    server.answer = lambda request: request.head(404)
    assert_fails(handle, "404", "TFHUB_CACHE_DIR")


def test_a_server_that_sends_in_circles(handle, server) -> None:
    server.answer = lambda request: request.head(302, location="/again", content_length=0)
    assert_fails(handle, "infinite loop", "TFHUB_CACHE_DIR")


def test_a_server_that_speaks_another_language(handle, server) -> None:
    server.answer = lambda request: request.send(b"220 mail.example.org ready\r\n")
    assert_fails(handle, "220 mail.example.org", "TFHUB_CACHE_DIR")


def test_a_server_that_hangs_up(handle, server) -> None:
    server.answer = lambda request: None
    assert_fails(handle, "closed connection", "TFHUB_CACHE_DIR")


def test_a_server_that_never_answers(handle, server, monkeypatch) -> None:
    monkeypatch.setattr(download, "SECONDS", 0.5)
    is_over = threading.Event()
    server.answer = lambda request: is_over.wait()
    assert_fails(handle, "timed out", "TFHUB_CACHE_DIR")
    is_over.set()


def test_no_server_at_all(server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert_fails(f"http://127.0.0.1:{port}/tiny/1", "(Connection refused)", "TFHUB_CACHE_DIR")


@pytest.mark.parametrize("handle", ["http://[::1/tiny", "http://127.0.0.1:port/tiny", "http:///tiny", "http://a b/c"])
def test_an_address_that_is_none(handle, server) -> None:
    message = error_of(handle, kind=backbones.UnreachableError)
    assert "cannot be downloaded" in message and "TFHUB_CACHE_DIR" in message


def test_a_cache_that_cannot_be_written(handle, server, packed, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "file" / "hub"))
    server.answer = web.whole(packed.archive)
    message = error_of(handle, kind=backbones.UnreachableError)
    assert f"cannot write {tmp_path / 'file' / 'hub'}" in message and "TFHUB_CACHE_DIR" in message


@pytest.mark.parametrize("asset", [os.urandom(3 << 20), bytes(3 << 20)], ids=["the archive", "its files"])
def test_a_disk_without_space_for(asset, handle, server, disk, monkeypatch) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(disk / "hub"))
    server.answer = web.whole(web.tar_of(MODEL, (member("assets/large"), asset)))
    assert_fails(handle, f"cannot write {hub_folder(handle)}", os.strerror(errno.ENOSPC))
