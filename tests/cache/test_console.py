"""Flags that are made of settings, one line for an error, and exit statuses."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from cache import console
from cache.console import add_flags, flag
from cache.errors import UserError
from tests.processes import REPO


@dataclass(frozen=True)
class Settings:
    folder: str = flag("the folder", type=console.path)
    count: int = flag("how many", default=3, type=console.positive, metavar="N")
    kind: str = flag("which kind", default="a", choices=["a", "b"])
    fast: bool = flag("whether to hurry", default=False)
    names: tuple = flag("some names", default=("x", "y"), nargs="*")
    limit: int | None = flag("a limit, by default none", default=None, type=console.natural)
    internal: int = 7


def parsed(arguments, only=None, **help):
    parser = console.Parser(prog="test")
    add_flags(parser, Settings, only, **help)
    return vars(parser.parse_args(arguments))


def test_a_flag_has_the_default_of_its_field():
    assert parsed(["--folder", "x"]) == {
        "folder": "x", "count": 3, "kind": "a", "fast": False, "names": ("x", "y"), "limit": None
    }  # fmt: skip
    assert Settings("x") == Settings("x", 3, "a", False, ("x", "y"), None, 7)


def test_flags_take_what_their_fields_say():
    arguments = ["--folder=~/x", "--count=5", "--kind=b", "--fast", "--names", "z", "--limit=0"]
    assert parsed(arguments) == {
        "folder": os.path.expanduser("~/x"), "count": 5, "kind": "b", "fast": True, "names": ["z"], "limit": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --folder"),
        (["--folder=x", "--kind=c"], "argument --kind: invalid choice: 'c'"),
        (["--folder=x", "--count=0"], "argument --count: '0' is not a whole number of 1 or more"),
        (["--folder=x", "--internal=1"], "unrecognized arguments: --internal=1"),
        (["--folder=x", "--cou=1"], "unrecognized arguments: --cou=1"),
        (["--folder="], "argument --folder: an empty path"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        parsed(arguments)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("; `test -h` lists the flags")


def test_a_command_may_have_some_of_the_flags_and_its_own_help_for_them(capsys):
    assert parsed(["--kind=b"], only=["kind", "count"]) == {"kind": "b", "count": 3}
    with pytest.raises(SystemExit):
        parsed(["-h"], count="how many of ours")
    text = capsys.readouterr().out
    assert "--count N" in text
    assert "how many of ours (default: 3)" in text
    assert "how many (" not in text
    assert "the folder\n" in text  # a required flag has no default, and None says nothing
    assert "a limit, by default none\n" in text
    assert "--internal" not in text


NUMBERS = {
    console.positive: ({"1": 1, "1000": 1000}, ["0", "-1", "1.5", "x", ""]),
    console.batch_size: ({"1": 1, "-1": -1}, ["0", "-2", "1.5", "x"]),
    console.threads: ({"1": 1, "1024": 1024}, ["0", "1025", "x"]),
    console.percent: ({"0": 0, "100": 100}, ["-1", "101", "0.5"]),
    console.percentage: ({"0": 0.0, "12.5": 12.5, "100": 100.0}, ["-1", "100.1", "nan", "x"]),
    console.natural: ({"0": 0, str(2**31 - 1): 2**31 - 1}, ["-1", str(2**31), "1e3"]),
    console.positive_float: ({"1e-9": 1e-9, "3": 3.0}, ["0", "-1", "inf", "nan", "x"]),
    console.not_negative_float: ({"0": 0.0, "2.5": 2.5}, ["-0.1", "inf", "nan", "x"]),
}


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
def test_a_number_is_checked_against_its_range(kind):
    valid, invalid = NUMBERS[kind]
    assert {text: kind(text) for text in valid} == valid
    for text in invalid:
        with pytest.raises(console.argparse.ArgumentTypeError, match=r"is not a (whole )?number"):
            kind(text)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("do this"), 2, "error: do this\n"),
        (MemoryError(), 2, "error: not enough memory (none left); choose smaller batches\n"),
        (OSError(5, "Input/output error"), 2, "error: [Errno 5] Input/output error; fix that and run again: "),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (console.Interrupted("kept; go on"), 130, "kept; go on\n"),
        (None, 0, ""),
    ],
)
def test_a_command_that_fails_prints_one_line_and_has_the_status_of_its_error(capsys, error, status, line):
    def main(arguments):
        assert arguments == ["argument"]
        if error:
            raise error

    assert console.run(main, ["argument"]) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == (1 if error else 0)


def test_a_bug_is_no_error_of_the_user():
    def main(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.run(main)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_ends_well(capsys, flag):
    assert console.run(lambda arguments: console.Parser(prog="test").parse_args(arguments), [flag]) == 0
    assert capsys.readouterr().out.startswith("usage: test")


# --- standard streams --------------------------------------------------------------------------------------------

PRINTS = """
import sys
from cache import console
def main(_):
    for number in range(50_000):
        console.print(f"line {number}")
    print("a warning", file=sys.stderr)
    open("done", "w").write("done")
sys.exit(console.run(main, is_job=IS_JOB))"""


def in_shell(tmp_path, redirections, is_job):
    """(status, standard output, standard error, whether it came to its end) of a command that prints a lot."""
    (tmp_path / "script.py").write_text(PRINTS.replace("IS_JOB", str(is_job)))
    command = f"{sys.executable} script.py {redirections}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr, (tmp_path / "done").exists()


ALL = "".join(f"line {number}\n" for number in range(50_000))
FULL = "No space left on device"


@pytest.mark.parametrize(
    ("redirections", "is_job", "expected"),
    [
        ("", False, (0, ALL, "a warning\n", True)),
        ("2>&-", False, (0, ALL, "", True)),
        (">&-", False, (0, "", "a warning\n", True)),
        ("<&-", False, (0, ALL, "a warning\n", True)),
        ("<&- >&- 2>&-", True, (0, "", "", True)),
        ("| head -1", False, (141, "line 0\n", "", False)),
        ("| head -1", True, (0, "line 0\n", "a warning\n", True)),
        ("2>&1 | head -1", False, (141, "line 0\n", "", False)),
        ("2>&1 | head -1", True, (0, "line 0\n", "", True)),
        (">/dev/full", False, (2, "", f"error: cannot write standard output: {FULL}", False)),
        (">/dev/full", True, (0, "", f"warning: cannot write standard output: {FULL}", True)),
        ("2>/dev/full", False, (0, ALL, "", True)),
        (">/dev/full 2>&1", True, (0, "", "", True)),
    ],
)
def test_a_standard_stream_that_is_closed_full_or_unread(tmp_path, redirections, is_job, expected):
    status, out, errors, is_done = in_shell(tmp_path, redirections, is_job)
    assert (status, out) == expected[:2]
    assert errors.startswith(expected[2]) and (errors == "") == (expected[2] == "")
    assert errors.count("\n") <= (2 if is_job else 1)
    assert "Traceback" not in errors and "Exception ignored" not in errors
    assert is_done == expected[3]


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path):
    script = """
import os
from cache import console
def main(_):
    with open("shard", "w") as file:
        os.write(2, b"a library's complaint")
        file.write("content")
console.run(main)"""
    (tmp_path / "script.py").write_text(script)
    command = f"PYTHONPATH={REPO} {sys.executable} script.py 2>&- >&- <&-"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "shard").read_text() == "content"


# --- what a terminal would obey ----------------------------------------------------------------------------------

OBEYED = "a\tb\nc\rd\x1b[2Je\x7f\x9b1mf\u2028g\u202eh\u2066i\ud800j\udce9k"
SHOWN = r"a\tb\nc\rd\x1b[2Je\x7f\x9b1mf\u2028g\u202eh\u2066i\ud800j" + "\N{REPLACEMENT CHARACTER}k"
LETTERS = "café Кошка 猫 כלב قطة می‌خواهم हिन्दी 👩‍👧 ﷽ \u00a0\u3000\U000e0001"


def test_what_a_terminal_would_obey_is_shown_instead(capsys):
    def main(_):
        console.print(OBEYED)
        console.print(OBEYED, file=sys.stderr)
        raise UserError(OBEYED)

    assert console.run(main) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{SHOWN}\n"
    assert printed.err == f"{SHOWN}\nerror: {SHOWN}\n"


def test_letters_of_all_scripts_are_printed_as_they_are(capsys):
    console.print(LETTERS)
    console.print(os.fsdecode(LETTERS.encode()))
    assert capsys.readouterr().out == f"{LETTERS}\n" * 2


def test_a_name_that_was_read_as_ascii_is_printed_as_what_it_is(capsys):
    """As Python reads names where the language is C."""
    console.print("café \x9b\u202e".encode().decode("ascii", "surrogateescape"))
    assert capsys.readouterr().out == "café \\x9b\\u202e\n"
