"""Arrays of numpy in a pickle that was read as data."""

from __future__ import annotations

from typing import Any

import numpy as np

from imc.files.inert_pickle import Name, Object

NUMPY_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
BUFFERS = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


def pickled_array(node: Any) -> np.ndarray[Any, Any] | None:
    """The array of numbers that a call would have built; None if it would have built something else.

    Raises:
        ValueError: its bytes are not as many as its shape says.
    """
    name = node.callee.text if isinstance(node, Object) and isinstance(node.callee, Name) else ""
    if name in BUFFERS:
        content, dtype, shape, order = node.arguments
    elif name in ARRAYS and isinstance(node.state, tuple) and len(node.state) == 5:
        _, shape, dtype, fortran, content = node.state
        order = "F" if fortran else "C"
    else:
        return None
    kind = dtype.arguments[0] if isinstance(dtype, Object) and dtype.callee == Name("numpy.dtype") else None
    if kind not in NUMPY_DTYPES:
        return None
    swapped = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    numbers = np.frombuffer(raw_bytes(content), np.dtype((">" if swapped else "<") + kind))
    return numbers.reshape(integers(shape), order=order)


def integers(node: Any) -> tuple[int, ...]:
    """Sizes or strides, as a tuple or as torch.Size.

    Raises:
        ValueError: it is something else.
    """
    values = node.arguments[0] if isinstance(node, Object) and node.callee == Name("torch.Size") else node
    if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError("it is damaged: a tensor has no shape")
    return values


def raw_bytes(node: Any) -> bytes:
    """Bytes, which Python 2 pickled as a text, and Python 3 for it as ``_codecs.encode(text, "latin1")``."""
    if isinstance(node, Object):
        node = node.arguments[0]
    return node.encode("latin1") if isinstance(node, str) else bytes(memoryview(node))
