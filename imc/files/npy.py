"""An .npy file that is written row by row, of a number of rows that is known at its end."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class GrowingArray:
    """Appends rows of one shape; numpy leaves room in the header for their final number.

    Plain writes: a full disk is then an error, where a write through a memory map would end the process.

    Args:
        file: new, of bytes.
        dtype: of the numbers.
    """

    def __init__(self, file: IO[bytes], dtype: DTypeLike = np.float32) -> None:
        self.file = file
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.count = 0
        self.shape: tuple[int, ...] = ()

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows [n, ...]."""
        if not self.count:
            self.shape = rows.shape[1:]
            self._write_header()
        self.count += len(rows)
        self.file.write(np.ascontiguousarray(rows, self.dtype).tobytes())

    def finish(self) -> None:
        """Write how many there are; nothing may follow."""
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.count, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, description)
