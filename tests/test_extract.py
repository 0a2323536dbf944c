"""The extraction as a user runs it: pictures in, a cache out, and whatever may happen in between."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import cache
from cache import command, store
from cache.__main__ import main as cache_main
from extract import decode
from extract.__main__ import main
from extract.run import extract
from extract.settings import Settings
from tests import modules
from tests.pictures import SIDE, make_folder, pixels, write_picture
from tests.processes import extract_with_nothing_to_do

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path, module):
    """Extracts `tmp_path/photos` into `tmp_path/cache`."""

    def extract_photos(photos=tmp_path / "photos", **options):
        options = {"precision": "float32", "dtype": "float32", "batch_size": 4, "module": module} | options
        return extract(Settings(str(photos), str(tmp_path / "cache"), **options))

    return extract_photos


def expected(image_dir, path, dtype=np.float32):
    """A picture's bottleneck by numpy."""
    return modules.reference(pixels(image_dir / path)[None].astype(np.float32) / 255)[0].astype(dtype)


def assert_is_view_of(opened, image_dir):
    """The cache holds exactly the pictures of `image_dir`, each with its label and its own bottleneck."""
    files = sorted(str(path.relative_to(image_dir)) for path in image_dir.rglob("*.*") if path.is_file())
    assert sorted(opened.paths) == files
    vectors = opened.bottlenecks(np.arange(len(opened)))
    for path, label_id, vector in zip(opened.paths, opened.label_ids, vectors, strict=True):
        assert opened.labels[label_id] == os.path.dirname(path)
        # float32 rounds each of 48 products of numbers up to 2 by 2^-24 of it; tanh brings no two further apart.
        np.testing.assert_allclose(vector, expected(image_dir, path), atol=48 * 2 * 2**-24, err_msg=path)


def test_every_picture_gets_its_own_bottleneck_and_label(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"daisy": 7, "roses": 3, "tulips": 1})
    result = run()
    assert (result.computed, result.reused, result.rejected) == (11, 0, 0)
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


def test_float16_holds_the_same_to_rounding(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    run(dtype="float16")
    opened = cache.open(tmp_path / "cache")
    assert opened.dtype == np.float16
    for path, vector in zip(opened.paths, opened.bottlenecks(np.arange(6)), strict=True):
        np.testing.assert_allclose(vector, expected(photos, path), rtol=2**-10, atol=1e-6)


def test_a_second_run_computes_nothing_and_imports_no_tensorflow(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    (photos / "a" / "broken.jpg").write_text("no image")
    run()
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    assert "0 computed, 6 reused, 1 files rejected" in extract_with_nothing_to_do(tmp_path / "cache", flags)


def test_new_edited_deleted_and_moved_photos(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 4, "b": 4})
    run()
    write_picture(photos / "a" / "new.png", 100)
    write_picture(photos / "a" / "000.png", 101)  # edited
    (photos / "a" / "001.png").unlink()
    (photos / "a" / "002.png").rename(photos / "b" / "moved.png")
    shutil.copyfile(photos / "b" / "000.png", photos / "b" / "copy.png")  # as new
    os.utime(photos / "b" / "001.png")  # touched
    result = run()
    assert (result.computed, result.reused) == (3, 6)
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_photo_of_another_size_is_another_whatever_its_time_says(tmp_path, run, indexed):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run().directory
    if not indexed:  # as after a kill
        (directory / store.INDEX).unlink()
    path = photos / "a" / "000.png"
    before = path.stat()
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert path.stat().st_size != before.st_size
    assert run().computed == 1
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


def test_a_folder_that_moved_keeps_its_bottlenecks(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 4, "b": 4})
    run()
    moved = photos.rename(tmp_path / "elsewhere")
    assert run(moved).computed == 0
    assert cache.open(tmp_path / "cache").index.image_dir == str(moved)


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "delete", "move", "break", "lose index"]), st.integers(0, 5), st.integers(0, 5)
    ),
    min_size=1,
    max_size=6,
)


# Shrinking a failure would run for many minutes: the histories are short enough to read as they come.
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(histories=st.lists(operations, min_size=1, max_size=3))
def test_whatever_happens_between_runs_the_view_is_that_of_one_run(module, histories):
    with tempfile.TemporaryDirectory() as folder:
        photos = make_folder(Path(folder) / "photos", {"a": 2, "b": 2})
        choices = Settings(str(photos), f"{folder}/cache", module, batch_size=3, precision="float32", dtype="float32")
        directory = extract(choices).directory
        for history in histories:
            for operation, which, other in history:
                files = sorted(photos.rglob("*.png"))
                source, target = files[which % len(files)], photos / "ab"[other % 2] / f"{other}.png"
                if operation == "write":
                    write_picture(target, 50 + which)
                elif operation == "lose index":
                    (directory / store.INDEX).unlink(missing_ok=True)
                elif operation == "break":
                    (photos / "a" / "broken.jpg").write_bytes(b"\x89PNG" + bytes(which))
                elif len(list(source.parent.glob("*.png"))) > 1:  # neither class may become empty
                    source.unlink() if operation == "delete" else source.rename(target)
            write_picture(photos / "a" / "sound.png", 80)
            write_picture(photos / "b" / "sound.png", 81)
            extract(choices)
            opened = cache.open(directory)
            (photos / "a" / "broken.jpg").unlink(missing_ok=True)
            assert_is_view_of(opened, photos)


def test_broken_files_are_skipped_counted_and_listed(tmp_path, run, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    (photos / "a" / "notes.txt").write_text("not an image")
    (photos / "b" / "cut.png").write_bytes((photos / "b" / "000.png").read_bytes()[:200])
    (photos / "b" / "dead.png").symlink_to("nowhere")
    os.mkfifo(photos / "b" / "pipe")
    result = run()
    assert (result.computed, result.rejected) == (4, 4)
    listed = {row.path: row for row in store.read_rejected(result.directory)}
    assert {path: row.reason.split(" (")[0] for path, row in listed.items()} == {
        "a/notes.txt": "not a JPEG, PNG, GIF, BMP or WebP image",
        "b/cut.png": "broken or unsupported PNG",
        "b/dead.png": "No such file or directory",
        "b/pipe": "not a file",
    }
    write_picture(photos / "b" / "cut.png", 7)  # mended
    write_picture(photos / "b" / "nowhere", 8)  # what the dead link points to
    result = run()
    assert (result.computed, result.reused, result.rejected) == (3, 4, 2)


def test_replicas_share_a_batch_and_change_no_row(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 6})
    script = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
from extract.run import extract
from extract.settings import Settings
for devices in ("CPU:0", "CPU:0,CPU:1", "CPU:0,CPU:1,CPU:2"):
    for batch_size in (2, 16):
        extract(Settings({str(photos)!r}, {str(tmp_path)!r} + f"/{{devices}} {{batch_size}}", {module!r},
                batch_size=batch_size, precision="float32", dtype="float32", devices=devices))
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True)
    caches = [path for path in tmp_path.iterdir() if path.name.startswith("CPU")]
    assert len(caches) == 6
    for path in caches:
        assert_is_view_of(cache.open(path), photos)


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_engines_agree_with_the_reference(tmp_path, run, engine, precision):
    if engine == "openvino":
        pytest.importorskip("openvino")
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 6})
    result = run(engine=engine, precision=precision)
    opened = cache.open(result.directory)
    assert opened.shards[0].attributes["engine"] == engine
    if precision == "float32":
        assert_is_view_of(opened, photos)
        return
    # bfloat16 has 8 significant bits; 48 products of numbers up to 2 are summed.
    for path, vector in zip(opened.paths, opened.bottlenecks(np.arange(11)), strict=True):
        np.testing.assert_allclose(vector, expected(photos, path), atol=48 * 2 * 2**-8, err_msg=path)
        similarity = vector @ expected(photos, path) / np.linalg.norm(vector) / np.linalg.norm(expected(photos, path))
        assert similarity > 0.99


def test_a_mixed_extraction_leaves_the_rest_of_the_process_in_float32(tmp_path, run):
    """retrain.py trains in the process that extracted: its layer must not be fitted in bfloat16."""
    import tensorflow as tf

    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    run(precision="mixed", engine="tensorflow")
    left, right = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    product = tf.function(lambda a, b: tf.matmul(a, b) + 1, autograph=False)(left, right)
    # A sum of 64 products of numbers below 5, each rounded by 2^-24 of it in float32; by 2^-9 in bfloat16.
    np.testing.assert_allclose(product, left.astype(float) @ right + 1, atol=64 * 25 * 2**-24)


def slow_extraction(photos, cache_dir, module):
    """A child process that commits every batch of two as it goes, and says so."""
    script = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
from cache import command, writer
writer.COMMIT_SECONDS = 0
append = writer.Writer.append
def slowly(self, rows):
    append(self, rows)
    print(self.committed, flush=True)
    time.sleep(0.2)
writer.Writer.append = slowly
from cache.__main__ import main as cache_main
from extract import decode
from extract.__main__ import main
raise SystemExit(command.run(main, ["--image_dir", {str(photos)!r}, "--cache_dir", {str(cache_dir)!r},
    "--module", {module!r}, "--batch_size", "2", "--precision", "float32", "--dtype", "float32"]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, run, module, how):
    photos = make_folder(tmp_path / "photos", {"a": 10, "b": 10})
    child = slow_extraction(photos, tmp_path / "cache", module)
    while int(child.stdout.readline()) < 6:
        pass
    child.send_signal(how)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (-9 if how == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    [directory] = store.directories(tmp_path / "cache")
    assert command.run(cache_main, ["info", str(directory)]) == 0
    committed = sum(len(store.shard.read(directory / "shards" / name)) for name in store.shard_names(directory))
    assert committed >= 6
    result = run()
    assert (result.computed, result.reused) == (20 - committed, committed)
    opened = cache.open(tmp_path / "cache")
    assert_is_view_of(opened, photos)
    shutil.rmtree(tmp_path / "cache")
    run()
    undisturbed = cache.open(tmp_path / "cache")
    assert list(opened.paths) == list(undisturbed.paths)
    rows = np.arange(20)
    assert opened.bottlenecks(rows).tobytes() == undisturbed.bottlenecks(rows).tobytes()


def test_a_disk_that_fills_up_keeps_what_was_committed(tmp_path, disk, module, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 8, "b": 8})
    choices = Settings(str(photos), str(disk / "cache"), module, precision="float32")
    before = extract(choices)
    # All but a few pages of the rest of the disk.
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - 8192))
    make_folder(photos, {"c": 8}, first_seed=50)
    capsys.readouterr()
    assert command.run(main, ["--image_dir", str(photos), "--cache_dir", choices.cache_dir, "--module", module]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert "No space left on device" in error[0]
    assert len(cache.open(before.directory)) == 16
    assert not list(before.directory.rglob("*.tmp"))
    (disk / "ballast").unlink()
    assert extract(choices).computed == 8
    assert len(cache.open(before.directory)) == 24


def test_a_file_size_limit_is_an_error_of_one_line(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 8, "b": 8})
    done = subprocess.run(
        [sys.executable, "-m", "extract", "--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module],
        cwd=REPO,
        capture_output=True,
        text=True,
        # No file of a cache fits into one page.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr


ERRORS = {
    "no image_dir": (["--image_dir", "{tmp}/none"], "none is not a folder"),
    "empty image_dir": (["--image_dir", "{tmp}/empty"], "no subfolder"),
    "one class": (["--image_dir", "{tmp}/one"], "only one class"),
    "no flag": ([], "required: --image_dir"),
    "batch size zero": (["--image_dir", "{tmp}/two", "--batch_size", "0"], "argument --batch_size: '0' is not a whole"),
    "batch size of words": (["--image_dir", "{tmp}/two", "--batch_size", "many"], "--batch_size: 'many' is not"),
    "too many threads": (["--image_dir", "{tmp}/two", "--decode_threads", "99999"], "--decode_threads: '99999' is not"),
    "empty image_dir flag": (["--image_dir", ""], "argument --image_dir: an empty path"),
    "empty cache_dir flag": (["--image_dir", "{tmp}/two", "--cache_dir", ""], "argument --cache_dir: an empty path"),
    "image size": (["--image_dir", "{tmp}/two", "--image_size", "2x3x4"], "'2x3x4' is no image size"),
    "precision": (["--image_dir", "{tmp}/two", "--precision", "int4"], "invalid choice: 'int4'"),
    "unknown flag": (["--image_dir", "{tmp}/two", "--bach_size", "3"], "unrecognized arguments: --bach_size"),
    "cache under a file": (["--image_dir", "{tmp}/two", "--cache_dir", "{tmp}/file/cache"], "cannot write"),
    "device": (["--image_dir", "{tmp}/two", "--devices", "GPU:7"], "this machine has no GPU:7"),
    "unknown module": (["--image_dir", "{tmp}/two", "--module", "inception_v9"], "inception_v9"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_one_line(tmp_path, capsys, case):
    make_folder(tmp_path / "one", {"a": 1})
    make_folder(tmp_path / "two", {"a": 1, "b": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    flags, message = ERRORS[case]
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    if "--cache_dir" not in flags:
        flags += ["--cache_dir", str(tmp_path / "cache")]
    assert command.run(main, flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_class_without_a_readable_image_is_named_and_the_view_stays(tmp_path, run, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    run()
    (photos / "bad").mkdir()
    (photos / "bad" / "1.jpg").write_text("no image")
    write_picture(photos / "a" / "new.png", 9)
    with pytest.raises(cache.UserError, match=r"class folder .*bad has no readable image"):
        run()
    assert cache.open(tmp_path / "cache").labels == ["a", "b"]
    shutil.rmtree(photos / "bad")
    assert run().computed == 0  # the new picture's bottleneck was kept


def test_a_backbones_folder_refuses_another_module(tmp_path, run, module):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run().directory
    other = modules.make_tf2_hub_module(tmp_path / "other", seed=1)
    choices = Settings(str(tmp_path / "photos"), str(directory), other)
    with pytest.raises(cache.CacheError, match=r"holds bottlenecks of .*tiny, not of .*other"):
        extract(choices)
    assert len(cache.open(directory)) == 4


@pytest.mark.parametrize("change", ["image size", "preprocessing"])
def test_a_backbones_folder_refuses_the_same_module_used_in_another_way(tmp_path, module, monkeypatch, change):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = extract(Settings(str(photos), str(tmp_path / "cache"), module)).directory
    write_picture(photos / "a" / "new.png", 9)
    if change == "preprocessing":
        monkeypatch.setattr(decode, "PREPROCESSING", "another")
    choices = Settings(str(photos), str(directory), module, image_size=(16, 16) if change == "image size" else None)
    with pytest.raises(cache.CacheError, match=r"holds bottlenecks of .*tiny in another version, image size or prepro"):
        extract(choices)
    assert len(store.shard_names(directory)) == 1
    assert len(cache.open(directory)) == 4


def test_an_incomplete_backbone_is_written_again(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    backbone = run().directory / store.BACKBONE
    (backbone / "saved_model.pb").unlink()
    (backbone / "left over").write_text("")
    assert run().computed == 0
    assert (backbone / "saved_model.pb").exists()


def test_two_modules_never_mix(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    first = run()
    other = modules.make_tf2_hub_module(tmp_path / "other", seed=1)
    second = run(module=other)
    assert second.computed == 4
    assert first.directory != second.directory
    with pytest.raises(cache.CacheError, match="several backbones; choose with --module"):
        cache.open(tmp_path / "cache")
    assert cache.open(tmp_path / "cache", module=other).directory == second.directory


def test_a_module_whose_weights_changed_starts_anew(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    path = tmp_path / "changing"
    first = run(module=modules.make_tf2_hub_module(path, seed=1))
    shutil.rmtree(path)
    second = run(module=modules.make_tf2_hub_module(path, seed=2))
    assert second.computed == 4
    assert first.directory != second.directory


def test_a_newer_cache_is_refused_by_name(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    index = run().directory / store.INDEX
    with h5py.File(index, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(cache.CacheError, match="cache format 3, newer than format 2"):
        run()
    assert index.exists()


@pytest.mark.parametrize("command_name", ["extract", "cache", "extract.sample"])
def test_help_imports_nothing_heavy(command_name):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command_name, "-h"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m {command_name}")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"tensorflow", "numpy", "h5py", "sklearn"}


def test_values_that_float16_cannot_hold_are_an_error(tmp_path, run):
    import tensorflow as tf

    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    big = modules.save_signature(
        tmp_path / "big", lambda images: {"vector": 1e6 + tf.reduce_mean(images, [1, 2])}, modules.image_spec((16, 16))
    )
    with pytest.raises(cache.UserError, match=r"000.png has values too large for float16; use --dtype float32"):
        run(module=big, dtype="float16")
    assert run(module=big, dtype="float32").computed == 4
