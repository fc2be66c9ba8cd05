"""Which files are images: the formats that are read, and the words for the others, with what to do about them.

The words are those of :func:`imc.text.counted`.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

from PIL import Image

with contextlib.suppress(ImportError):  # optional: registers the format HEIF
    importlib.import_module("pillow_heif").register_heif_opener()

# What Pillow reads by itself, and HEIC. Left out: formats that it hands to other programs (EPS) or leaves to plug-ins.
# HEIF stands before AVIF, whose reader raises for some files of the other.
Image.init()
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000"),
        *("TGA", "ICO", "PCX", "SGI", "QOI", "DDS", "PSD"),
    )
    if name in Image.OPEN
)
VARIANT = "damaged, or of a variant of {its|their} format that Pillow does not read"
HEIC = VARIANT if "HEIF" in FORMATS else "HEIC image{s}, which need{s|} `pip install pillow-heif`"
AVIF = VARIANT if "AVIF" in FORMATS else "AVIF image{s}, which need{s|} a newer Pillow"
JPEG_XL = "JPEG XL image{s}, to be converted to JPEG or PNG first"
RAW = "raw camera file{s}, to be developed to JPEG, PNG or TIFF first"
DRAWINGS = "drawing{s} or document{s}, to be rendered to PNG first"
VIDEOS = "video{s}, whose frames are to be extracted first"
ARRAYS = "array{s}, of which --data takes one .npy or .npz by itself"
ARCHIVES = "archive{s}, to be unpacked first"
EDITORS = "file{s} of an image editor, to be exported to PNG first"
SCIENCE = "scientific or high-dynamic-range image{s}, to be converted to PNG or TIFF of 16 bits first"
OTHER = "{no image by its|not images by their} suffix"
NO_IMAGE = "{no image|not images}"
EMPTY = "empty"

_BY_SUFFIX = {
    JPEG_XL: ".jxl",
    RAW: ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .rwl .3fr .iiq .x3f .kdc .mrw .erf",
    DRAWINGS: ".svg .svgz .pdf .eps .ps .ai .emf .wmf .dxf .cdr",
    VIDEOS: ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .mts .wmv .3gp",
    ARRAYS: ".npy .npz .mat .h5 .hdf5 .pt .pkl .parquet .tfrecord",
    ARCHIVES: ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst",
    EDITORS: ".psb .xcf .kra .ora .afphoto .clip .sketch .procreate .pdn",
    SCIENCE: ".dcm .nii .fits .fit .fts .czi .lif .nd2 .svs .ndpi .oib .mha .mrc .exr .hdr",
}
# Opened in the hope of an image. Also where the reader is missing: many a file named .heic holds a JPEG.
SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs", ".pam")) | frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
)
REASONS = {suffix: reason for reason, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_BY_START = {
    b"\xff\x0a": JPEG_XL,
    b"\0\0\0\x0cJXL ": JPEG_XL,
    b"%PDF": DRAWINGS,
    b"%!PS": DRAWINGS,
    b"\xc5\xd0\xd3\xc6": DRAWINGS,
    b"<svg": DRAWINGS,
    b"\x93NUMPY": ARRAYS,
    b"PK\x03\x04": ARCHIVES,
    b"\x1f\x8b": ARCHIVES,
    b"Rar!": ARCHIVES,
    b"7z\xbc\xaf": ARCHIVES,
    b"gimp xcf": EDITORS,
    b"FUJIFILMCCD-RAW": RAW,
    b"\x1aE\xdf\xa3": VIDEOS,
    b"v/1\x01": SCIENCE,
    b"#?RADIANCE": SCIENCE,
    b"SIMPLE  =": SCIENCE,
    **dict.fromkeys((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS"), VARIANT),
    **dict.fromkeys((b"P7\n", b"PF\n", b"DDS ", b"qoif", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), VARIANT),
}


def reason_by_suffix(suffix: str) -> str:
    """Why a file of this suffix, which is not among :data:`SUFFIXES`, is not opened."""
    return REASONS.get(suffix.lower(), OTHER)


def reason_by_content(path: Path) -> str | None:
    """What a file is instead of an image that can be read, by its first bytes; None: nothing that is known."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return EMPTY
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in (b"avif", b"avis"):
            return AVIF
        return HEIC if brand in _HEIC_BRANDS else RAW if brand == b"crx " else VIDEOS
    if start[128:132] == b"DICM":
        return SCIENCE
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<!DOCTYPE")) and b"<svg" in start:
        return DRAWINGS
    return next((reason for magic, reason in _BY_START.items() if start.startswith(magic)), None)
