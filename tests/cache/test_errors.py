"""Errors that are reported in one line."""

import errno
import os

import pytest

from cache.errors import CacheError, UserError, damage, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("the reason\nand more of it"), "the reason"),
        (ValueError("\n\n  \n  the reason  \n"), "the reason"),
        (ValueError("Graph execution error:\n\nthe reason\n"), "the reason"),
        (ValueError("{{function_node __wrapped__Cast_device_/CPU:0}} the reason [Op:Cast] name: "), "the reason"),
        (ValueError(""), "ValueError"),
        (ValueError(), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (KeyError("name"), "'name'"),
        (ValueError("x" * 1000), "x" * 200),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"), "No space left on device"),
        (OSError("no number, only words"), "no number, only words"),
        (OSError(errno.EIO, ""), f"[Errno {errno.EIO}]"),
        (OSError(), "OSError"),
        (UserError("two\nlines"), "two\\nlines"),
    ],
)
def test_the_first_line_of_an_error_says_something(error, line):
    assert first_line(error).rstrip() == line


def test_an_error_of_the_user_is_one_line_whatever_it_quotes():
    error = UserError("no folder a\nb\r\nc\x0bd\x1b[2J; name another")
    assert str(error) == r"no folder a\nb\r\nc\x0bd\x1b[2J; name another"


def test_damage_names_the_file_the_reason_and_the_remedy(tmp_path):
    error = damage(tmp_path / "index.h5", "label_ids")
    assert isinstance(error, CacheError)
    start = f"{tmp_path / 'index.h5'} is damaged (label_ids); run `python -m cache verify --repair` "
    assert str(error).startswith(start)
