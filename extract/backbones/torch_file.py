"""Reads weights from the file format that torch wrote before version 1.6, without torch.

A file is a row of pickles (a magic number, the protocol, the sizes of the writer's C types, the state dict, the keys
of the storages), and then each storage: its number of elements in 8 bytes, and its elements, all little-endian. A
storage is a flat array; the tensors of the state dict are views of storages.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict.

    A pickle may name any code to run, so only the names in `_ALLOWED` are accepted.

    Returns arrays by name, float32 or int64, in torch's shapes: convolutions are [out, in, height, width].
    Raises pickle.UnpicklingError for a file that has another format, is damaged, or names anything else.
    """
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        try:
            if _Unpickler(file, size).load() != _MAGIC or _Unpickler(file, size).load() != _PROTOCOL:
                raise pickle.UnpicklingError("not a state dict in torch's old format")
            _Unpickler(file, size).load()  # the sizes of the writer's C types, which matter to nothing here
            unpickler = _Unpickler(file, size)
            state = unpickler.load()
            keys = _Unpickler(file, size).load()
            if set(keys) != set(unpickler.storages):
                raise pickle.UnpicklingError("the file holds other storages than its tensors name")
            for key in keys:
                _read_storage(file, unpickler.storages[key])
        # The pickle module's documentation warns that a damaged pickle can raise any of these.
        except (EOFError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise pickle.UnpicklingError(f"damaged state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise pickle.UnpicklingError("the file holds something other than a state dict")
    return dict(state)


class _Unpickler(pickle.Unpickler):
    """Accepts an ordered dictionary, two types of storages and the function that makes a tensor; nothing else."""

    def __init__(self, file: BufferedReader, file_size: int) -> None:
        super().__init__(file)
        self.file_size = file_size
        self.storages: dict[str, np.ndarray] = {}  # by key; zeros until `_read_storage` reads them

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, which no weights need") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _device, elements, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"unknown kind of storage: {kind!r}")
        if not 0 <= elements * dtype.itemsize <= self.file_size:
            raise pickle.UnpicklingError(f"storage {key} is larger than the file")
        return self.storages.setdefault(key, np.zeros(elements, dtype))


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_gradient: object
) -> np.ndarray:
    """A view of a storage, in place of torch's function of this name; `offset` and `strides` count elements."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    is_valid = isinstance(storage, np.ndarray) and min((offset, *shape, *strides)) >= 0
    if not is_valid or math.prod(shape) > storage.size or (math.prod(shape) > 0 and last >= storage.size):
        raise pickle.UnpicklingError("a tensor reaches outside its storage")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}


def _read_storage(file: BufferedReader, storage: np.ndarray) -> None:
    """Reads the elements of `storage` from the file, in place: the tensors are views of it."""
    elements = int.from_bytes(file.read(8), "little")
    if elements != storage.size or file.readinto(storage.view(np.uint8).data) != storage.nbytes:
        raise pickle.UnpicklingError("the file ends early, or a storage is not as long as announced")
