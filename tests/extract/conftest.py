"""Caches of the small module for the tests of the extraction."""

import hashlib
import shutil
import time
from dataclasses import replace

import pytest


@pytest.fixture
def cache_dir(tmp_path, loaded, loaded_once):
    """A cache that has the backbone of the small module and no bottlenecks.

    Loading and saving a backbone takes most of the time that an extraction of a few pictures does.
    """
    return shutil.copytree(loaded[1], tmp_path / "cache")


@pytest.fixture
def run(tmp_path, module, loaded, loaded_once):
    """Extracts `tmp_path/photos` into `tmp_path/cache`, which has the backbone already; takes other settings, too."""
    from extract.run import extract
    from extract.settings import Settings

    def extract_photos(photos=tmp_path / "photos", **options):
        if not (tmp_path / "cache").exists():
            shutil.copytree(loaded[1], tmp_path / "cache")
        fixed = {"module": module, "precision": "float32", "dtype": "float32", "batch_size": 4}
        return extract(Settings(str(photos), str(tmp_path / "cache"), **(fixed | options)))

    return extract_photos


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A handle of TensorFlow Hub, and a function that puts a module behind it: a handle says nothing of the weights."""
    handle = "https://tfhub.dev/somebody/tiny/feature_vector/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest()

    def put(module):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(module, folder)

    return handle, put


@pytest.fixture(scope="session")
def other_module(tmp_path_factory):
    """The path of a small SavedModel with other weights."""
    from tests import modules

    return modules.make_tf2_hub_module(tmp_path_factory.mktemp("modules") / "other", seed=1)


@pytest.fixture(scope="session")
def extracted_once(module, loaded, tmp_path_factory):
    """A folder with `photos`, six of two classes, and their `cache`, with two augmentations. Tests do not change it."""
    from tests.extract import augmentations
    from tests.pictures import make_folder

    root = tmp_path_factory.mktemp("extracted")
    make_folder(root / "photos", {"a": 3, "b": 3})
    shutil.copytree(loaded[1], root / "cache")
    result = augmentations.make(root, module)
    assert (result.computed, result.augmented, result.augmented_reused) == (6, 12, 0)
    return root


@pytest.fixture
def extracted(tmp_path, extracted_once, loaded_once):
    """A copy of these photos and their cache in `tmp_path`; the folder of the plain bottlenecks in it."""
    from cache import index as indexes
    from cache import layout

    shutil.copytree(extracted_once, tmp_path, dirs_exist_ok=True)
    [directory] = (tmp_path / "cache").iterdir()
    # A copied photo is one that may have changed, unless it was listed later.
    for folder in (directory, *layout.augmentations(directory)):
        info, index = indexes.read(folder)
        indexes.write(folder, info, replace(index, image_dir=str(tmp_path / "photos"), listed=time.time_ns()))
    return directory


@pytest.fixture
def augment(tmp_path, module, loaded_once):
    """Extracts `tmp_path/photos` into `tmp_path/cache`, with two augmentations; takes other settings, too."""
    from tests.extract import augmentations

    return lambda **options: augmentations.make(tmp_path, **({"module": module} | options))
