"""Values with tensors as bytes that processes share, in memory without a name.

A parcel of up to `INLINE` bytes travels in the message itself. A larger one is written to a memory
file (`memfd_create`), and the message carries its descriptor. The receiver maps the file: no second
copy is made, `/dev/shm` and its limit are not involved, and the kernel frees the memory after the
last process, however it ends.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.loading.failure import LoadingError

INLINE = 1024
"""Bytes of a parcel that travels in its message."""
ALIGNMENT = 64
"""Each array of a parcel begins at a multiple of these bytes, a cache line."""
_OUT_OF_BAND = 1024
"""Bytes from which an array is written beside the pickle."""
_NUMBER = struct.Struct("=Q")


class Parcel:
    """The bytes of `value`, until `close`.

    `reference` returns the number of an object that the receiver has already, else None. Raise what
    pickle raises for a value that cannot be pickled, and LoadingError if memory is exhausted.
    """

    def __init__(self, value: Any, reference: Callable[[Any], int | None] | None = None) -> None:
        arrays: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        (_Pickler(stream, arrays) if reference is None else _Referring(stream, arrays, reference)).dump(value)
        views = [array.raw() for array in arrays]
        sizes = [stream.tell(), *(view.nbytes for view in views)]
        head = struct.pack(f"={1 + len(sizes)}Q", len(sizes), *sizes) + stream.getvalue()
        self.inline, self.file = b"", -1
        if len(head) <= INLINE and not views:
            self.inline = head
            return
        self.file = os.memfd_create("ddl-batch", os.MFD_CLOEXEC)
        try:
            self._write(head, views)
        except OSError as error:
            self.close()
            raise LoadingError(
                f"data: no memory for {sum(sizes) / 2**20:.1f} MiB between a rank and a worker process ({error.strerror}); "
                "reduce data.workers, data.prefetch or data.batch_size"
            ) from None

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def _write(self, head: bytes, views: list[memoryview]) -> None:
        """Write with system calls: a write into a mapping ends the process if memory is exhausted."""
        position = _written(self.file, memoryview(head), 0)
        for view in views:
            position = _written(self.file, view, _aligned(position))


def opened(inline: bytes, file: int, parts: Callable[[int], Any] | None = None, *, private: bool = False) -> Any:
    """Return the value of a parcel, and close its `file`.

    `parts` returns the object of a number that `reference` gave. Arrays are views of the file. With
    `private` other receivers do not see what is written to them.
    """
    memory = memoryview(inline)
    if file >= 0:
        try:
            memory = _mapped(file, private)
        finally:
            os.close(file)
    (count,) = _NUMBER.unpack_from(memory)
    pickled, *sizes = struct.unpack_from(f"={count}Q", memory, _NUMBER.size)
    begin = _NUMBER.size * (1 + count)
    position, arrays = begin + pickled, []
    for size in sizes:
        position = _aligned(position)
        arrays.append(memory[position : position + size])
        position += size
    return _Unpickler(io.BytesIO(memory[begin : begin + pickled]), arrays, parts).load()


def _mapped(file: int, private: bool) -> memoryview:
    flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED | mmap.MAP_POPULATE
    return memoryview(mmap.mmap(file, 0, flags, mmap.PROT_READ | mmap.PROT_WRITE))


class _Pickler(pickle.Pickler):
    """Pickles tensors and arrays as `arrays` beside the pickle, and memory maps as their paths."""

    def __init__(self, stream: io.BytesIO, arrays: list[pickle.PickleBuffer]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=lambda array: _kept(array, arrays))

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.device.type == "cpu" and value.layout == torch.strided:
            plain = value.detach().resolve_conj().resolve_neg().contiguous()
            data: Any = plain.reshape(-1).view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(data), value.dtype, tuple(value.shape), value.requires_grad)
        if type(value) is np.memmap and isinstance(value.base, mmap.mmap) and value.mode in ("r", "c"):
            order = "C" if value.flags.c_contiguous else "F"
            return np.memmap, (value.filename, value.dtype, value.mode, value.offset, value.shape, order)
        return NotImplemented


class _Referring(_Pickler):
    """Pickles the number that `reference` gives instead of an object."""

    def __init__(
        self, stream: io.BytesIO, arrays: list[pickle.PickleBuffer], reference: Callable[[Any], int | None]
    ) -> None:
        super().__init__(stream, arrays)
        self._reference = reference

    def persistent_id(self, value: Any) -> int | None:
        return self._reference(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, arrays: list[memoryview], parts: Callable[[int], Any] | None) -> None:
        super().__init__(stream, buffers=arrays)
        self._parts = parts

    def persistent_load(self, number: int) -> Any:
        assert self._parts is not None
        return self._parts(number)


def _kept(array: pickle.PickleBuffer, arrays: list[pickle.PickleBuffer]) -> bool:
    """Return True if `array` is to be a part of the pickle."""
    if array.raw().nbytes < _OUT_OF_BAND:
        return True
    arrays.append(array)
    return False


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...], requires_grad: bool) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, requires_grad=requires_grad)
    writable = data if not memoryview(data).readonly else bytearray(data)
    return torch.frombuffer(writable, dtype=dtype).reshape(shape).requires_grad_(requires_grad)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _written(file: int, data: memoryview, position: int) -> int:
    """Write all of `data` at `position` and return the position after it."""
    while data.nbytes:
        count = os.pwrite(file, data, position)
        data, position = data[count:], position + count
    return position
