"""Extractions that cannot go on: one line that names the thing and the remedy, and a cache that stays as it was."""

import os
import resource
import shutil
import subprocess
import sys

import h5py
import pytest
import tensorflow as tf

import cache
from cache import console, layout, rejected
from cache.photos import NOT_A_FILE
from extract import decode
from extract.__main__ import main
from extract.run import extract
from extract.settings import Settings
from tests import modules, processes, trouble
from tests.pictures import make_folder, write_picture

# The flags beside `--image_dir` with two sound classes, and what the line holds.
ERRORS = {
    "no image_dir": ("--image_dir {tmp}/none", "none is not a folder"),
    "empty image_dir": ("--image_dir {tmp}/empty", "no subfolder"),
    "one class": ("--image_dir {tmp}/one", "only one class"),
    "empty image_dir flag": ("--image_dir=", "argument --image_dir: an empty path"),
    "empty cache_dir flag": ("--cache_dir=", "argument --cache_dir: an empty path"),
    "cache under a file": ("--cache_dir {tmp}/file/cache --module {module}", "cannot write"),
    "batch size zero": ("--batch_size 0", "argument --batch_size: '0' is not a whole"),
    "batch size of words": ("--batch_size many", "--batch_size: 'many' is not"),
    "too many threads": ("--decode_threads 99999", "--decode_threads: '99999' is not"),
    "image size": ("--image_size 2x3x4", "'2x3x4' is no image size"),
    "precision": ("--precision int4", "invalid choice: 'int4'"),
    "unknown flag": ("--bach_size 3", "unrecognized arguments: --bach_size"),
    "device": ("--devices GPU:7", "this machine has no GPU:7"),
    "unknown module": ("--module inception_v9", "inception_v9"),
    "flip alone": ("--flip_left_right", "--flip_left_right needs --augment"),
    "crop alone": ("--random_crop 5", "--random_crop needs --augment"),
    "seed alone": ("--augment_seed 5", "--augment_seed needs --augment"),
    "crop of 101": ("--augment 1 --random_crop 101", "--random_crop: '101' is not a whole number from 0 to"),
    "brightness of -1": ("--augment 1 --random_brightness=-1", "--random_brightness: '-1' is not a whole"),
    "scale of a half": ("--augment 1 --random_scale 0.5", "--random_scale: '0.5' is not a whole"),
    "fewer than no augmentations": ("--augment=-1", "--augment: '-1' is not a whole number"),
    "a seed too large": (f"--augment 1 --augment_seed {2**31}", "--augment_seed: '2147483648' is not a whole"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_gets_one_line(tmp_path, module, loaded_once, capsys, case):
    make_folder(tmp_path / "one", {"a": 1})
    make_folder(tmp_path / "two", {"a": 1, "b": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    flags, message = ERRORS[case]
    # The last of several values of a flag counts.
    flags = f"--image_dir {{tmp}}/two --cache_dir {{tmp}}/cache {flags}".format(tmp=tmp_path, module=module)
    assert console.run(main, flags.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_image_dir_is_required(capsys):
    assert console.run(main, []) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "required: --image_dir" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command_name", ["extract", "cache", "extract.sample", "extract.serve"])
def test_help_imports_nothing_heavy(command_name):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command_name, "-h"],
        cwd=processes.REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m {command_name}")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"tensorflow", "numpy", "h5py", "sklearn", "starlette", "uvicorn"}


def test_a_disk_that_fills_up_keeps_what_was_committed(tmp_path, disk, module, loaded_once, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 8, "b": 8})
    choices = Settings(str(photos), str(disk / "cache"), module, precision="float32")
    before = extract(choices)
    # All but a few pages of the rest of the disk.
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - 8192))
    make_folder(photos, {"c": 8}, first_seed=50)
    capsys.readouterr()
    assert console.run(main, ["--image_dir", str(photos), "--cache_dir", choices.cache_dir, "--module", module]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert "No space left on device" in error[0]
    assert len(cache.open(before.directory)) == 16
    assert not list(before.directory.rglob("*.tmp"))
    (disk / "ballast").unlink()
    assert extract(choices).computed == 8
    assert len(cache.open(before.directory)) == 24


def extract_into_small_files(flags):
    """No file of a cache fits into one page."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return processes.command("extract", flags)


def test_a_file_size_limit_is_an_error_of_one_line(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 8, "b": 8})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module, "--engine", "tensorflow"]
    done = processes.run(extract_into_small_files, flags)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "cannot write" in line
    assert "Traceback" not in done.stderr


def extract_without_rights(flags):
    trouble.obey_permissions()
    return processes.command("extract", flags)


def test_what_may_not_be_looked_at_is_left_out_named_and_found_again(tmp_path, module, extracted, run):
    photos = tmp_path / "photos"
    make_folder(photos, {"c": 2}, first_seed=50)
    run()
    (tmp_path / "closed").mkdir()
    (photos / "a" / "link.png").symlink_to(tmp_path / "closed" / "1.png")
    for folder in (tmp_path / "closed", photos / "c"):
        folder.chmod(0)
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    done = processes.run(extract_without_rights, flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "warning: files or folders that cannot be looked at now are left out, with all that lies below: 2, such as "
        f"{photos}/a/link.png (Permission denied)\n"
    )
    assert "0 computed, 6 reused, 2 files rejected" in done.stdout
    listed = [rejected.Rejected(path, NOT_A_FILE, rejected.RETRY, "Permission denied") for path in ("a/link.png", "c")]
    assert rejected.read(extracted) == listed
    assert cache.open(extracted).labels == ["a", "b"]
    for folder in (tmp_path / "closed", photos / "c"):
        folder.chmod(0o700)
    (photos / "a" / "link.png").unlink()
    result = run()
    assert (result.computed, result.reused, result.rejected) == (0, 8, 0)
    assert cache.open(extracted).labels == ["a", "b", "c"]


def test_a_folder_that_a_broken_disk_cannot_list_is_left_out_until_it_can(tmp_path, extracted, run, monkeypatch):
    photos, scandir = tmp_path / "photos", os.scandir
    make_folder(photos, {"c": 2}, first_seed=50)
    run()

    def scan(path):
        return trouble.break_down() if path == os.fsencode(photos / "c") else scandir(path)

    with monkeypatch.context() as patched, pytest.warns(UserWarning, match=r"such as .*/c \(Input/output error\)"):
        patched.setattr(os, "scandir", scan)
        result = run()
    assert (result.computed, result.reused, result.rejected) == (0, 6, 1)
    result = run()
    assert (result.computed, result.reused, result.rejected) == (0, 8, 0)


def test_an_image_dir_that_may_not_be_listed_is_an_error(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    photos.chmod(0)
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    done = processes.run(extract_without_rights, flags)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot list {photos}: Permission denied; allow reading it or move it\n"
    assert not (tmp_path / "cache").exists()


def test_a_class_without_a_readable_photo_is_named_and_the_index_stays(tmp_path, extracted, run):
    photos = tmp_path / "photos"
    (photos / "bad").mkdir()
    (photos / "bad" / "1.jpg").write_text("no image")
    write_picture(photos / "a" / "new.png", 9)
    with pytest.raises(cache.UserError, match=r"class folder .*bad has no readable photo"):
        run()
    assert cache.open(tmp_path / "cache").labels == ["a", "b"]
    shutil.rmtree(photos / "bad")
    assert run().computed == 0  # the new picture's bottleneck was kept


def test_a_backbones_folder_refuses_another_module(tmp_path, extracted, other_module):
    with pytest.raises(cache.CacheError, match=r"holds bottlenecks of .*tiny, not of .*other"):
        extract(Settings(str(tmp_path / "photos"), str(extracted), other_module))
    assert len(cache.open(extracted)) == 6


@pytest.mark.parametrize("change", ["image size", "preprocessing"])
def test_a_backbones_folder_refuses_the_same_module_used_in_another_way(
    tmp_path, extracted, module, monkeypatch, change
):
    photos = tmp_path / "photos"
    write_picture(photos / "a" / "new.png", 9)
    if change == "preprocessing":
        monkeypatch.setattr(decode, "PREPROCESSING", "another")
    choices = Settings(str(photos), str(extracted), module, image_size=(16, 16) if change == "image size" else None)
    with pytest.raises(cache.CacheError, match=r"holds bottlenecks of .*tiny in another version, image size or prepro"):
        extract(choices)
    assert len(layout.shard_names(extracted)) == 1
    assert len(cache.open(extracted)) == 6


def test_a_newer_cache_is_refused_by_name(extracted, run):
    index = extracted / layout.INDEX
    with h5py.File(index, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(cache.CacheError, match="cache format 3, newer than format 2"):
        run()
    assert index.exists()


def test_values_that_float16_cannot_hold_are_an_error(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    big = modules.save_signature(
        tmp_path / "big", lambda images: {"vector": 1e6 + tf.reduce_mean(images, [1, 2])}, modules.image_spec((16, 16))
    )
    with pytest.raises(cache.UserError, match=r"000.png has values too large for float16; use --dtype float32"):
        run(module=big, dtype="float16")
    assert run(module=big, dtype="float32").computed == 4
