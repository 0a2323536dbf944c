"""Files of weights in torch's old format, written by hand: a pickle cannot name torch where it is not installed."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from extract.backbones import torch_file


def pickled(value: object) -> bytes:
    """The opcodes that make a value, without the beginning and the end of a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def file_of(
    *,
    rebuild: bytes = b"torch._utils\n_rebuild_tensor_v2",
    storage: bytes = b"torch\nFloatStorage",
    values: bytes = np.arange(6, dtype="<f4").tobytes(),
    elements: int = 6,
    offset: int = 1,
    shape: tuple[int, ...] = (2, 2),
    strides: tuple[int, ...] = (1, 3),
) -> bytes:
    """A state dict of one tensor, `weight`."""
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    persistent = b"(" + pickled("storage") + b"c" + storage + b"\n" + b"".join(map(pickled, ("7", "cpu", elements)))
    tensor = b"(" + persistent + b"NtQ" + b"".join(map(pickled, (offset, shape, strides, False)))
    state = ordered_dict + pickled("weight") + b"c" + rebuild + b"\n" + tensor + ordered_dict + b"tRs"
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join((*head, b"\x80\x02" + state + b".", pickle.dumps(["7"], 2), struct.pack("<q", 6), values))


def read(tmp_path: Path, contents: bytes) -> dict[str, np.ndarray]:
    (tmp_path / "weights.pth").write_bytes(contents)
    return torch_file.read_state_dict(tmp_path / "weights.pth")


def test_tensors_may_be_strided_views(tmp_path: Path) -> None:
    assert read(tmp_path, file_of())["weight"].tolist() == [[1, 4], [2, 5]]
    integers = file_of(storage=b"torch\nLongStorage", values=np.arange(6, dtype="<i8").tobytes())
    assert read(tmp_path, integers)["weight"].tolist() == [[1, 4], [2, 5]]
    scalar = read(tmp_path, file_of(shape=(), strides=()))["weight"]
    assert scalar.shape == ()
    assert scalar == 1


@pytest.mark.parametrize("position", range(5))
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, position: int) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was here"),)

    pickles = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, OrderedDict(), [])]
    pickles[position] = pickle.dumps(Malicious(), 2)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        read(tmp_path, b"".join(pickles))
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("rebuild", [b"torch._utils\n_rebuild_tensor", b"builtins\neval", b"os\nsystem"])
def test_other_names_than_weights_need_are_refused(tmp_path: Path, rebuild: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=rebuild.decode().replace("\n", ".")):
        read(tmp_path, file_of(rebuild=rebuild))


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 2},
        {"offset": -1},
        {"shape": (2, 3)},
        {"strides": (1, -1)},
        {"strides": (1,)},
        {"shape": (10**9, 10**9), "strides": (0, 0)},
        {"elements": 5},
        {"elements": 10**12},
        {"storage": b"torch\nDoubleStorage"},
        {"storage": b"collections\nOrderedDict"},
    ],
    ids=str,
)
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path, file_of(**wrong))


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    whole = file_of()
    for length in range(len(whole)):
        with pytest.raises(pickle.UnpicklingError):
            read(tmp_path, whole[:length])
