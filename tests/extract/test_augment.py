"""Augmentations: what is drawn for a photo, what becomes of it, and that it depends on nothing else."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import cache
from cache import layout, reader, verify
from extract.augment import augment as changed
from extract.augment import draw, enough
from extract.settings import Augmentation
from tests import modules
from tests.extract.augmentations import ALL, assert_another, assert_same, augmentations, forget, make, vectors
from tests.pictures import SIDE, noise, pixels, write_picture

LARGEST_SEED = 2**31 - 1


def kinds(**chosen):
    return Augmentation(*(dict.fromkeys(ALL, 0) | chosen).values(), seed=0, number=1)


def by_scipy(image, height, width, augmentation, draws):
    """What the augmentation makes of `image`, before rounding: float64 [height, width, 3]."""
    scale, top, left, flip, brightness = draws
    enlargement = (1 + augmentation.random_crop / 100) * (1 + augmentation.random_scale / 100 * scale)
    rows, columns = round(enlargement * height), round(enlargement * width)
    first_row, first_column = int(top * (rows - height + 1)), int(left * (columns - width + 1))
    # Between pixel centres; beyond the outermost of them, nearest.
    y = (first_row + np.arange(height) + 0.5) * image.shape[0] / rows - 0.5
    x = (first_column + np.arange(width) + 0.5) * image.shape[1] / columns - 0.5
    grid = np.meshgrid(y, x, indexing="ij")
    channels = [ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode="nearest") for c in range(3)]
    result = np.stack(channels, axis=2)
    if augmentation.flip_left_right and flip < 0.5:
        result = result[:, ::-1]
    return np.minimum(result * (1 + augmentation.random_brightness / 100 * (2 * brightness - 1)), 255)


def draws_of(content, seed, number):
    """The five numbers for a file of these bytes, as FORMAT.md describes them."""
    fingerprint = tf.raw_ops.Fingerprint(data=[content], method="farmhash64").numpy().tobytes()
    key = [int.from_bytes(fingerprint, "little", signed=True), seed * 2**32 + number]
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
    made = changed(image, 16, 20, kinds(**chosen), tf.constant(draws)).numpy()
    assert (made.shape, made.dtype) == ((16, 20, 3), np.uint8)
    # Half of a whole number by rounding, and what float32 adds to that.
    np.testing.assert_allclose(made, by_scipy(image, 16, 20, kinds(**chosen), draws), atol=0.51)


def test_a_flip_and_a_brightness_are_exact():
    image = noise(1)
    flipped = changed(image, SIDE, SIDE, kinds(flip_left_right=True), tf.constant(DRAWS[2]))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    unflipped = changed(image, SIDE, SIDE, kinds(flip_left_right=True), tf.constant(DRAWS[3]))
    np.testing.assert_array_equal(unflipped, image)
    darker = changed(image, SIDE, SIDE, kinds(random_brightness=100), tf.constant(DRAWS[3]))
    np.testing.assert_array_equal(darker, np.round(image * 0.5))
    brightest = changed(image, SIDE, SIDE, kinds(random_brightness=100), tf.constant(DRAWS[1]))
    np.testing.assert_array_equal(brightest, np.minimum(np.round(image * (1 + 2 * np.float32(0.999) - 1)), 255))


def test_a_large_photo_is_decoded_in_enough_detail():
    assert enough(64, kinds(flip_left_right=True, random_brightness=50)) == 64
    assert enough(64, kinds(random_crop=30, random_scale=40)) == 117  # 64 times 1.3 times 1.4 is 116.48


def test_draws_are_uniform_and_independent():
    """Over 2,000 photos: the mean of each, and the correlation of any two, within five standard errors."""
    prints = np.random.default_rng(0).integers(0, 256, (2000, 8), np.uint8)
    both = [
        tf.vectorized_map(lambda row, n=number: draw(row, Augmentation(True, 1, 1, 1, 0, n)), prints).numpy()
        for number in (1, 2)
    ]
    numbers = np.concatenate(both, axis=1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=5 * 12**-0.5 / 2000**0.5)
    correlations = np.corrcoef(numbers.T) - np.eye(10)
    assert abs(correlations).max() < 5 / 2000**0.5


@pytest.fixture(scope="module")
def reseeded(module, extracted_once, tmp_path_factory):
    """A copy of the same cache in which two augmentations with another seed have replaced the first two."""
    root = tmp_path_factory.mktemp("reseeded")
    shutil.copytree(extracted_once, root, dirs_exist_ok=True)
    result = make(root, module, augment_seed=LARGEST_SEED)
    assert (result.computed, result.augmented, result.augmented_reused) == (0, 12, 0)
    return result.directory


def test_every_augmentation_is_what_its_draws_make_of_the_picture(extracted_once, reseeded):
    photos = extracted_once / "photos"
    [first_seed] = (extracted_once / "cache").iterdir()
    for directory, seed in ((first_seed, 0), (reseeded, LARGEST_SEED)):
        made = augmentations(directory)
        assert len(made) == 2
        for number, bottlenecks in enumerate(made, 1):
            assert sorted(bottlenecks) == sorted(cache.open(directory).paths)
            for path, vector in bottlenecks.items():
                draws = draws_of((photos / path).read_bytes(), seed, number)
                image = by_scipy(pixels(photos / path), SIDE, SIDE, Augmentation(**ALL, seed=0, number=1), draws)
                wanted = modules.reference(image[None].astype(np.float32) / 255)[0]
                # A patch's mean of 16 pixels is off by half of 1/255 at most; 48 of them go into a number.
                np.testing.assert_allclose(vector, wanted, atol=0.01, err_msg=path)


def test_augmentations_differ_from_each_other_from_the_plain_photos_and_by_seed(extracted_once, reseeded):
    [directory] = (extracted_once / "cache").iterdir()
    first, second = augmentations(directory)
    plain = vectors(cache.open(directory))
    for left, right in [(first, second), (first, plain), (second, plain)]:
        assert_another(left, right)
    for left, right in zip([first, second], augmentations(reseeded), strict=True):
        assert_another(left, right)


def test_names_batches_and_threads_change_nothing(tmp_path, extracted, augment):
    wanted = augmentations(extracted)
    forget(extracted)
    augment(batch_size=3, decode_threads=4, augment=1)  # and another number of augmentations
    assert_same(augmentations(extracted), wanted[:1])
    forget(extracted)
    for label in "ab":
        (tmp_path / "photos" / label).rename(tmp_path / "photos" / f"{label} renamed")
    augment(decode_threads=1)
    renamed = [{path.replace(" renamed", ""): row for path, row in found.items()} for found in augmentations(extracted)]
    assert_same(renamed, wanted)


def test_more_augmentations_and_new_photos_cost_only_themselves(tmp_path, extracted, augment):
    photos = tmp_path / "photos"
    (photos / "a" / "broken.png").write_text("no image")
    result = augment(augment=3)
    assert (result.computed, result.augmented, result.augmented_reused, result.rejected) == (0, 6, 12, 1)
    write_picture(photos / "a" / "new.png", 50)
    (photos / "b" / "000.png").rename(photos / "a" / "moved.png")
    result = augment(augment=2)
    assert (result.computed, result.augmented) == (1, 2)
    plain = cache.open(extracted)
    opened = reader.augmentations(plain)
    assert [list(augmentation.paths) == list(plain.paths) for augmentation in opened] == [True, True, False]
    for augmentation in opened[:2]:
        np.testing.assert_array_equal(reader.places(augmentation, plain), np.arange(7))
        np.testing.assert_array_equal(augmentation.label_ids, plain.label_ids)
    # The third augmentation was left as it was.
    at = reader.places(opened[2], plain)
    assert [path for path, place in zip(plain.paths, at, strict=True) if place == -1] == ["a/moved.png", "a/new.png"]
    assert [opened[2].paths[place] for place in at if place != -1] == [
        path for path, place in zip(plain.paths, at, strict=True) if place != -1
    ]


def test_augmentations_with_other_flags_are_replaced_and_a_line_says_so(extracted, augment, capsys):
    augment(augment=3)
    before = augmentations(extracted)
    capsys.readouterr()
    assert augment(augment=2, random_crop=90).augmented == 12
    assert "made with other flags are replaced: 3" in capsys.readouterr().out
    after = augmentations(extracted)
    assert len(after) == 2
    assert_another(before[0], after[0])
    assert len(list((extracted / layout.AUGMENTATIONS).iterdir())) == 2
    assert augment(augment=2, random_crop=90).augmented == 0


def test_how_an_augmentation_was_made_is_in_its_files(reseeded):
    plain = cache.open(reseeded)
    for number, augmentation in enumerate(reader.augmentations(plain), 1):
        words = f"; flip, crop 30%, scale 40%, brightness 50% (1), seed {LARGEST_SEED}, version {number}"
        assert augmentation.backbone.preprocessing == plain.backbone.preprocessing + words
        assert augmentation.shards[0].attributes["preprocessing"] == augmentation.backbone.preprocessing
        assert augmentation.backbone.fingerprint != plain.backbone.fingerprint
        verify.check(augmentation)


def test_without_any_kind_of_change_all_four_are_made(extracted, augment):
    augment(augment=1, **dict.fromkeys(ALL, 0))
    plain = cache.open(extracted)
    words = "; flip, crop 10%, scale 10%, brightness 10% (1), seed 0, version 1"
    [augmentation] = reader.augmentations(plain)
    assert augmentation.backbone.preprocessing == plain.backbone.preprocessing + words
