"""`python -m train.predict`: files, folders and lists of them, and what comes out in each form."""

import contextlib
import csv
import io
import itertools
import json
import os
import pty
import shutil
import subprocess
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cache import console
from tests import forked, small_cache
from tests.train.runs import quick
from train import predict, run
from train.export import labels

BROKEN = "broken or unsupported PNG"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(photos, the output directory of a run)."""
    root = tmp_path_factory.mktemp("predict")
    run.train(quick(small_cache.make(root, counts=(25, 25, 25)), root / "out"))
    return root / "photos", root / "out"


@pytest.fixture(scope="module")
def expected(world):
    """What serving returns for each photo, one at a time: path -> probabilities."""
    photos, out = world
    serve = tf.saved_model.load(str(out / "latest/saved_model")).signatures["serving_default"]
    return {
        str(path): serve(tf.constant([path.read_bytes()]))["probabilities"].numpy()[0]
        for path in sorted(photos.rglob("*.png"))
    }


def predicted(capsys, model, *arguments):
    """(status, standard output, lines of standard error)."""
    status = console.run(predict.main, ["--model", str(model), *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()


def output_of(*arguments, content=b""):
    """Standard output, bytes, of a process that succeeds and complains of nothing."""
    status, out, errors = forked.run("train.predict", *arguments, content=content)
    assert (status, errors) == (0, b"")
    return out


def answers(text):
    """path -> {label: probability}, of JSON Lines."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(list(answer) == ["path", "labels"] for answer in found)
    assert len({answer["path"] for answer in found}) == len(found)
    return {a["path"]: {pair["label"]: pair["probability"] for pair in a["labels"]} for a in found}


def check(found, expected):
    """Asserts that JSON has the probabilities of serving, best first."""
    for path, pairs in found.items():
        ranked = [small_cache.LABELS[i] for i in (-expected[path]).argsort(kind="stable")]
        assert list(pairs) == ranked[: len(pairs)]
        np.testing.assert_allclose(
            [pairs[label] for label in pairs], np.sort(expected[path])[::-1][: len(pairs)], atol=1e-5
        )


# --- the forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "latest", "latest/saved_model"])
def test_text_has_the_labels_with_their_probabilities(world, expected, capsys, inside):
    paths = list(expected)[::20]
    status, out, errors = predicted(capsys, world[1] / inside, "--top_k", 2, *paths)
    assert (status, errors) == (0, [])
    lines = out.splitlines()
    for path in paths:
        assert lines.pop(0) == path
        for label_id in (-expected[path]).argsort()[:2]:
            label, share = lines.pop(0).rsplit(maxsplit=1)
            assert label.strip() == small_cache.LABELS[label_id]
            assert float(share.rstrip("%")) == pytest.approx(100 * expected[path][label_id], abs=0.051)
    assert lines == []


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_json_lines_are_what_serving_says_in_the_order_of_the_images(world, expected, capsys, batch_size):
    paths = [list(expected)[i] for i in np.random.default_rng(0).permutation(len(expected))]
    status, out, errors = predicted(capsys, world[1], "--json", "--batch_size", batch_size, *paths)
    assert (status, errors) == (0, [])
    found = answers(out)
    assert list(found) == paths
    assert {len(pairs) for pairs in found.values()} == {3}
    check(found, expected)


def test_csv_has_a_row_for_each_label(world, expected, capsys):
    paths = list(expected)[::9]
    status, out, errors = predicted(capsys, world[1], "--csv", "--top_k", 2, *paths)
    assert (status, errors) == (0, [])
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["path"], row["rank"]) for row in rows] == [(path, rank) for path in paths for rank in "12"]
    for path in paths:
        mine = {row["label"]: float(row["probability"]) for row in rows if row["path"] == path}
        check({path: mine}, expected)


def test_names_of_any_bytes_come_through_every_form(world, tmp_path):
    name = os.fsdecode(b'latin \xe9, "line\nbreak".png')
    shutil.copy(next(world[0].rglob("*.png")), tmp_path / name)
    flags = ["--model", world[1], "--top_k", "1", tmp_path / name]
    (answer,) = answers(output_of("--json", *flags).decode())
    assert answer == str(tmp_path / name)
    table = output_of("--csv", *flags).decode(errors="surrogateescape")
    assert list(csv.reader(io.StringIO(table)))[1][0] == str(tmp_path / name)
    assert output_of(*flags).decode().splitlines()[0] == f'{tmp_path}/latin \ufffd, "line\\nbreak".png'


# --- what it takes --------------------------------------------------------------------------------------------


def test_folders_are_searched(world, expected, tmp_path, capsys):
    source = list(expected)
    places = ["b.png", "a.JPEG", "sub/deep/er.png", "sub/c", ".hidden.png", ".git/d.png", "Z.gif"]
    for place, original in zip(places, source, strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, tmp_path / place)
    for place in ("sub/@eaDir/c/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/b.png", "sub/$RECYCLE.BIN/b.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source[0], tmp_path / place)
    (tmp_path / "notes.txt").write_text("no photo, and no error either")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    status, out, errors = predicted(capsys, world[1], "--json", source[9], tmp_path, source[10])
    assert (status, errors) == (0, [])
    below = [str(tmp_path / place) for place in ("Z.gif", "a.JPEG", "b.png", "sub/c", "sub/deep/er.png")]
    found = answers(out)
    assert list(found) == [source[9], *below, source[10]]
    originals = {str(tmp_path / place): expected[original] for place, original in zip(places, source, strict=False)}
    check(found, expected | originals)


def test_folders_are_searched_however_deep(world, expected, tmp_path, capsys):
    source, deep = next(iter(expected)), tmp_path / "deep"
    try:
        folder = f"{deep}/"
        for _ in range(1100):
            os.mkdir(folder)
            folder += "d/"
        shutil.copy(source, os.path.dirname(folder[:-3]) + "/1.png")
        status, out, errors = predicted(capsys, world[1], "--json", deep)
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)  # Python's own function may recurse, too
    assert (status, errors) == (0, [])
    check({source: next(iter(answers(out).values()))}, expected)


@pytest.mark.parametrize(("end", "last"), [("\n", "\n"), ("\n", ""), ("\0", "\0"), ("\0", "")])
def test_names_come_from_standard_input(world, expected, tmp_path, end, last):
    paths = list(expected)[::5]
    odd = tmp_path / ("line\nbreak.png" if end == "\0" else "space .png")
    shutil.copy(paths[0], odd)
    paths.append(str(odd))
    names = end.join([paths[0], "", *paths[1:]]) + last
    found = answers(output_of("--model", world[1], "--json", "-", content=names.encode()).decode())
    assert list(found) == paths
    check(found, expected | {str(odd): expected[paths[0]]})


def test_a_list_may_name_folders_and_be_empty(world, expected):
    folder = world[0] / "green things"
    out = output_of("--model", world[1], "--json", "-", content=f"{folder}\n".encode())
    assert list(answers(out.decode())) == [path for path in expected if path.startswith(str(folder))]
    assert output_of("--model", world[1], "-") == b""


def test_names_are_read_as_they_are_needed(world, expected):
    """Of an endless list the first photos are labelled. A reader who closes the pipe ends it, as SIGPIPE would."""
    child = forked.start("train.predict", "--model", world[1], "--batch_size", "4", "--csv", "-")

    def feed():
        names = b"".join(os.fsencode(path) + b"\n" for path in expected)
        with contextlib.suppress(BrokenPipeError):
            for _ in itertools.repeat(None):
                child.stdin.write(names)

    feeder = threading.Thread(target=feed)
    feeder.start()
    first = [child.stdout.readline() for _ in range(4)]
    assert first[0] == b"path,rank,label,probability\n"
    assert [line.split(b",")[0].decode() for line in first[1:]] == [next(iter(expected))] * 3
    child.stdout.close()
    assert child.wait() == 141
    assert child.stderr.read() == b""
    feeder.join()
    child.stderr.close()
    with contextlib.suppress(BrokenPipeError):  # what the feeder had buffered
        child.stdin.close()


@pytest.mark.parametrize("how", ["without links", "with copies in place of links", "as earlier versions left it"])
def test_an_output_dir_is_served_by_the_newest_of_its_runs(world, expected, tmp_path, capsys, how):
    newest = (world[1] / "latest").resolve()
    if how == "as earlier versions left it":
        copied = shutil.copytree(newest, tmp_path / "out")
    else:
        copied = shutil.copytree(world[1], tmp_path / "out", symlinks=how == "without links")
        shutil.copytree(newest, copied / "runs" / newest.name.replace("20", "19", 1))
        shutil.copytree(newest, copied / "runs" / "what somebody else put there")
        for run_folder in copied.glob("runs/[!2.]*"):
            (run_folder / "saved_model" / labels.ASSET).write_text("not\nthe\nnewest\n")
        if how == "without links":
            (copied / "latest").unlink()
    path = next(iter(expected))
    status, out, errors = predicted(capsys, copied, "--json", path)
    assert (status, errors) == (0, [])
    check(answers(out), expected)


def test_a_model_of_an_earlier_version_is_served(world, expected, tmp_path, capsys):
    model = tf.saved_model.load(str(world[1] / "latest/saved_model"))
    del model.classify_decoded
    tf.saved_model.save(model, str(tmp_path / "saved_model"), signatures={"serving_default": model.classify})
    assert not hasattr(tf.saved_model.load(str(tmp_path / "saved_model")), "classify_decoded")
    shutil.copytree(world[1] / "latest/saved_model/assets.extra", tmp_path / "saved_model" / "assets.extra")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n no image")
    paths = list(expected)[::11]
    status, out, errors = predicted(capsys, tmp_path, "--json", *paths[:2], tmp_path / "broken.png", *paths[2:])
    assert status == 2
    assert errors[0] == f"error: {tmp_path / 'broken.png'}: {BROKEN}"
    assert list(answers(out)) == paths
    check(answers(out), expected)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_bar_is_on_the_terminal_unless_the_answers_are(world, expected, elsewhere):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    instead = {2: theirs} if elsewhere else {1: theirs, 2: theirs}
    child = forked.start("train.predict", "--model", world[1], "--batch_size", "1", "--csv", "-", instead=instead)
    os.close(theirs)
    names = [os.fsencode(path) + b"\n" for path in list(expected)[:9]]
    with open(ours, "rb", buffering=0) as terminal:
        patience = threading.Timer(60, child.kill)  # many times what it takes; otherwise a failing test would hang
        patience.start()
        child.stdin.writelines(names[:3])
        child.stdin.flush()
        lines = child.stdout if elsewhere else terminal
        assert lines.readline().startswith(b"path,")
        assert lines.readline().startswith(names[0].strip())
        time.sleep(1.1)  # what is done sooner needs no bar
        child.stdin.writelines(names[3:])
        child.stdin.close()
        assert child.wait() == 0
        patience.cancel()
        # All at once: a terminal whose program has ended can be read only once.
        shown = terminal.read(1 << 16)
    if elsewhere:
        child.stdout.close()
    assert (b"predict: 9 photos" in shown) == elsewhere


# --- what goes wrong ------------------------------------------------------------------------------------------


def test_broken_and_missing_photos_cost_only_themselves(world, expected, tmp_path, capsys):
    paths = list(expected)[:9]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n no image")
    (tmp_path / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "heic.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    (tmp_path / "huge.jpg").write_bytes(Path(paths[0]).read_bytes())
    os.truncate(tmp_path / "huge.jpg", 20 << 30)
    bad = {
        "heic.jpg": "a HEIC photo; convert it to JPEG",
        "huge.jpg": "larger than 1 GiB, which no photo is; move it elsewhere",
        "missing.jpg": "No such file or directory",
        "none": "a folder without photos",
        "links": "Too many levels of symbolic links",
        "broken.png": BROKEN,
        "pipe": "neither a file nor a folder",
        "cut.png": BROKEN,
        "empty.jpg": "the file is empty",
    }
    inside = {"links": "links/loop"}
    mixed = [argument for pair in zip((tmp_path / name for name in bad), paths, strict=True) for argument in pair]
    for batch_size in (1, 4, 32):
        status, out, errors = predicted(capsys, world[1], "--json", "--batch_size", batch_size, *mixed)
        assert status == 2
        assert errors == [
            *(f"error: {tmp_path / inside.get(name, name)}: {reason}" for name, reason in bad.items()),
            "error: 9 of 18 photos could not be labelled",
        ]
        assert list(answers(out)) == paths
        check(answers(out), expected)


def test_nothing_to_label_needs_no_tensorflow(world, tmp_path, without_tensorflow):
    def error(model, *arguments):
        return without_tensorflow.error("train.predict", "--model", model, *arguments, "photo.jpg")

    assert "no model at" in error(tmp_path / "none")
    assert "is no model" in error(tmp_path)
    copied = shutil.copytree(world[1] / "latest", tmp_path / "model")
    (copied / "saved_model" / labels.ASSET).unlink()
    os.mkfifo(copied / "saved_model" / labels.ASSET)  # would be read for ever
    assert "has no labels" in error(copied)
    shutil.rmtree(copied)
    assert "--model: an empty path; name a file or folder" in error("")
    assert "--top_k" in error(world[1], "--top_k", "0")
    assert "not allowed with" in error(world[1], "--json", "--csv")
    flags = ["--model", world[1], tmp_path / "none.jpg", tmp_path]
    status, _, errors = without_tensorflow.run("train.predict", *flags)
    assert status == 2
    assert "none.jpg: No such file" in errors
    assert "error: 2 of 2 photos could not be labelled" in errors


def test_a_strange_name_is_one_line(world, capsys):
    status, _, errors = predicted(capsys, world[1], "no\nsuch.jpg")
    assert status == 2
    assert errors[0] == r"error: no\nsuch.jpg: No such file or directory"


def test_labels_that_are_not_the_models_are_refused(world, expected, tmp_path, capsys):
    copied = shutil.copytree(world[1], tmp_path / "copied")
    (copied / "latest/saved_model" / labels.ASSET).write_text("one\n")
    status, _, errors = predicted(capsys, copied, next(iter(expected)))
    assert status == 2
    assert "has 3 outputs but 1 labels" in errors[0]
