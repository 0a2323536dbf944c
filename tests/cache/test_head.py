"""`head.h5`: a head reads as it was written, from the file alone, or not at all."""

import itertools
import os
import re
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import head, table
from cache.calibration import Calibration
from cache.errors import CacheError, UserError
from cache.head import Example
from tests.damage import FOOTER, flipped
from tests.heads import content, random_head
from tests.problems import softmax
from tests.processes import REPO
from tests.random_cache import BACKBONE, DIMENSION, fill, rows
from tests.thumbnail_cache import jpeg

LONG = bool(os.environ.get("LONG"))
RUN_NAMES = ("2026-11-29T03-05-12.123456Z", "2026-11-29T03-05-13.000000Z")
NOTHING = Calibration(np.zeros(15, np.int64), np.zeros(15, np.int64), np.zeros(15))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "head.h5"
    head.write(path, random_head())
    return path


def error(path):
    """The message of the error of reading, which is one line."""
    with pytest.raises(CacheError) as raised:
        head.read(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- written and read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [{}, {"examples": []}, {"test_accuracy": None, "test_photos": 0, "calibration": NOTHING}, {"temperature": 1.0}],
)
def test_a_head_reads_as_it_was_written(tmp_path, others):
    expected = random_head(**others)
    head.write(tmp_path / "head.h5", expected)
    assert content(head.read(tmp_path / "head.h5")) == content(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["head.h5"]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5, unique=True))
def test_labels_are_any_names_of_folders(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "labels.h5"
    labels = [os.fsdecode(name) for name in names]
    head.write(path, random_head(labels, examples=[]))
    assert list(head.read(path).labels) == labels


def test_labels_of_all_scripts_survive(tmp_path):
    labels = ["café", "cafe\u0301", "猫", "💐", "\u202egnp.sesor", "a\nb", " ", "caf\udce9", "ß/ẞ", "\U0010ffff"]
    head.write(tmp_path / "head.h5", random_head(labels, examples=[]))
    assert list(head.read(tmp_path / "head.h5").labels) == labels


def test_what_is_read_does_not_need_the_file_any_more(written):
    opened, expected = head.read(written), content(random_head())
    with written.open("r+b") as file:
        file.write(bytes(written.stat().st_size))
    written.unlink()
    assert content(opened) == expected


def test_the_file_is_what_the_format_says(written):
    """Read with h5py alone, by the section on heads in FORMAT.md."""
    text = (REPO / "cache" / "FORMAT.md").read_text()
    section = re.search(r"\n## A head\n(.*?)\n## ", text, re.DOTALL)[1]
    types = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE))
    expected = random_head()
    with h5py.File(written) as file:
        strings = {name for name, kind in types.items() if kind.startswith("strings")}
        attributes = {name for name, kind in types.items() if kind in ("float", "integer")}
        numbers = set(types) - strings - attributes
        arrays = strings | numbers | {f"{name}_offsets" for name in strings}
        tables = {"classes": "labels biases", "weights": "weights", "bins": "bin_counts bin_hits bin_sums"}
        tables["examples"] = "example_label_ids example_thumbnails"
        assert set(file) == arrays | {f"{name}_checksums" for name in tables}
        for name, covers in tables.items():
            assert file[f"{name}_checksums"].attrs["covers"] == covers.encode()
        for name in numbers:
            assert types[name].startswith(f"{file[name].dtype} [")
            assert types[name].count(",") == file[name].ndim - 1
        assert attributes == {"temperature", "test_accuracy", "test_photos"}
        assert {name: file.attrs[name] for name in attributes} == {name: getattr(expected, name) for name in attributes}
        backbone = {"module", "identity", "fingerprint", "image_height", "image_width", "preprocessing", "dimension"}
        assert set(file.attrs) == attributes | backbone | {"format", "version", "kind"}
        assert file.attrs["kind"] == b"head" and file.attrs["fingerprint"] == BACKBONE.fingerprint.encode()
        starts, joined = file["labels_offsets"][:], file["labels"][:].tobytes()
        assert [joined[a:b].decode() for a, b in itertools.pairwise(starts)] == list(expected.labels)
        np.testing.assert_array_equal(file["weights"], expected.weights)
        np.testing.assert_array_equal(file["biases"], expected.biases)


# --- used ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_probabilities_are_a_softmax_of_logits_over_the_temperature(dtype):
    some = random_head(temperature=2.5)
    vectors = (30 * np.random.default_rng(1).normal(size=(50, DIMENSION))).astype(dtype)
    logits = vectors.astype(float) @ some.weights.astype(float) + some.biases
    for temperature, found in ((2.5, some.probabilities(vectors)), (1, some.probabilities(vectors, temperature=1))):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, softmax(logits / temperature), atol=2e-5)
    assert np.abs(some.probabilities(vectors) - some.probabilities(vectors, temperature=1)).max() > 0.1
    assert some.probabilities(vectors[:0]).shape == (0, 3)


def test_large_logits_do_not_overflow():
    some = random_head(weights=np.full((DIMENSION, 3), 1e30, np.float32) * np.float32([1, 2, 3]))
    assert some.probabilities(np.ones((1, DIMENSION), np.float32)).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("shape", [(DIMENSION,), (2, DIMENSION + 1), (1, 2, DIMENSION)])
def test_bottlenecks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"not [n, {DIMENSION}]")):
        random_head().probabilities(np.zeros(shape, np.float32))


# --- found -----------------------------------------------------------------------------------------------------


def output_dir(root, *temperatures):
    """What trainings leave: a run for each temperature, None for one of a version before heads; a link to the last."""
    for name, temperature in zip(RUN_NAMES, temperatures, strict=False):
        (root / "runs" / name / "saved_model").mkdir(parents=True)
        if temperature is not None:
            head.write(root / "runs" / name / "head.h5", random_head(temperature=temperature))
    (root / "latest").symlink_to(f"runs/{name}")
    return root


def test_the_newest_head_of_a_training_is_found(tmp_path):
    out = output_dir(tmp_path / "out", 2.0, 3.0)
    for path in (out, out / "latest", out / "runs" / RUN_NAMES[1], out / "latest" / "head.h5", str(out)):
        assert head.read(path).temperature == 3
    assert head.read(out / "runs" / RUN_NAMES[0]).temperature == 2
    assert head.find(out) == out.resolve() / "runs" / RUN_NAMES[1] / "head.h5"
    (out / "latest").unlink()
    assert head.read(out).temperature == 3
    (out / "latest").symlink_to(f"runs/{RUN_NAMES[0]}")
    assert head.read(out).temperature == 2


def test_an_output_of_an_earlier_version_says_to_train_again(tmp_path):
    out = output_dir(tmp_path / "out", 2.0, None)  # the former run's head is another classifier's
    assert error(out).startswith(f"{out} has no head.h5; ") and error(out).endswith("train again")
    (tmp_path / "empty").mkdir()
    assert "has no head.h5" in error(tmp_path / "empty")
    assert error(tmp_path / "nothing").startswith(f"no head at {tmp_path / 'nothing'}; give the --output_dir")


def test_a_training_that_ends_meanwhile_does_no_harm(tmp_path, monkeypatch):
    out = output_dir(tmp_path / "out", 2.0)
    read = head._read

    def read_after_another_training(path):
        monkeypatch.setattr(head, "_read", read)
        shutil.rmtree(out)
        output_dir(out, 3.0, 4.0)
        shutil.rmtree(out / "runs" / RUN_NAMES[0])
        return read(path)

    monkeypatch.setattr(head, "_read", read_after_another_training)
    assert head.read(out).temperature == 4


# --- damaged or foreign ----------------------------------------------------------------------------------------


def test_every_flip_is_found_or_harmless(written):
    """With LONG=1 of every byte; otherwise of each seventh where the file is not empty, and of few of the others."""
    expected, whole = content(random_head()), written.read_bytes()
    full = [place for place, byte in enumerate(whole) if byte]
    places = range(len(whole)) if LONG else sorted({*full[::7], *range(0, len(whole), 211), *range(-60, 0)})
    found = 0
    for place in (place % len(whole) for place in places):
        with flipped(written, {place: 1 << place % 8}):
            try:
                assert content(head.read(written)) == expected, f"byte {place}"
            except CacheError as raised:
                assert str(raised).startswith(f"{written} is damaged (")
                assert str(raised).endswith("); train again with `python -m train`")
                found += 1
    assert found > 300
    assert content(head.read(written)) == expected


@pytest.mark.parametrize("array", [name for schema in head.SCHEMAS.values() for name in schema])
def test_a_flip_in_any_column_is_found(written, array):
    with h5py.File(written) as file:
        place, size = file[array].id.get_offset(), file[array].nbytes
    for byte in range(place, place + size, max(1, size // 16)):
        with flipped(written, {byte: 1}):
            assert "differ from their checksums" in error(written)


def test_a_file_that_was_cut_off_is_found(written):
    whole = written.read_bytes()
    for end in range(0, len(whole) - FOOTER, 97):
        written.write_bytes(whole[:end])
        error(written)
    written.write_bytes(whole[:-FOOTER])  # as in files of earlier versions
    assert content(head.read(written)) == content(random_head())


WEIGHTS = random_head().weights
CALIBRATION = random_head().calibration
WRONG = {
    "no labels": {"labels": [], "weights": WEIGHTS[:, :0], "biases": np.zeros(0, np.float32), "examples": []},
    "a label twice": {"labels": ["a", "b", "a"]},
    "too few labels": {"labels": ["a", "b"], "weights": WEIGHTS, "examples": []},
    "another dimension": {"weights": WEIGHTS[1:]},
    "weights that are infinite": {"weights": np.where(WEIGHTS > 0, np.float32(np.inf), WEIGHTS)},
    "a bias that is no number": {"biases": np.float32([0, np.nan, 0])},
    "no temperature": {"temperature": np.nan},
    "a temperature of 0": {"temperature": 0.0},
    "an infinite temperature": {"temperature": np.inf},
    "an accuracy above 1": {"test_accuracy": 1.5},
    "an accuracy of no photos": {"test_photos": 0},
    "more hits than photos": {"calibration": Calibration(CALIBRATION.counts, CALIBRATION.counts + 1, CALIBRATION.sums)},
    "probabilities above 1": {"calibration": Calibration(CALIBRATION.counts, CALIBRATION.hits, CALIBRATION.sums * 2)},
    "sums that are no numbers": {"calibration": Calibration(NOTHING.counts, NOTHING.hits, NOTHING.sums * np.nan)},
    "an example of no class": {"examples": [Example(3, jpeg(1))]},
    "an example of class -1": {"examples": [Example(-1, jpeg(1))]},
    "an example that is no JPEG": {"examples": [Example(0, b"<svg>")]},
    "an example of a huge JPEG": {"examples": [Example(0, jpeg(1) + bytes(1 << 16))]},
}


@pytest.mark.parametrize("others", WRONG.values(), ids=WRONG)
def test_numbers_that_make_no_sense_are_neither_written_nor_read(tmp_path, monkeypatch, others):
    with pytest.raises(UserError, match="the head is of no use"):
        head.write(tmp_path / "head.h5", random_head(**others))
    assert not (tmp_path / "head.h5").exists()
    with monkeypatch.context() as patched:  # somebody else's program, whose checksums are right
        patched.setattr(head, "_problem", lambda _: None)
        head.write(tmp_path / "head.h5", random_head(**others))
    assert error(tmp_path / "head.h5").endswith("; train again with `python -m train`")


def test_a_head_without_an_attribute_is_refused(written):
    for name in ("fingerprint", "dimension", "temperature"):
        attributes = {**BACKBONE.attributes(), "temperature": 1.5}
        del attributes[name]
        table.write(written, head.KIND, attributes, head.SCHEMAS, parts_of(random_head()))
        assert "is damaged (" in error(written)


def parts_of(one):
    """The tables of a head, as `table.write` takes them."""
    tables = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "write", lambda *arguments: tables.update(arguments[4]))
        head.write(None, one)
    return tables


def test_links_pipes_and_other_files_are_refused(written, tmp_path):
    link, pipe, text, foreign = (tmp_path / name for name in ("link.h5", "pipe.h5", "text.h5", "foreign.h5"))
    link.symlink_to(written)
    os.mkfifo(pipe)
    text.write_text("no head")
    with h5py.File(foreign, "w", libver="latest") as file:
        file["weights"] = [1.0]
    assert "is a link or no regular file" in error(link)
    assert "is a link or no regular file" in error(pipe)
    assert "is damaged (no HDF5 file)" in error(text)
    assert error(foreign) == f"{foreign} is no file of a bottleneck cache; train again with `python -m train`"
    fill(tmp_path / "tiny", [rows(3, 0)])
    assert "is no head of a cache" in error(tmp_path / "tiny" / "index.h5")
    shutil.copy(written, tmp_path / "shard.h5")
    with pytest.raises(CacheError, match="is no shard of a cache; run `python -m cache verify"):
        table.read(tmp_path / "shard.h5", "shard", head.SCHEMAS)


def test_a_newer_format_is_not_called_damaged(written, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(table, "VERSION", 3)
        head.write(written, random_head())
    assert error(written).endswith("update this program")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/head.h5"):
        head.write(tmp_path / "file" / "head.h5", random_head())
