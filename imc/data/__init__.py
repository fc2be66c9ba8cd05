"""Data sets by name or by path; docs/data.md says what is read and how it must lie."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imc.data.dataset import Dataset, Images
from imc.errors import UserError
from imc.files.paths import meant, user_path

if TYPE_CHECKING:
    from imc.data.folders import Reader

__all__ = ["NAMES", "Dataset", "Images", "absolute", "load", "name_of"]

NAMES = ("digits", "cifar10", "cifar20", "cifar100", "stl10", "tiny-imagenet", "mnist", "fashion-mnist", "imagenette")
ARRAYS = (".npy", ".npz")
MIN_SIDE, MAX_SIDE = 4, 1024


def load(
    source: str,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    labels_from_folders: bool = False,
    download: bool = False,
    pixel_bits: int | None = None,
    read: Reader | None = None,
) -> Dataset:
    """A data set by name or by path.

    What is decoded or rearranged is kept in a cache outside the user's folders (:mod:`imc.data.cache`), so a second
    start is fast and images larger than the memory stay on the disk. Where several processes load one set, let one go
    first: the others then find its cache.

    A bare name of :data:`NAMES` is the published set, whatever lies in the working folder; every other text is a path,
    ``./digits`` and ``digits/`` too.

    Args:
        source: one of :data:`NAMES`, a folder of images, an .npy or an .npz file.
        root: where published sets lie, and where ``download`` puts them; default: the variable IMC_DATA, or
            ~/.cache/imc.
        image_size: side to which all images are resized, short side first, then the centre is cut out; default: the
            images' own size, of folders the largest of 32, 64, 96, 128, 224 that their median short side reaches.
        labels_from_folders: take the sub-folders of a user's folder as labels.
        download: fetch a published set that is not there.
        pixel_bits: of a folder or an array, the bits of the pixels that are stored in 16: 2^bits - 1 becomes 255;
            default: those of the largest value (:mod:`imc.data.pixel_bits`).
        read: what reads folders of images; default: :func:`imc.data.folders.read_folder`, which decodes them to
            ``image_size``. Of images that it leaves in their files there are no ``mean`` and ``std``.

    Returns:
        The splits that there are, images uint8 [M, H, W, C] and labels int64 [M] where known, with the channels' mean
        and deviation and a note of what was read and left out.

    Raises:
        UserError: it is not there, cannot be read, or is not what its name says; the message names the file.
    """
    if image_size is not None and not (type(image_size) is int and MIN_SIDE <= image_size <= MAX_SIDE):
        raise UserError(
            f"--image-size must be an integer of at least {MIN_SIDE} and of at most {MAX_SIDE}, got {image_size}"
        )
    if not source:
        raise UserError("--data must be the name of a data set or a path, got an empty text")
    if source in NAMES:
        if labels_from_folders:
            raise UserError(f"--labels-from-folders is for a folder of images; {source} has its own labels")
        other = _of_the_same_name(source, None if root is None else Path(root))
        try:
            data = _named(source, root, read or _decoded(image_size, None), download)
        except UserError as error:
            raise UserError("; ".join(filter(None, [str(error), other]))) from None
        data = dataclasses.replace(data, note="; ".join(filter(None, [data.note, other])))
    else:
        if download:
            raise UserError(f"--download is for published sets ({', '.join(NAMES[1:])}), not for a path")
        data = _from_path(source, read or _decoded(image_size, pixel_bits), labels_from_folders, pixel_bits)
    return data if image_size is None else _resized(data, image_size)


def name_of(source: str) -> str:
    """The name of a data set: that of a path is its last part, without the suffix of a file.

    It is never one of :data:`NAMES`, which stand for the published sets and their settings, but for those themselves.
    """
    if source in NAMES:
        return source
    path = user_path(source)
    folder = os.path.isdir(path)
    name = (path.stem if path.suffix.lower() in ARRAYS and not folder else path.resolve().name) or "images"
    return f"{name}-{'folder' if folder else 'array'}" if name in NAMES else name


def absolute(source: str) -> str:
    """The same data set from any working folder: a path that is there from the root on, anything else as it is."""
    path = user_path(source)
    return os.path.abspath(path) if source not in NAMES and os.path.exists(path) else source


def is_folder(source: str) -> bool:
    """Whether a source is a folder of one's own."""
    return source not in NAMES and os.path.isdir(user_path(source))


def _of_the_same_name(name: str, root: Path | None) -> str:
    """What to say where a bare name is also that of a folder here, which is not the place of the set."""
    from imc.data.named import NAMED, data_root

    here = Path(name)
    if not here.exists():
        return ""
    found = NAMED[name].find(data_root() if root is None else root) if name in NAMED else None
    if found is not None and found.resolve().is_relative_to(here.resolve()):
        return ""
    return f"the {'folder' if here.is_dir() else 'file'} of the same name here is read as --data ./{name}"


def _named(name: str, root: Path | None, read: Reader, download: bool) -> Dataset:
    if name == "digits":
        from imc.data.digits import load_digits

        return load_digits()
    from imc.data.named import NAMED, data_root, locate

    entry = NAMED[name]
    place = locate(name, data_root() if root is None else Path(root), download)
    train, test, unlabeled, found = entry.read(name, place, read)
    counts = [f"{len(train.images):,} train", f"{len(test.images):,} test"]
    if unlabeled is not None:
        counts.append(f"{len(unlabeled.images):,} unlabeled")
    note = f"{name}: {_join(counts)} {_kind(train, several=True)} from {place}"
    if (len(train.images), len(test.images)) != entry.counts:
        note += f", where {entry.counts[0]:,} and {entry.counts[1]:,} were published"
    mean, std = entry.statistics
    if _is_decoded(train) and len(mean) != train.images.shape[-1]:  # an archive of grey copies has one channel
        from imc.data.statistics import channel_statistics

        mean, std = channel_statistics(train.images)
    return Dataset(name, train, test, unlabeled, mean, std, "; ".join(filter(None, [note, found])))


def _from_path(source: str, read: Reader, labels_from_folders: bool, pixel_bits: int | None) -> Dataset:
    from imc.data.statistics import channel_statistics

    path = user_path(source)
    folder, is_file = os.path.isdir(path), os.path.isfile(path)  # False where it is too long, or has a null character
    name = name_of(source) if folder or is_file else ""
    if folder:
        train, test, found = _read_folder(name, path, read, labels_from_folders)
    elif is_file and path.suffix.lower() in ARRAYS:
        if labels_from_folders:
            raise UserError(f"--labels-from-folders is for a folder of images; {source} is a file")
        train, test, found = _read_arrays(name, path, pixel_bits)
    elif is_file:
        from imc.data.formats import ARCHIVES, SUFFIXES, reason_by_suffix

        advice = "; unpack it, and give the folder" if reason_by_suffix(path.suffix) == ARCHIVES else ""
        advice = "; of images, give the folder" if path.suffix.lower() in SUFFIXES else advice
        raise UserError(f"--data cannot use {source!r}: of files, .npy and .npz are accepted{advice}")
    else:
        close = meant(source) or next(iter(difflib.get_close_matches(source.rstrip("/").lower(), NAMES, n=1)), None)
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(
            f"--data {source!r} is not there; accepted are {', '.join(NAMES)}, a folder of images, .npy and .npz{hint}"
        )
    mean, std = channel_statistics(train.images) if _is_decoded(train) else ((), ())
    counts = f"{len(train.images):,}" if test is None else f"{len(train.images):,} train and {len(test.images):,} test"
    kind = _kind(train, several=test is not None or len(train.images) != 1)
    note = "; ".join(filter(None, [f"{name}: {counts} {kind} from {path}", found]))
    return Dataset(name, train, test, None, mean, std, note)


def _read_folder(name: str, path: Path, read: Reader, labels_from_folders: bool) -> tuple[Images, Images | None, str]:
    from imc.data.folder_sets import read_own_folder
    from imc.data.named import NAMED, VARIABLE, published_names

    if names := published_names(path):
        accepted = " or ".join(
            f"{known} ({VARIABLE} the folder that holds {NAMED[known].places[0]})" for known in names
        )
        raise UserError(f"--data {path} is a published set, which is read by its name: {accepted}")
    return read_own_folder(name, path, read, labels_from_folders)


def _read_arrays(name: str, path: Path, pixel_bits: int | None) -> tuple[Images, Images | None, str]:
    from imc.data.arrays import read_npy, read_npz

    return (read_npy if path.suffix.lower() == ".npy" else read_npz)(name, path, pixel_bits)


def _resized(data: Dataset, size: int) -> Dataset:
    from imc.data.resize import resized

    def split(images: Images | None) -> Images | None:
        if images is None or images.images.shape[1:3] == (size, size):
            return images
        return dataclasses.replace(images, images=resized(images.images, size))

    train = split(data.train)
    assert train is not None
    if train is data.train:
        return data
    note = f"{data.note}; resized to {size}x{size}"
    return dataclasses.replace(data, train=train, test=split(data.test), unlabeled=split(data.unlabeled), note=note)


def _decoded(image_size: int | None, pixel_bits: int | None) -> Reader:
    from imc.data.folders import read_folder

    return lambda folder, within: read_folder(folder, image_size, pixel_bits, within=within)


def _is_decoded(images: Images) -> bool:
    return images.images.dim() == 4


def _kind(images: Images, *, several: bool) -> str:
    if not _is_decoded(images):
        return f"image{'s' * several}"
    _, height, width, channels = images.images.shape
    return f"{'grey ' if channels == 1 else ''}image{'s' * several} of {width}x{height} pixels"


def _join(texts: list[str]) -> str:
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
