"""Columns of strings: lists of strings in two arrays, and their lookup."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import strings, table
from cache.strings import ABSENT, Lookup, Strings, find
from cache.table import STRINGS

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
texts = st.lists(names, max_size=30)


@given(texts, st.data())
def test_strings_are_a_list_of_strings(texts, data):
    column = Strings.of(texts)
    assert list(column) == texts == [column[i] for i in range(len(texts))]
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=30) if texts else st.just([]))
    assert list(column.take(np.array(rows, int))) == [texts[i] for i in rows]
    assert list(Strings.concatenate([column, Strings.of([]), column])) == texts * 2
    assert column.equals(Strings.of(texts))


def test_paths_that_are_not_unicode_survive():
    path = b"class/\xff\xfe.jpg".decode("utf-8", "surrogateescape")
    assert list(Strings.of([path])) == [path]


@given(texts, st.data())
def test_concatenated_slices_hold_their_own_bytes_and_no_others(texts, data):
    """The slices share the bytes of the whole column. Written as they are, a prefix would bring along all of them."""
    column = Strings.of(texts)
    begin = data.draw(st.integers(0, len(texts)))
    end = data.draw(st.integers(begin, len(texts)))
    joined = Strings.concatenate([column[begin:end]])
    assert list(joined) == texts[begin:end]
    assert joined.is_sound()
    assert len(joined.data) == sum(len(text.encode()) for text in texts[begin:end])


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 3), slice(2, 4), slice(0, 4), slice(0, 0)])
def test_a_written_slice_reads_as_a_sound_column(tmp_path, rows):
    schemas, texts = {"rows": {"names": STRINGS}}, ["a", "bcd", "", "ef"]
    table.write(tmp_path / "file.h5", "test", {}, schemas, {"rows": [{"names": Strings.of(texts)[rows]}]})
    read = table.read(tmp_path / "file.h5", "test", schemas)[1]["rows"]
    assert list(read.columns["names"]) == texts[rows]
    assert read.columns["names"].is_sound()
    assert not len(read.damaged())


def test_strings_are_taken_and_found_block_by_block(monkeypatch):
    monkeypatch.setattr(strings, "_BLOCK", 3)
    texts = [f"{number}" * (number % 5) + f"/{number}" for number in range(20)]
    rows = np.random.default_rng(0).permutation(20)[:17]
    taken = Strings.of(texts).take(rows)
    assert list(taken) == [texts[i] for i in rows]
    assert Lookup(Strings.of(texts)).find(taken).tolist() == rows.tolist()
    assert Lookup(taken).find(Strings.of(["none", texts[rows[5]]])).tolist() == [ABSENT, 5]


@given(texts, texts)
def test_a_string_that_is_not_there_is_absent(wanted, texts):
    texts = list(dict.fromkeys(texts))
    places = find(Strings.of(wanted), Strings.of(texts))
    assert places.tolist() == [texts.index(text) if text in texts else ABSENT for text in wanted]


def test_strings_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(strings, "_hashes", lambda column: np.zeros(len(column), np.int64))
    assert find(Strings.of(["b"]), Strings.of(["a"])).tolist() == [ABSENT]


@pytest.mark.parametrize("place", [slice(0, 4, 2), "0", 1.0])
def test_a_place_is_an_integer_or_a_slice_of_step_1(place):
    with pytest.raises(TypeError):
        Strings.of("abcd")[place]


@pytest.mark.parametrize("place", [4, -5])
def test_a_place_that_is_not_there_is_an_index_error(place):
    with pytest.raises(IndexError):
        Strings.of("abcd")[place]
