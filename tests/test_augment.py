"""Distorted versions of the bottlenecks: what is drawn, what comes of it, and that nothing else has a say in it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import cache
from cache import command, reader, store, verify
from cache.__main__ import main as cache_main
from extract import distort
from extract.__main__ import main
from extract.run import extract
from extract.settings import Distortion, Settings
from tests import modules
from tests.interrupted import Child, Step
from tests.pictures import SIDE, make_folder, noise, pixels, write_picture
from tests.processes import extract_with_nothing_to_do
from tests.test_repair import flip, place_of

REPO = Path(__file__).resolve().parent.parent
ALL = {"flip_left_right": True, "random_crop": 30, "random_scale": 40, "random_brightness": 50}
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 4, "augment": 2, **ALL}


@pytest.fixture
def run(tmp_path, module):
    """Extracts `tmp_path/photos` into `tmp_path/cache`, with two distorted versions."""
    folders = {"image_dir": str(tmp_path / "photos"), "cache_dir": str(tmp_path / "cache"), "module": module}
    return lambda **options: extract(Settings(**(folders | CHOICES | options)))


def kinds(**chosen):
    return Distortion(*(dict.fromkeys(ALL, 0) | chosen).values(), seed=0, version=1)


def by_scipy(image, height, width, distortion, draws):
    """What the distortion makes of `image`, before rounding: float64 [height, width, 3]."""
    scale, top, left, flip, brightness = draws
    enlargement = (1 + distortion.random_crop / 100) * (1 + distortion.random_scale / 100 * scale)
    rows, columns = round(enlargement * height), round(enlargement * width)
    first_row, first_column = int(top * (rows - height + 1)), int(left * (columns - width + 1))
    # Between pixel centres; beyond the outermost of them, nearest.
    y = (first_row + np.arange(height) + 0.5) * image.shape[0] / rows - 0.5
    x = (first_column + np.arange(width) + 0.5) * image.shape[1] / columns - 0.5
    grid = np.meshgrid(y, x, indexing="ij")
    channels = [ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode="nearest") for c in range(3)]
    result = np.stack(channels, axis=2)
    if distortion.flip_left_right and flip < 0.5:
        result = result[:, ::-1]
    return np.minimum(result * (1 + distortion.random_brightness / 100 * (2 * brightness - 1)), 255)


def draws_of(content, seed, version):
    """The five numbers for a file of these bytes, as FORMAT.md has them."""
    fingerprint = tf.raw_ops.Fingerprint(data=[content], method="farmhash64").numpy().tobytes()
    key = [int.from_bytes(fingerprint, "little", signed=True), seed * 2**32 + version]
    return tf.random.stateless_uniform([5], tf.constant(key, tf.int64), alg="philox").numpy()


DRAWS = [
    (0.0, 0.0, 0.0, 0.0, 0.0),
    (0.999, 0.999, 0.999, 0.999, 0.999),
    (0.3, 0.9, 0.1, 0.499, 0.7),
    (0.7, 0.2, 0.6, 0.501, 0.25),
]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("chosen", [{"random_crop": 30}, {"random_scale": 60}, ALL])
@pytest.mark.parametrize("shape", [(31, 45, 3), (9, 7, 3)])
def test_the_graph_agrees_with_scipy(draws, chosen, shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    made = distort.distort(image, 16, 20, kinds(**chosen), tf.constant(draws)).numpy()
    assert (made.shape, made.dtype) == ((16, 20, 3), np.uint8)
    # Half of a whole number by rounding, and what float32 adds to that.
    np.testing.assert_allclose(made, by_scipy(image, 16, 20, kinds(**chosen), draws), atol=0.51)


def test_a_flip_and_a_brightness_are_exact():
    image = noise(1)
    flipped = distort.distort(image, SIDE, SIDE, kinds(flip_left_right=True), tf.constant(DRAWS[2]))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    unflipped = distort.distort(image, SIDE, SIDE, kinds(flip_left_right=True), tf.constant(DRAWS[3]))
    np.testing.assert_array_equal(unflipped, image)
    darker = distort.distort(image, SIDE, SIDE, kinds(random_brightness=100), tf.constant(DRAWS[3]))
    np.testing.assert_array_equal(darker, np.round(image * 0.5))
    brightest = distort.distort(image, SIDE, SIDE, kinds(random_brightness=100), tf.constant(DRAWS[1]))
    np.testing.assert_array_equal(brightest, np.minimum(np.round(image * (1 + 2 * np.float32(0.999) - 1)), 255))


def test_a_large_photo_is_decoded_in_enough_detail():
    assert distort.enough(64, kinds(flip_left_right=True, random_brightness=50)) == 64
    assert distort.enough(64, kinds(random_crop=30, random_scale=40)) == 117  # 64 times 1.3 times 1.4 is 116.48


def test_draws_are_uniform_and_independent():
    """Over 2,000 images: the mean of each, and the correlation of any two, within five standard errors."""
    prints = np.random.default_rng(0).integers(0, 256, (2000, 8), np.uint8)
    both = [
        tf.vectorized_map(lambda row, v=version: distort.draw(row, Distortion(True, 1, 1, 1, 0, v)), prints).numpy()
        for version in (1, 2)
    ]
    numbers = np.concatenate(both, axis=1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=5 * 12**-0.5 / 2000**0.5)
    correlations = np.corrcoef(numbers.T) - np.eye(10)
    assert abs(correlations).max() < 5 / 2000**0.5


def vectors(opened):
    """path -> bottleneck."""
    return dict(zip(opened.paths, opened.bottlenecks(np.arange(len(opened))), strict=True))


def versions(directory):
    """The bottlenecks of each distorted version, by path."""
    return [vectors(version) for version in reader.distorted(cache.open(directory))]


def assert_same(made, wanted):
    """The same versions to rounding: each of 48 products of numbers up to 2 is rounded by 2^-24 of it."""
    assert len(made) == len(wanted)
    for some, others in zip(made, wanted, strict=True):
        assert some.keys() == others.keys()
        for path, vector in some.items():
            np.testing.assert_allclose(vector, others[path], atol=48 * 2 * 2**-24, err_msg=path)


def assert_another(left, right):
    """No image has the same bottleneck in both."""
    assert left.keys() == right.keys()
    for path, vector in left.items():
        assert abs(vector - right[path]).max() > 1e-3, path


def test_every_version_is_what_its_draws_make_of_the_picture(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 4})
    result = run(augment_seed=2**31 - 1)
    assert (result.computed, result.distorted) == (7, 14)
    distortion = Distortion(**ALL, seed=0, version=1)
    made = versions(result.directory)
    assert len(made) == 2
    for version, found in enumerate(made, 1):
        assert sorted(found) == sorted(cache.open(result.directory).paths)
        for path, vector in found.items():
            draws = draws_of((photos / path).read_bytes(), 2**31 - 1, version)
            distorted = by_scipy(pixels(photos / path), SIDE, SIDE, distortion, draws)
            wanted = modules.reference(distorted[None].astype(np.float32) / 255)[0]
            # A patch's mean of 16 pixels is off by half of 1/255 at most; 48 of them go into a number.
            np.testing.assert_allclose(vector, wanted, atol=0.01, err_msg=path)


def test_versions_differ_from_each_other_from_the_plain_one_and_by_seed(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    directory = run().directory
    first, second = versions(directory)
    plain = vectors(cache.open(directory))
    for left, right in [(first, second), (first, plain), (second, plain)]:
        assert_another(left, right)
    assert run(augment_seed=1).distorted == 12
    another = versions(directory)
    assert len(another) == 2
    for left, right in zip([first, second], another, strict=True):
        assert_another(left, right)


def test_names_batches_and_threads_have_no_say(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 4})
    directory = run(decode_threads=1).directory
    wanted = versions(directory)
    shutil.rmtree(directory)
    run(batch_size=3, decode_threads=4, augment=1)  # and another number of versions
    assert_same(versions(directory), wanted[:1])
    shutil.rmtree(directory)
    photos.rename(tmp_path / "elsewhere")
    (tmp_path / "photos").mkdir()
    for label in "ab":
        (tmp_path / "elsewhere" / label).rename(tmp_path / "photos" / f"{label} renamed")
    run()
    renamed = [{path.replace(" renamed", ""): row for path, row in found.items()} for found in versions(directory)]
    assert_same(renamed, wanted)


def test_more_versions_and_new_photos_cost_themselves_only(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    (photos / "a" / "broken.png").write_text("no image")
    assert run(augment=1).distorted == 6
    result = run(augment=3)
    assert (result.computed, result.distorted, result.rejected) == (0, 12, 1)
    write_picture(photos / "a" / "new.png", 50)
    (photos / "b" / "000.png").rename(photos / "a" / "moved.png")
    result = run(augment=2)
    assert (result.computed, result.distorted) == (1, 2)
    plain = cache.open(result.directory)
    opened = reader.distorted(plain)
    assert [list(version.paths) == list(plain.paths) for version in opened] == [True, True, False]
    for version in opened[:2]:
        np.testing.assert_array_equal(reader.places(version, plain), np.arange(7))
        np.testing.assert_array_equal(version.label_ids, plain.label_ids)
    # The third version was left as it was.
    at = reader.places(opened[2], plain)
    assert [path for path, place in zip(plain.paths, at, strict=True) if place == -1] == ["a/moved.png", "a/new.png"]
    assert [opened[2].paths[place] for place in at if place != -1] == [
        path for path, place in zip(plain.paths, at, strict=True) if place != -1
    ]


def test_a_photo_that_changed_is_not_found_in_a_version_that_does_not_know(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    run()
    write_picture(photos / "a" / "001.png", 70)
    plain = cache.open(run(augment=0).directory)
    for version in reader.distorted(plain):
        assert list(version.paths) == list(plain.paths)
        assert reader.places(version, plain).tolist() == [0, -1, 2, 3]


def test_versions_of_other_distortions_are_replaced_and_that_is_said(tmp_path, run, capsys):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run(augment=3).directory
    before = versions(directory)
    capsys.readouterr()
    assert run(augment=2, random_crop=90).distorted == 8
    assert "made with other flags are replaced: 3" in capsys.readouterr().out
    after = versions(directory)
    assert len(after) == 2
    assert_another(before[0], after[0])
    assert len(list((directory / store.DISTORTED).iterdir())) == 2
    assert run(augment=2, random_crop=90).distorted == 0


def test_how_a_version_was_made_is_in_its_files(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run(augment_seed=5).directory
    plain = cache.open(directory)
    for number, version in enumerate(reader.distorted(plain), 1):
        words = f"; flip, crop 30%, scale 40%, brightness 50% (1), seed 5, version {number}"
        assert version.module.preprocessing == plain.module.preprocessing + words
        assert version.shards[0].attributes["preprocessing"] == version.module.preprocessing
        assert version.module.fingerprint != plain.module.fingerprint
        verify.check(version)
    shutil.rmtree(directory / store.DISTORTED)
    run(**dict.fromkeys(ALL, 0))
    words = "; flip, crop 10%, scale 10%, brightness 10% (1), seed 0, version 1"
    assert reader.distorted(plain)[0].module.preprocessing == plain.module.preprocessing + words


def test_a_run_with_nothing_to_do_imports_no_tensorflow_and_writes_nothing(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    (photos / "a" / "broken.jpg").write_text("no image")
    run()
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module, *as_flags()]
    assert "2 distorted versions: 0 computed, 8 reused" in extract_with_nothing_to_do(tmp_path / "cache", flags)


def as_flags():
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in CHOICES.items()]


# Pictures take three batches, each its own shard: 2 and 3 are of the plain images, 5 of the first version, 8 of the
# second.
@pytest.mark.parametrize(
    "at",
    [
        Step("before", "replace", "shard", 5),
        Step("after", "replace", "shard", 8),
        Step("before", "replace", "index", 2),
        Step("after", "replace", "index", 1),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_and_makes_the_same_rows(tmp_path, run, module, at):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 5})
    child = Child(
        "extract",
        ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module, *as_flags()],
        at,
    )
    assert child.wait()[0] == -9
    [directory] = store.directories(tmp_path / "cache")
    committed = {
        folder: sum(len(store.shard.read(folder / "shards" / name)) for name in store.shard_names(folder))
        for folder in (directory, *store.versions(directory))
    }
    assert run().distorted == 20 - (sum(committed.values()) - committed[directory])
    resumed = versions(directory)
    shutil.rmtree(tmp_path / "cache")
    run()
    assert_same(resumed, versions(directory))


def test_a_version_that_is_not_complete_is_named_with_the_remedy(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run().directory
    _, second = store.versions(directory)
    (second / store.INDEX).unlink()
    remedy = "run it again with --augment and the same distortions, or delete"
    with pytest.raises(cache.CacheError, match=rf"{second} is not complete.*{remedy}"):
        reader.distorted(cache.open(directory))
    assert run().distorted == 0
    assert len(versions(directory)) == 2


def test_damage_is_found_and_exactly_those_rows_are_made_again(tmp_path, run, capsys):
    make_folder(tmp_path / "photos", {"a": 5, "b": 5})
    directory = run().directory
    wanted = versions(directory)
    first, second = reader.distorted(cache.open(directory))
    damaged = second.shards[0].rows.paths[3]
    flip(second.shards[0].path, place_of(second.shards[0].path, "bottlenecks", 3))
    capsys.readouterr()
    assert command.run(cache_main, ["verify", "--json", str(tmp_path / "cache")]) == 2
    said = capsys.readouterr()
    assert str(second.directory) in said.err
    entries = {entry["directory"]: entry for entry in json.loads(said.out)}
    assert {name: entry["sound"] for name, entry in entries.items()} == {
        str(directory): True,
        str(first.directory): True,
        str(second.directory): False,
    }
    assert entries[str(second.directory)]["damage"][0]["rows"] == [3]
    with pytest.raises(cache.CacheError, match="rows differ from their checksums"):
        verify.check(reader.distorted(cache.open(directory))[1])
    assert command.run(cache_main, ["verify", "--repair", str(tmp_path / "cache")]) == 0
    left = versions(directory)
    assert wanted[1].keys() - left[1].keys() == {damaged}
    assert run().distorted == 1
    assert_same(versions(directory), wanted)


def test_info_and_compact_see_versions(tmp_path, run, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    run()
    write_picture(photos / "a" / "new.png", 50)
    directory = run().directory
    wanted = versions(directory)
    capsys.readouterr()
    assert command.run(cache_main, ["compact", "--json", str(tmp_path / "cache")]) == 0
    compacted = json.loads(capsys.readouterr().out)
    folders = [str(directory), *map(str, store.versions(directory))]
    assert [entry["directory"] for entry in compacted] == folders
    assert [(entry["shards_before"], entry["shards_after"]) for entry in compacted] == [(2, 1)] * 3
    assert_same(versions(directory), wanted)
    assert command.run(cache_main, ["info", "--json", str(tmp_path / "cache")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(entry["directory"], entry["version"], entry["images"]) for entry in told] == [
        (folder, number, 7) for folder, number in zip(folders, [None, 1, 2], strict=True)
    ]
    assert command.run(cache_main, ["info", str(tmp_path / "cache")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == folders


def test_plain_caches_alone_are_to_choose_from(tmp_path, run, module):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    directory = run().directory
    assert cache.open(tmp_path / "cache").directory == directory
    assert reader.distorted(reader.distorted(cache.open(directory))[0]) == []
    # A version's folder is no place for plain bottlenecks.
    with pytest.raises(cache.CacheError, match="give another --cache_dir"):
        extract(Settings(str(tmp_path / "photos"), str(store.versions(directory)[0]), module))


@pytest.mark.parametrize("old", [0, 1])
def test_a_network_that_changed_under_its_name_neither_makes_nor_drops_versions(tmp_path, run, monkeypatch, old):
    """TensorFlow Hub's handles say nothing of the weights, and its own cache may be another one tomorrow."""
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    handle = "https://tfhub.dev/somebody/tiny/feature_vector/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest()
    modules.make_tf2_hub_module(folder, seed=0)
    directory = run(module=handle, augment=old, augment_seed=1).directory
    before = store.versions(directory)
    shutil.rmtree(folder)
    modules.make_tf2_hub_module(folder, seed=1)
    with pytest.raises(
        cache.UserError, match=f"is no more the network that made {directory}; give another --cache_dir"
    ):
        run(module=handle)
    assert store.versions(directory) == before and len(before) == old


def test_a_version_of_another_backbone_is_refused(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    first = run().directory
    second = run(module=modules.make_tf2_hub_module(tmp_path / "other", seed=1)).directory
    shutil.rmtree(first / store.DISTORTED)
    shutil.copytree(second / store.DISTORTED, first / store.DISTORTED)
    with pytest.raises(cache.CacheError, match="made by another backbone"):
        reader.distorted(cache.open(first))


ERRORS = {
    "flip alone": (["--flip_left_right"], "--flip_left_right needs --augment"),
    "crop alone": (["--random_crop", "5"], "--random_crop needs --augment"),
    "seed alone": (["--augment_seed", "5"], "--augment_seed needs --augment"),
    "crop of 101": (["--augment", "1", "--random_crop", "101"], "--random_crop: '101' is not a whole number from 0 to"),
    "brightness of -1": (["--augment", "1", "--random_brightness=-1"], "--random_brightness: '-1' is not a whole"),
    "scale of a half": (["--augment", "1", "--random_scale", "0.5"], "--random_scale: '0.5' is not a whole"),
    "fewer than no versions": (["--augment=-1"], "--augment: '-1' is not a whole number"),
    "a seed too far": (["--augment", "1", "--augment_seed", str(2**31)], "--augment_seed: '2147483648' is not a whole"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_flags_get_one_line(tmp_path, capsys, case):
    flags, message = ERRORS[case]
    assert command.run(main, ["--image_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
