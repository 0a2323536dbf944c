"""Old files for new ones: which of them stay after an error, and what a list can have deleted."""

import os
import shutil

import pytest

from cache import exchange, files, layout, verify
from cache import index as indexes
from cache.compact import compact
from cache.errors import UserError
from cache.repair import repair
from tests.random_cache import NAME, fill_with_everything, shard_paths, vectors_by_path

LIST = ".exchange"


@pytest.fixture
def made(tmp_path):
    fill_with_everything(tmp_path / NAME)
    return tmp_path / NAME


def copy_shard(path, ending):
    """A shard with the same rows, in no index."""
    return shutil.copyfile(path, path.with_name(layout.new_name(ending)))


def test_after_an_error_the_new_files_go_and_the_old_ones_stay(made):
    before = shard_paths(made)
    with pytest.raises(ZeroDivisionError), exchange.exchanging(made, before) as ending:
        copy_shard(before[0], ending)
        raise ZeroDivisionError
    assert shard_paths(made) == before
    assert not (made / LIST).exists()


def test_after_an_error_the_new_files_that_an_index_names_stay(made):
    vectors, before = vectors_by_path(made), shard_paths(made)
    info, index = indexes.read(made)
    with pytest.raises(ZeroDivisionError), exchange.exchanging(made, before) as ending:
        new = [copy_shard(path, ending) for path in before]
        index.shards[:] = [path.name for path in new]
        indexes.write(made, info, index)
        raise ZeroDivisionError
    assert shard_paths(made) == new
    assert vectors_by_path(made) == vectors


def test_nothing_is_listed_where_there_is_nothing_to_exchange(made):
    with exchange.exchanging(made, []):
        assert not (made / LIST).exists()


def test_a_list_deletes_what_it_names_and_no_index_does(made):
    vectors = vectors_by_path(made)
    named = shard_paths(made)
    old, new, foreign = (copy_shard(named[0], ending) for ending in ("-00000001.h5", "-00000002.h5", "-00000003.h5"))
    size = old.stat().st_size + new.stat().st_size
    listed = [path.name for path in named]
    (made / LIST).write_text("".join(f"{line}\n" for line in [*listed, old.name, "*-00000002.h5"]))
    assert exchange.finish(made) == size
    assert shard_paths(made) == [*named, foreign]
    assert not (made / LIST).exists()
    assert vectors_by_path(made) == vectors
    assert exchange.finish(made) == 0


def test_without_an_index_a_list_of_new_files_deletes_no_old_one(made):
    (made / layout.INDEX).unlink()
    before = shard_paths(made)
    copy_shard(before[0], "-00000002.h5")
    (made / LIST).write_text(f"*-00000002.h5\n{before[0].name}\n")
    exchange.finish(made)
    assert shard_paths(made) == before


LISTS = ["", "*", "*\n*.h5\n", "../../elsewhere.h5\n", "/elsewhere.h5", "index.h5\nbackbone", "\0\n", b"\xff\xfe\n"]


@pytest.mark.parametrize("content", LISTS, ids=ascii)
def test_a_list_from_elsewhere_deletes_nothing_but_shards(made, content):
    """`*` alone is no ending."""
    elsewhere = made.parents[1] / "elsewhere.h5"
    elsewhere.write_text("years of work")
    stays = copy_shard(shard_paths(made)[0], "-00000003.h5")
    (made / LIST).write_bytes(content if isinstance(content, bytes) else content.encode())
    repair(made)
    assert elsewhere.read_text() == "years of work"
    assert stays.exists()
    assert verify.find(made) == []
    assert not (made / LIST).exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_list_that_is_no_file_goes_and_what_it_leads_to_stays(made, tmp_path, kind):
    (tmp_path / "elsewhere").write_text("*-00000003.h5\n")
    stays = copy_shard(shard_paths(made)[0], "-00000003.h5")
    {"link": lambda path: path.symlink_to(tmp_path / "elsewhere"), "pipe": os.mkfifo, "folder": os.mkdir}[kind](
        made / LIST
    )
    compact(made)
    assert (tmp_path / "elsewhere").exists() and stays.exists()
    assert not os.path.lexists(made / LIST)


def test_where_the_list_cannot_be_written_nothing_changes(made, monkeypatch):
    before = shard_paths(made)

    def refuse(path, content):
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(UserError, match=f"cannot write {made / LIST}"):
        compact(made)
    assert shard_paths(made) == before
