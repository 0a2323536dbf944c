"""The extraction as a user runs it: photos in, a cache out, and whatever may happen in between."""

import os
import shutil
import signal
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import cache
from cache import console, layout, rejected, shard, thumbnails, writer
from cache.__main__ import main as cache_main
from extract.run import extract
from extract.settings import Settings
from extract.sources.folder import have_changed, list_photos
from tests import modules, processes
from tests.pictures import SIDE, TICK, make_folder, pixels, write_picture

EXACT = {"precision": "float32", "dtype": "float32"}


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


def test_a_second_run_computes_nothing_and_imports_no_tensorflow(tmp_path, extracted, run, module):
    photos = tmp_path / "photos"
    (photos / "a" / "broken.jpg").write_text("no image")
    time.sleep(TICK)
    run()
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    output = processes.extract_with_nothing_to_do(tmp_path / "cache", flags)
    assert "0 computed, 6 reused, 1 files rejected" in output


def exchange(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.fixture
def bitmaps(tmp_path):
    """Two photos of equal size and mtime, in two classes."""
    folder = tmp_path / "photos"
    paths = folder / "a" / "photo.bmp", folder / "b" / "photo.bmp"
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        write_picture(path, number)
        os.utime(path, (1_000_000_000,) * 2)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    return paths


def test_exchanged_photos_of_equal_size_and_mtime_take_their_vectors_along(tmp_path, bitmaps, run):
    run()
    time.sleep(TICK)
    exchange(*bitmaps)
    result = run()
    assert (result.computed, result.reused) == (0, 2)
    assert_is_view_of(cache.open(tmp_path / "cache"), tmp_path / "photos")


def test_thumbnails_go_with_exchanged_photos(tmp_path, bitmaps, run):
    run(thumbnails=True)
    opened = cache.open(tmp_path / "cache")
    before = thumbnails.find(opened, np.arange(2))
    assert before[0] != before[1]
    time.sleep(TICK)
    exchange(*bitmaps)
    run(thumbnails=True)
    assert thumbnails.find(cache.open(tmp_path / "cache"), np.arange(2)) == before[::-1]


def test_photos_that_are_exchanged_while_they_are_read_are_left_for_the_next_run(tmp_path, bitmaps, run, monkeypatch):
    def list_and_exchange(folder):
        listed = list_photos(folder)
        exchange(*bitmaps)
        return listed

    def exchange_back_and_look(photos, positions):
        exchange(*bitmaps)
        return have_changed(photos, positions)

    write_picture(tmp_path / "photos" / "a" / "other.png", 7)
    write_picture(tmp_path / "photos" / "b" / "other.png", 8)
    with monkeypatch.context() as patched:
        patched.setattr("extract.run.list_photos", list_and_exchange)
        patched.setattr("extract.compute.have_changed", exchange_back_and_look)
        result = run()
    assert (result.computed, result.rejected) == (2, 2)
    assert {row.reason for row in rejected.read(cache.open(tmp_path / "cache").directory)} == {
        "changed while it was read"
    }
    result = run()
    assert (result.computed, result.reused, result.rejected) == (2, 2, 0)
    assert_is_view_of(cache.open(tmp_path / "cache"), tmp_path / "photos")


def test_a_photo_whose_permissions_change_while_it_is_read_is_kept(tmp_path, bitmaps, run, monkeypatch):
    def list_and_touch(folder):
        listed = list_photos(folder)
        time.sleep(TICK)
        bitmaps[0].chmod(0o600)
        return listed

    with monkeypatch.context() as patched:
        patched.setattr("extract.run.list_photos", list_and_touch)
        result = run()
    assert (result.computed, result.rejected) == (2, 0)
    assert_is_view_of(cache.open(tmp_path / "cache"), tmp_path / "photos")


def test_new_edited_deleted_and_moved_photos(tmp_path, extracted, run):
    photos = tmp_path / "photos"
    write_picture(photos / "a" / "new.png", 100)
    write_picture(photos / "a" / "000.png", 101)  # edited
    (photos / "a" / "001.png").unlink()
    (photos / "a" / "002.png").rename(photos / "b" / "moved.png")
    shutil.copyfile(photos / "b" / "000.png", photos / "b" / "copy.png")  # counts as new
    os.utime(photos / "b" / "001.png")  # touched
    result = run()
    assert (result.computed, result.reused) == (3, 4)
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_photo_of_another_size_is_another_photo_even_with_the_same_time(tmp_path, extracted, run, indexed):
    photos = tmp_path / "photos"
    if not indexed:  # as after a kill
        (extracted / layout.INDEX).unlink()
    path = photos / "a" / "000.png"
    before = path.stat()
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert path.stat().st_size != before.st_size
    assert run().computed == 1
    assert_is_view_of(cache.open(tmp_path / "cache"), photos)


def test_a_folder_that_moved_keeps_its_bottlenecks(tmp_path, extracted, run):
    moved = (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert run(moved).computed == 0
    assert cache.open(tmp_path / "cache").index.image_dir == str(moved)


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "delete", "move", "break", "lose index"]), st.integers(0, 5), st.integers(0, 5)
    ),
    min_size=1,
    max_size=6,
)


# Shrinking a failure would run for many minutes, and the histories are short enough to read as they come. All of them
# may start from the same cache.
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(histories=st.lists(operations, min_size=1, max_size=3))
def test_whatever_happens_between_runs_the_view_is_that_of_one_run(extracted, module, histories):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(extracted.parents[1], folder, dirs_exist_ok=True)
        photos, directory = Path(folder) / "photos", Path(folder) / "cache" / extracted.name
        choices = Settings(str(photos), f"{folder}/cache", module, batch_size=3, engine="tensorflow", **EXACT)
        for history in histories:
            for operation, which, other in history:
                files = sorted(photos.rglob("*.png"))
                source, target = files[which % len(files)], photos / "ab"[other % 2] / f"{other}.png"
                if operation == "write":
                    write_picture(target, 50 + which)
                elif operation == "lose index":
                    (directory / layout.INDEX).unlink(missing_ok=True)
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


@pytest.mark.filterwarnings("ignore:files or folders that cannot be looked at now are left out.*b/dead.png")
def test_broken_files_are_skipped_counted_and_listed(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    (photos / "a" / "notes.txt").write_text("not an image")
    (photos / "b" / "cut.png").write_bytes((photos / "b" / "000.png").read_bytes()[:200])
    (photos / "b" / "dead.png").symlink_to("nowhere")
    os.mkfifo(photos / "b" / "pipe")
    result = run()
    assert (result.computed, result.rejected) == (4, 4)
    reasons = {row.path: row.reason.split(" (")[0] for row in rejected.read(result.directory)}
    assert reasons == {
        "a/notes.txt": "not a JPEG, PNG, GIF, BMP or WebP image",
        "b/cut.png": "broken or unsupported PNG",
        "b/dead.png": "No such file or directory",
        "b/pipe": "not a file",
    }
    write_picture(photos / "b" / "cut.png", 7)
    write_picture(photos / "b" / "nowhere", 8)  # what the dead link points to
    result = run()
    assert (result.computed, result.reused, result.rejected) == (3, 4, 2)


def extract_on_replicas(photos, cache_dir, module):
    """Into a cache each for one, two and three processors, in batches of 2 and 16 for each."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
    for devices in ("CPU:0", "CPU:0,CPU:1", "CPU:0,CPU:1,CPU:2"):
        for batch_size in (2, 16):
            folder = shutil.copytree(cache_dir, cache_dir.with_name(f"{devices} {batch_size}"))
            extract(Settings(str(photos), str(folder), module, batch_size=batch_size, devices=devices, **EXACT))


def test_replicas_share_a_batch_and_change_no_row(tmp_path, cache_dir, module):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 6})
    # In a process of its own: once TensorFlow runs, it takes no other devices.
    done = processes.run(extract_on_replicas, photos, cache_dir, module)
    assert done.returncode == 0, done.stderr
    caches = [path for path in tmp_path.iterdir() if path.name.startswith("CPU")]
    assert len(caches) == 6
    for path in caches:
        assert_is_view_of(cache.open(path), photos)


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_engines_agree_with_the_reference(tmp_path, run, engine, precision):
    if engine == "openvino" and not find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 6})
    result = run(engine=engine, precision=precision)
    opened = cache.open(result.directory)
    assert opened.shards[0].attributes["engine"] == engine
    assert "openvino_telemetry.main" not in sys.modules  # it would report each import of openvino to its makers
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
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    run(precision="mixed", engine="tensorflow")
    left, right = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    product = tf.function(lambda a, b: tf.matmul(a, b) + 1, autograph=False)(left, right)
    # A sum of 64 products of numbers below 5, each rounded by 2^-24 of it in float32; by 2^-9 in bfloat16.
    np.testing.assert_allclose(product, left.astype(float) @ right + 1, atol=64 * 25 * 2**-24)


def extract_slowly(flags):
    """Commits every batch as it goes, and prints how many bottlenecks are committed."""
    console.interrupt_on_sigterm()
    writer.COMMIT_SECONDS = 0
    append = writer.Writer.append

    def append_and_print(self, rows):
        append(self, rows)
        print(self.committed, flush=True)
        time.sleep(0.1)

    writer.Writer.append = append_and_print
    return processes.command("extract", flags)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, run, module, how):
    photos = make_folder(tmp_path / "photos", {"a": 10, "b": 10})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    flags += ["--batch_size", 2, "--precision", "float32", "--dtype", "float32"]
    child = processes.Process(extract_slowly, flags)
    while int(child.stdout.readline()) < 6:
        pass
    child.send_signal(how)
    done = child.wait()
    assert done.returncode == (-9 if how == signal.SIGKILL else 130)
    assert "Traceback" not in done.stderr
    [directory] = layout.directories(tmp_path / "cache")
    assert console.run(cache_main, ["info", str(directory)]) == 0
    committed = sum(len(shard.read(directory / "shards" / name)) for name in layout.shard_names(directory))
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


def test_an_incomplete_backbone_is_written_again(extracted, run):
    backbone = extracted / layout.BACKBONE
    (backbone / "saved_model.pb").unlink()
    (backbone / "left over").write_text("")
    assert run().computed == 0
    assert (backbone / "saved_model.pb").exists()


def test_two_modules_never_mix(tmp_path, extracted, run, other_module):
    second = run(module=other_module)
    assert second.computed == 6
    assert second.directory != extracted
    with pytest.raises(cache.CacheError, match="several backbones; choose with --module"):
        cache.open(tmp_path / "cache")
    assert cache.open(tmp_path / "cache", module=other_module).directory == second.directory


def test_a_module_whose_weights_changed_starts_anew(tmp_path, run, module, other_module):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    path = shutil.copytree(module, tmp_path / "changing")
    first = run(module=str(path))
    shutil.rmtree(path)
    shutil.copytree(other_module, path)
    second = run(module=str(path))
    assert second.computed == 4
    assert first.directory != second.directory


@pytest.mark.parametrize("order", [1, -1])
def test_a_network_that_changed_under_its_name_starts_anew_once(
    tmp_path, run, module, other_module, hub, capsys, order
):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    handle, put = hub
    before, after = [module, other_module][::order]
    put(before)
    first = run(module=handle)
    put(after)
    write_picture(photos / "a" / "new.png", 9)
    second = run(module=handle)
    assert (second.computed, second.directory != first.directory) == (5, True)
    capsys.readouterr()
    third = run(module=handle)
    assert (third.computed, third.reused, third.directory) == (0, 5, second.directory)
    assert capsys.readouterr().out == ""
