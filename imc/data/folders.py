"""A folder of images: found, ordered, decoded to one size and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import statistics
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imc.command_line.terminal import progress
from imc.data.cache import cached, stamp
from imc.data.converted import Converted
from imc.data.decode import Kind, UnreadableError, decode, read_header, read_kind
from imc.data.files import refusal
from imc.data.formats import SUFFIXES, reason_by_suffix
from imc.data.ignored import HIDDEN, OUTPUT, is_hidden, is_output, is_output_figure
from imc.data.in_order import Result, in_order
from imc.data.pixel_bits import PixelBits
from imc.errors import UserError
from imc.files.run_places import CONFIG
from imc.text import counted, printable

VERSION = 2  # of what an entry of the cache holds
SIZES = (32, 64, 96, 128, 224)
CHUNK = 32  # files per task of a thread
MAX_FILE = 1 << 30  # bytes; some decoders read a whole file before they look at it


@dataclass
class Skipped:
    """How many files were left out for each reason, with the first of their names."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, name: str, reason: str, count: int = 1) -> None:
        before, first = self.reasons.get(reason, (0, name))
        self.reasons[reason] = (before + count, first)

    def add_all(self, reasons: Mapping[str, tuple[int, str]]) -> None:
        """Count in what another one counted."""
        for reason, (count, name) in reasons.items():
            self.add(name, reason, count)

    @property
    def count(self) -> int:
        """How many files in all."""
        return sum(count for count, _ in self.reasons.values())

    @property
    def details(self) -> str:
        """The same for a folder in which nothing else was found."""
        return str(self) or "it is empty"

    def __str__(self) -> str:
        details = (
            f"{counted(count, reason)} (such as {printable(name)!r})" for reason, (count, name) in self.reasons.items()
        )
        return f"skipped {self.count:,}: {', '.join(details)}" if self.reasons else ""


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder.

    Attributes:
        images: uint8 [M, size, size, C], over a memory map; what :class:`imc.data.undecoded.Undecoded` reads: int64
            [M], their numbers.
        files: [M] paths relative to the folder, in natural order.
        sizes: the size found and the one used, and how pixels of over 8 bits are shown, in words.
        skipped: what was left out.
        pixel_bits: the bits by which those pixels are shown, where there are any.
    """

    images: Tensor
    files: tuple[str, ...]
    sizes: str
    skipped: Skipped
    pixel_bits: int | None = None


Reader = Callable[[Path, Sequence[str]], FolderImages]  # the images in these sub-folders of a folder


def read_folder(
    folder: Path, image_size: int | None, pixel_bits: int | None = None, *, within: Sequence[str] = (".",)
) -> FolderImages:
    """All images under a folder, at any depth, as squares of one size.

    Links are followed, each folder once. Files whose suffix is not that of an image are not opened. Hidden and system
    entries below the folder are left out, as are the folders of runs (:mod:`imc.data.ignored`).

    Args:
        folder: where the images lie; nothing is written into it.
        image_size: side in pixels; None: the largest of 32, 64, 96, 128, 224 that the median short side reaches.
        pixel_bits: see :mod:`imc.data.pixel_bits`; None: those of the largest value.
        within: the sub-folders to read.

    Raises:
        UserError: there is no image that can be read, or the folder of decoded images cannot be written.
    """
    skipped = Skipped()
    found = listing(folder, within, skipped)
    names = [name for name, _ in found]
    digest = hashlib.sha256()
    for entry in found:
        digest.update(repr(entry).encode("utf-8", "surrogateescape"))

    def build() -> tuple[tuple[int, ...], Iterator[NDArray[np.uint8]], dict[str, Any]]:
        return _build(folder, names, image_size, pixel_bits, skipped)

    variant = f"{image_size} {within} {pixel_bits}"
    images, content = cached(folder, variant, f"{VERSION} {digest.hexdigest()}", build)
    skipped.add_all(content["skipped"])
    files = tuple(content["files"])
    if not files:
        raise nothing(folder, skipped)
    kind = "grey" if images.shape[3] == 1 else "colour"
    sizes = f"found at {content['median']} pixels (median), used at {images.shape[1]}x{images.shape[2]}, {kind}"
    sizes = "; ".join(filter(None, [sizes, content["shown"]]))
    return FolderImages(images[: len(files)], files, sizes, skipped, content["pixel_bits"])


def read_pictures(
    names: Sequence[str], image_size: int | None, pixel_bits: int | None, skipped: Skipped
) -> FolderImages:
    """As :func:`read_folder`, of files by their paths and in their order, into memory.

    Args:
        names: of the files.
        image_size, pixel_bits: see :func:`read_folder`.
        skipped: takes the files that cannot be read.
    """
    own = Skipped()
    shape, batches, content = _build(Path(), names, image_size, pixel_bits, own)
    images = np.empty(shape, np.uint8)
    count = 0
    for batch in batches:
        images[count : count + len(batch)] = batch
        count += len(batch)
    skipped.add_all(content["skipped"])
    found = torch.from_numpy(images[:count])
    return FolderImages(found, tuple(content["files"]), content["shown"], skipped, content["pixel_bits"])


def decode_folder(
    folder: Path,
    size: int,
    channels: int,
    skipped: Skipped,
    converted: Converted,
    bits: PixelBits,
    interpolation: str = "bilinear",
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The images under a folder one after another, in natural order, a bounded number of them in memory.

    Args:
        folder: where the images lie; nothing is written into it.
        size: side in pixels.
        channels: 1 (grey) or 3 (red, green, blue).
        skipped: takes what is left out.
        converted: takes the kinds of the images.
        bits: what scales pixels of over 8 bits; meets their largest value.
        interpolation: how they become that size: bilinear or bicubic.

    Yields:
        The path relative to the folder, and uint8 [size, size, channels].
    """
    names = [name for name, _ in listing(folder, (".",), skipped)]
    return decode_files(folder, names, size, channels, skipped, converted, bits, interpolation)


def decode_files(
    folder: Path,
    names: Sequence[str],
    size: int,
    channels: int,
    skipped: Skipped,
    converted: Converted,
    bits: PixelBits,
    interpolation: str = "bilinear",
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """As :func:`decode_folder`, of these files in the folder."""

    def work(name: str) -> tuple[NDArray[np.uint8], Kind]:
        if os.path.getsize(folder / name) > MAX_FILE:
            raise UnreadableError("over 1 GB")
        return decode(folder / name, size, channels, bits, interpolation), read_kind(folder / name)

    for name, (image, kind) in read_in_threads(work, names, "predict", skipped):
        converted.meet(kind)
        yield name, image


def listing(folder: Path, within: Sequence[str], skipped: Skipped) -> list[tuple[str, str]]:
    """Path relative to the folder, and size and times of change, of each file that may be an image, in natural order.

    Raises:
        UserError: the folder is that of a run.
    """
    if is_output(folder, [CONFIG]):
        raise refusal(folder, "it is the folder of a run, whose figures are no images to train on or to predict")
    found = (entry for part in within for entry in _walk(folder, part, skipped))
    return sorted(found, key=lambda entry: natural_order(entry[0]))


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name may be an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def natural_order(path: str) -> tuple[Any, ...]:
    """The sort key under which img2 comes before img10."""
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.split(os.sep)]
    return tuple(tuple(_number(piece) if i % 2 else piece for i, piece in enumerate(part)) for part in parts), path


def _number(digits: str) -> tuple[int, str]:
    """A key of the same order as the number's, however many digits it has."""
    significant = digits.lstrip("0")
    return len(significant), significant


def nothing(folder: Path, skipped: Skipped) -> Exception:
    """The refusal of a folder, or of files by their paths, without an image."""
    if folder == Path():
        return UserError(f"none of the files is an image that can be read; {skipped.details}")
    return refusal(folder, f"it holds no image that can be read; {skipped.details}")


def _walk(folder: Path, part: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Path relative to the folder, and size and times of change, of each file that may be an image."""
    visited: set[tuple[int, int]] = set()
    pending, links = [os.path.normpath(part)], list[str]()
    while pending or links:
        if not pending:  # links last and in order, so that a folder goes by its own path where a link leads to it too
            links.sort(key=natural_order, reverse=True)
            pending.append(links.pop())
        name = pending.pop()
        try:
            status = os.stat(folder / name)
            if (status.st_dev, status.st_ino) in visited:
                skipped.add(name, "folder{s} that a link leads to again")
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as found:
                entries = list(found)
        except OSError:
            skipped.add(name, "folder{s} that cannot be opened")
            continue
        names = {entry.name for entry in entries}
        if name != "." and is_output(folder / name, names):
            skipped.add(name, OUTPUT)
            continue
        for entry in entries:
            path = os.path.normpath(os.path.join(name, entry.name))
            try:
                if is_hidden(entry.name):
                    skipped.add(path, HIDDEN)
                elif is_output_figure(entry.name, names):
                    skipped.add(path, OUTPUT)
                elif entry.is_dir():
                    (links if entry.is_symlink() else pending).append(path)
                elif not entry.is_file():
                    skipped.add(path, "broken link{s} or special file{s}")
                elif has_image_suffix(entry.name):
                    status = entry.stat()
                    if status.st_size > MAX_FILE:
                        skipped.add(path, "over 1 GB")
                    else:
                        yield path, stamp(status)
                else:
                    skipped.add(path, reason_by_suffix(os.path.splitext(entry.name)[1]))
            except OSError:
                skipped.add(path, "cannot be opened")


def _build(
    folder: Path, names: Sequence[str], image_size: int | None, pixel_bits: int | None, before: Skipped
) -> tuple[tuple[int, ...], Iterator[NDArray[np.uint8]], dict[str, Any]]:
    """Shape, images and content of the cache's entry; see :func:`imc.data.cache.cached`."""
    skipped = Skipped()
    headers = dict(read_in_threads(lambda name: read_header(folder / name), names, "read sizes", skipped))
    if not headers:
        skipped.add_all(before.reasons)
        raise nothing(folder, skipped)
    width = statistics.median_low(header.width for header in headers.values())
    height = statistics.median_low(header.height for header in headers.values())
    size = image_size or default_size(statistics.median_low(min(h.width, h.height) for h in headers.values()))
    channels = 1 if all(header.grey for header in headers.values()) else 3
    bits = PixelBits(pixel_bits)
    for header in headers.values():
        if header.largest is not None:
            bits.meet(header.largest)
    files: list[str] = []
    content = {
        "median": f"{width}x{height}",
        "files": files,
        "skipped": skipped.reasons,
        "shown": str(bits),
        "pixel_bits": bits.found,
    }

    def batches() -> Iterator[NDArray[np.uint8]]:
        images = read_in_threads(
            lambda name: decode(folder / name, size, channels, bits), list(headers), "decode", skipped
        )
        for name, image in images:
            files.append(printable(name))
            yield image[None]
        if not files:  # no entry is kept of nothing
            skipped.add_all(before.reasons)
            raise nothing(folder, skipped)

    return (len(headers), size, size, channels), batches(), content


def default_size(short_side: int) -> int:
    """The largest of the usual sizes that does not enlarge an image of this short side, or the smallest of them."""
    return max((size for size in SIZES if size <= short_side), default=SIZES[0])


def read_in_threads(
    work: Callable[[str], Result], names: Sequence[str], verb: str, skipped: Skipped
) -> Iterator[tuple[str, Result]]:
    """Names and results in order, those that are unreadable added to ``skipped`` instead.

    Pillow decodes without holding Python's lock, so threads suffice.
    """

    def attempt(name: str) -> Result | UnreadableError:
        try:
            return work(name)
        except UnreadableError as reason:
            return reason

    def chunk(start: int) -> list[tuple[str, Result | UnreadableError]]:
        return [(name, attempt(name)) for name in names[start : start + CHUNK] if not stopped.is_set()]

    stopped, bar = threading.Event(), progress(len(names), verb, "image")
    chunks = in_order(chunk, range(0, len(names), CHUNK), torch.get_num_threads(), stopped)
    with bar, quiet_pillow(), contextlib.closing(chunks):
        for results in chunks:
            for name, result in results:
                bar.update()
                if isinstance(result, UnreadableError):
                    skipped.add(name, str(result))
                else:
                    yield name, result


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Inside, Pillow says nothing about odd files; the note says what was skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
