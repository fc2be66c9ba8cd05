"""Image files built byte by byte, where Pillow cannot write them: orientations, PNG chunks, TIFF entries."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112
SHORT, ASCII, BYTE, LONG, RATIONAL = 3, 2, 1, 4, 5
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """What a camera shows of [H, W, ...] that is stored with this orientation."""
    flip, turn = pixels[:, ::-1], np.rot90
    return {
        1: pixels,
        2: flip,
        3: turn(pixels, 2),
        4: pixels[::-1],
        5: turn(flip),
        6: turn(pixels, -1),
        7: turn(flip, -1),
        8: turn(pixels),
    }[orientation]


def stored(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The pixels that this orientation shows as ``upright``."""
    return np.ascontiguousarray(turned(upright, INVERSE[orientation]))


def saved(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


def exif(value: int | bytes, *, kind: int = SHORT, count: int = 1, order: str = "<", tag: int = ORIENTATION) -> bytes:
    """A block of EXIF with one entry, without its prefix."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    field = value if isinstance(value, bytes) else struct.pack(order + {SHORT: "H", LONG: "I", BYTE: "B"}[kind], value)
    entry = struct.pack(order + "HHI", tag, kind, count) + field[:4].ljust(4, b"\0")
    return head + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)


def xmp(orientation: int, form: str = 'tiff:Orientation="{}"') -> bytes:
    """An XMP packet, with the orientation as an attribute, or as an element."""
    said = form.format(orientation)
    inside = f"<rdf:Description {said}/>" if not said.startswith("<") else f"<rdf:Description>{said}</rdf:Description>"
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/">'
        f"<rdf:RDF>{inside}</rdf:RDF></x:xmpmeta>"
    ).encode()


def jpeg_with(segment: bytes, content: bytes) -> bytes:
    """A JPEG with one more APP1 segment at its start."""
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(pixels: NDArray[Any], *, before: bytes = b"", after: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of 8 or 16 bits with further chunks before or after the pixels."""
    array = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = array.shape
    wide = array.astype(f">u{array.itemsize}")
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, across in passes for row in wide[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, COLOUR_TYPES[channels], 0, 0, interlaced)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def raw_profile(kind: str, content: bytes) -> bytes:
    """A text chunk of PNG that holds a profile in hexadecimal digits."""
    text = f"\n{kind}\n{len(content):8}\n{content.hex()}\n".encode("latin-1")
    return chunk(b"zTXt", f"Raw profile type {kind}".encode() + b"\0\0" + zlib.compress(text))


def tiff(
    pixels: NDArray[Any],
    *,
    order: str = "<",
    photometric: int | None = None,
    opacity: int | None = None,
    bits: int | None = None,
    sample_format: int = 1,
    planar: bool = False,
    content: bytes | None = None,
    compression: int = 1,
    orientation: int | None = None,
) -> bytes:
    """A TIFF of one strip, its samples as they are in ``pixels``, or the given bytes.

    Args: ``opacity``: 1 for a last channel that the others are multiplied by, 2 for one that they are not.
    """
    array = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = array.shape
    samples = array.transpose(2, 0, 1) if planar else array
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes() if content is None else content
    depth = bits or 8 * array.itemsize
    colour = 2 if channels >= 3 else 1
    fields: list[tuple[int, int, list[int]]] = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [depth] * channels),
        (259, SHORT, [compression]),
        (262, SHORT, [colour if photometric is None else photometric]),
        (273, LONG, [8 + i * len(body) // channels for i in range(channels)] if planar else [8]),
        (277, SHORT, [channels]),
        (278, LONG, [height]),
        (279, LONG, [len(body) // channels] * channels if planar else [len(body)]),
        (284, SHORT, [2 if planar else 1]),
        (339, SHORT, [sample_format] * channels),
    ]
    if opacity is not None:
        fields.append((338, SHORT, [opacity]))
    if orientation is not None:
        fields.append((ORIENTATION, SHORT, [orientation]))
    fields.sort()
    extra, entries = b"", b""
    after = 8 + len(body) + 2 + 12 * len(fields) + 4
    for tag, kind, values in fields:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack(order + "I", after + len(extra))
            extra += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + place
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(body))
    return head + body + struct.pack(order + "H", len(fields)) + entries + struct.pack(order + "I", 0) + extra
