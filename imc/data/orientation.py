"""How an image must still be turned once its pixels are decoded, whatever its reader has turned already."""

from __future__ import annotations

import re
from typing import Any

from PIL import Image

TAG = 0x0112  # of EXIF and of TIFF
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")
XMP_START = b"http://ns.adobe.com/xap/1.0/\0"


def turned_by_reader(image: Image.Image) -> bool:
    """Whether Pillow turns an image while it loads it, as it does by a tag of TIFF, and all that HEIF says.

    Args:
        image: not loaded: Pillow then removes the tag.
    """
    return image.format == "HEIF" or TAG in getattr(image, "tag_v2", {})


def remaining_turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that shows an image upright; None where it is, or where nothing valid is said.

    Args:
        image: loaded, since some files have their orientation behind their pixels; not one of
            :func:`turned_by_reader`.
    """
    if image.format == "AVIF":  # whose own property, which Pillow writes into the EXIF block, is all that counts
        return TRANSPOSITIONS.get(_exif(image.info.get("exif", b"")) or 1)
    profiles = [image.info.get("exif", b""), *(_profile(image, kind) for kind in ("exif", "APP1"))]
    orientations = [_exif(profile) for profile in profiles]
    packets = [image.info.get("XML:com.adobe.xmp"), image.info.get("xmp"), _profile(image, "xmp"), profiles[-1]]
    orientations += [_xmp(packet) for packet in packets]
    return TRANSPOSITIONS.get(next((found for found in orientations if found is not None), 1))


def _exif(block: bytes) -> int | None:
    """The orientation in a block of EXIF; None: it has none, or is damaged."""
    if not block or block.startswith(XMP_START):
        return None
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(TAG)
    except Exception:  # a damaged block says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def _xmp(packet: Any) -> int | None:
    content = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
    match = XMP.search(content) if isinstance(content, bytes) else None
    return None if match is None else int(match[1])


def _profile(image: Image.Image, kind: str) -> bytes:
    """A profile that a text chunk of PNG holds in hexadecimal digits, as ImageMagick and ExifTool write it."""
    text = image.info.get(f"Raw profile type {kind}")
    try:
        return bytes.fromhex("".join(str(text).split("\n")[3:])) if text else b""
    except ValueError:
        return b""
