"""Images to features: each thread decodes images and embeds them, so that neither waits for the other.

What was embedded once is kept (:mod:`imc.features.cache`): a second call, also after an interruption, embeds the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from imc.command_line.terminal import progress
from imc.data.decode import UnreadableError, decoders
from imc.data.folders import Skipped, quiet_pillow
from imc.data.in_order import in_order
from imc.data.resize import resized
from imc.errors import UserError
from imc.features.cache import FeatureCache, digest_of
from imc.features.images import SourceImages
from imc.files.npy import GrowingArray
from imc.files.whole import replacing
from imc.machine.memory import machine_memory
from imc.machine.threads import one_thread
from imc.models.frozen import CHANNELS, FrozenEncoder
from imc.text import counted, inflected
from imc_kernels import draw_crop_parameters, multi_crop

CPU_BATCH, GPU_BATCH = 16, 128  # on a CPU the maps of larger batches leave its caches
CROP_AREA = (0.25, 1.0)  # of an augmented view / the image's
SHARE = 0.5  # of the machine's memory that features may take


@dataclass(frozen=True)
class Embedded:
    """The features of a data set.

    Attributes:
        name: of the data set.
        features: float32 [N, D], with views [N, V, D]; over a memory map where they were written to a file.
        files: [N] the path of each image relative to the folder; of an array, such as ``test[7]``.
        splits: how many rows each split has, those of the first split first.
        labels: int64 [N], below 0 for an image without one; None where there are none.
        class_names: the name of each label value.
        computed: how many rows were not in the cache.
        note: what was read, left out and enlarged.
        in_files: whether each image lay in a file of its own.
        skipped: the files that were left out.
        pixel_bits: the bits of the pixels of over 8, where there were such.
        pictures: uint8 [N, side, side, 3], where they were asked for and the images lie in files.
    """

    name: str
    features: NDArray[Any]
    files: tuple[str, ...]
    splits: dict[str, int]
    labels: Tensor | None
    class_names: tuple[str, ...]
    computed: int
    note: str
    in_files: bool
    skipped: Skipped
    pixel_bits: int | None = None
    pictures: Tensor | None = None


def embed_images(
    source: str,
    encoder: FrozenEncoder,
    *,
    out: Path | None = None,
    dtype: DTypeLike = np.float32,
    root: Path | None = None,
    labels_from_folders: bool = False,
    download: bool = False,
    pixel_bits: int | None = None,
    views: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    picture_side: int | None = None,
    files: Sequence[str] | None = None,
) -> Embedded:
    """The features of every image of a data set, of all splits.

    Images in files are decoded at the encoder's size. Files that cannot be decoded are left out. Ctrl-C loses the
    batches in flight: all others are kept, and the same call goes on from there.

    Args:
        source, root, labels_from_folders, download, pixel_bits: see :func:`imc.data.load`.
        encoder: see :func:`imc.models.named.load_encoder`.
        out: an .npy file to write the features to, as they are computed; it takes its name once it is whole.
            None: they are held in memory.
        dtype: of the features, float32 or float16.
        views: V views an image, the first of them the image as it is, the others random crops of a quarter of its area
            or more, mirrored or not, of other colours. None: the image alone.
        seed: of those; the views of an image depend on it and on the image's content alone.
        batch_size: images at a time in each thread.
        picture_side: of images in files, give small pictures of this side too, from the same reading, where they do not
            take more than an eighth of the memory.
        files: paths of images, which are embedded instead of a data set; the source is then their name.

    Raises:
        UserError: the images are not there or cannot be read, the features do not fit into memory, or the cache cannot
            be written.
    """
    images = SourceImages(
        source,
        side=encoder.side,
        interpolation=encoder.interpolation,
        root=root,
        labels_from_folders=labels_from_folders,
        download=download,
        pixel_bits=pixel_bits,
        files=files,
    )
    shape = (encoder.feature_dim,) if views is None else (views, encoder.feature_dim)
    libraries = {**decoders(), "torch": torch.__version__}
    identity = {**encoder.identity, "read_by": libraries, **({} if views is None else {"views": views, "seed": seed})}
    if out is None:
        _require_memory(len(images) * int(np.prod(shape)) * np.dtype(dtype).itemsize)
    size = batch_size or (CPU_BATCH if encoder.device.type == "cpu" else GPU_BATCH)
    skipped = images.skipped
    kept: list[int] = []
    held: list[NDArray[Any]] = []
    shown: list[NDArray[np.uint8]] = []
    computed = 0
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(FeatureCache(identity, int(np.prod(shape))))
        written = None
        if out is not None:
            written = GrowingArray(stack.enter_context(replacing(out, binary=True)), dtype)
        pictures = None
        if picture_side is not None and images.in_files and len(images) * _size(picture_side) < machine_memory() / 8:
            identity = {"pictures": picture_side, "read_by": libraries}
            pictures = stack.enter_context(FeatureCache(identity, _size(picture_side), np.uint8))
        work = _Work(images, encoder, cache, shape, seed, pictures, picture_side)
        bar = stack.enter_context(progress(len(images), "embed", "image"))
        try:
            for part in work.parts(size):
                if part.new:
                    cache.add([part.digests[i] for i in part.new], part.rows[part.new])
                if pictures is not None:
                    if part.new_pictures:
                        added = part.new_pictures
                        pictures.add([part.digests[i] for i in added], part.pictures[added])
                    shown.append(part.pictures)
                if len(part.rows):
                    rows = part.rows.reshape(-1, *shape).astype(dtype, copy=False)
                    held.append(rows) if written is None else written.append(rows)
                for row, reason in part.unreadable:
                    skipped.add(images.file(row), reason)
                kept += part.kept
                computed += len(part.new)
                bar.update(len(part.kept) + len(part.unreadable))
        except KeyboardInterrupt:
            done = f"{bar.n:,} of {counted(len(images), 'image{s}')} {inflected(bar.n, '{is|are}')} embedded and kept"
            raise KeyboardInterrupt(f"interrupted: {done}; the same command goes on from there") from None
        if not kept:
            raise UserError(f"--data {source} holds no image that can be read; {skipped}")
        if written is not None:
            written.finish()
    features = np.load(out, mmap_mode="r") if out is not None else np.concatenate(held)
    small = None
    if pictures is not None and picture_side is not None:
        small = torch.from_numpy(np.concatenate(shown)).view(-1, picture_side, picture_side, CHANNELS)
    return replace(_described(images, features, kept, computed, skipped), pictures=small)


def _size(side: int) -> int:
    """Bytes of a picture."""
    return side * side * CHANNELS


def embed_pixels(images: Tensor, encoder: FrozenEncoder) -> Tensor:
    """The features float32 [M, D] of images in memory, uint8 [M, H, W, C]; nothing is kept for another call.

    To be called inside :func:`imc.machine.torch_state.turn`, since it sets torch's number of threads.
    """
    size = CPU_BATCH if encoder.device.type == "cpu" else GPU_BATCH
    threads = torch.get_num_threads()
    with one_thread(), progress(len(images), "embed", "image") as bar:
        parts = []
        with contextlib.closing(in_order(encoder.embed_batch, images.split(size), threads, threading.Event())) as found:
            for part in found:
                parts.append(part.numpy())
                bar.update(len(part))
    return torch.from_numpy(np.concatenate(parts))  # what inference mode made could not be trained on


@dataclass
class _Part:
    """Some rows that follow one another.

    Attributes:
        kept: their numbers, without those that cannot be read.
        digests, rows: of those; float32 [n, width].
        new: which of them were computed.
        pictures: uint8 [n, bytes], where they were asked for; new_pictures: which of them were made.
        unreadable: the others, with the reason.
    """

    kept: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    rows: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    new: list[int] = field(default_factory=list)
    pictures: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    new_pictures: list[int] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)


class _Work:
    """What the threads do."""

    def __init__(
        self,
        images: SourceImages,
        encoder: FrozenEncoder,
        cache: FeatureCache,
        shape: tuple[int, ...],
        seed: int,
        pictures: FeatureCache | None,
        picture_side: int | None,
    ) -> None:
        self.images, self.encoder, self.cache = images, encoder, cache
        self.pictures, self.picture_side = pictures, picture_side
        self.views = None if len(shape) == 1 else shape[0]
        self.width = int(np.prod(shape))
        self.seed = seed
        self.stopped = threading.Event()

    def parts(self, size: int) -> Iterator[_Part]:
        """All rows, so many at a time."""
        threads = torch.get_num_threads()
        starts = range(0, len(self.images), size)
        # One thread for each network: two batches side by side wait for nothing, where the threads of one batch would
        # wait for each other at every layer, and for the decoders.
        with one_thread(), quiet_pillow():
            found = in_order(lambda start: self._part(start, size), starts, threads, self.stopped)
            with contextlib.closing(found):
                yield from found

    def _part(self, start: int, size: int) -> _Part:
        part, squares = _Part(), list[Tensor]()
        rows: list[NDArray[np.float32] | None] = []
        pictures: list[NDArray[np.uint8]] = []
        side = self.encoder.side if self.views is None else round(self.encoder.side / CROP_AREA[0] ** 0.5)
        for row in range(start, min(start + size, len(self.images))):
            if self.stopped.is_set():
                return part
            try:
                digest = digest_of(self.images.content(row))
                known = self.cache.find(digest)
                square = self.images.square(row, side) if known is None else None
                picture, made = self._picture(row, digest, square)
            except UnreadableError as reason:
                part.unreadable.append((row, str(reason)))
                continue
            if square is not None:
                squares.append(square)
                part.new.append(len(rows))
            if picture is not None:
                pictures.append(picture)
                part.new_pictures += [len(rows)] * made
            part.kept.append(row)
            part.digests.append(digest)
            rows.append(known)
        part.rows = np.empty((len(rows), self.width), np.float32)
        for number, known in enumerate(rows):
            if known is not None:
                part.rows[number] = known
        if pictures:
            part.pictures = np.stack(pictures)
        if squares:
            digests = [part.digests[number] for number in part.new]
            part.rows[part.new] = self._embed(torch.stack(squares), digests).reshape(len(squares), -1).numpy()
        return part

    def _picture(self, row: int, digest: bytes, square: Tensor | None) -> tuple[NDArray[np.uint8] | None, bool]:
        """The picture of a row, uint8 [bytes], where one is asked for; and whether it was not known from before.

        Of a square that was decoded and is large enough it is made, without another reading.
        """
        if self.pictures is None or self.picture_side is None:
            return None, False
        known = self.pictures.find(digest)
        if known is not None:
            return known, False
        if square is None or len(square) < self.picture_side:
            square = self.images.square(row, self.picture_side)
        elif len(square) > self.picture_side:
            square = resized(square[None], self.picture_side)[0]
        return square.flatten().numpy(), True

    def _embed(self, squares: Tensor, digests: Sequence[bytes]) -> Tensor:
        """float32 [B, D], or [B, V, D]."""
        plain = self.encoder.embed_batch(squares)
        if self.views is None:
            return plain
        encoder, count, size = self.encoder, len(squares), squares.shape[1]
        samples = torch.tensor([int.from_bytes(digest[:7], "big") for digest in digests])
        drawn = draw_crop_parameters(
            self.seed, 0, samples, views=self.views - 1, height=size, width=size, scale=CROP_AREA
        )
        colour = squares.expand(-1, -1, -1, len(encoder.mean)).contiguous()
        crops = multi_crop(colour, torch.arange(count), drawn, size=encoder.side, mean=encoder.mean, std=encoder.std)
        features = [encoder.embed_normalised(view) for view in crops]
        return torch.stack([plain, *features], dim=1)


def _described(
    images: SourceImages, features: NDArray[Any], kept: Sequence[int], computed: int, skipped: Skipped
) -> Embedded:
    splits = dict.fromkeys(images.splits, 0)
    for row in kept:
        splits[images.place(row)[0]] += 1
    labels = None
    if images.class_names:
        labels = torch.tensor([images.label(row) for row in kept])
    note = "; ".join(filter(None, [images.note, str(skipped)]))
    files = tuple(images.file(row) for row in kept)
    return Embedded(
        images.name,
        features,
        files,
        splits,
        labels,
        images.class_names,
        computed,
        note,
        images.in_files,
        skipped,
        images.pixel_bits,
    )


def _require_memory(size: int) -> None:
    memory = machine_memory()
    if size > SHARE * memory:
        raise UserError(
            f"the features take {size / 1e9:,.1f} GB, more than half the memory here ({memory / 1e9:,.1f} GB); "
            "imc embed writes them to a file"
        )
