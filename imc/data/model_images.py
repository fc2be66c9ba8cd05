"""Whether images are of the kind that a trained model takes, and how their pixels become those."""

from __future__ import annotations

from dataclasses import replace

from imc.command_line.terminal import warn
from imc.data import Dataset, Images
from imc.data.options import ImageOptions, SampleOptions
from imc.data.pixel_bits import MAX_BITS, PixelBits
from imc.data.resize import resized
from imc.errors import UserError
from imc.text import counted

KINDS = {1: "grey images", 3: "images in colour"}


def fit_for_model(options: SampleOptions, data: Dataset) -> Dataset:
    """The images at the size that a run's model takes; of another size they are cut square and resized, with a warning.

    Args:
        options: of the run, resolved.
        data: the images.

    Raises:
        UserError: they are in colour where the run's are grey, or the other way round.
    """
    if options.columns is not None:
        return _require_columns(sum(options.columns), data)
    if data.train.are_features:
        raise UserError(f"{data.name} holds features, and the run was trained on images")
    channels = data.train.images.shape[-1]
    if channels != options.channels:
        raise UserError(f"{data.name} has {_kind(channels)}, and the run was trained on {_kind(options.channels)}")
    height, width = data.train.images.shape[1:3]
    if min(height, width) == options.side:
        return data

    def fitting(split: Images) -> Images:
        return replace(split, images=resized(split.images, options.side))

    side = options.side
    sentence = f"{data.name} has images of {width}x{height} pixels, and the run takes {side}x{side}: they are resized"
    warn(sentence)
    return replace(
        data,
        train=fitting(data.train),
        test=None if data.test is None else fitting(data.test),
        note="; ".join(filter(None, [data.note, sentence])),
    )


def _require_columns(columns: int, data: Dataset) -> Dataset:
    if not data.train.are_features:
        raise UserError(
            f"{data.name} holds images, and the run was trained on rows of {counted(columns, 'feature{s}')}"
        )
    if data.train.images.shape[1] != columns:
        found = data.train.images.shape[1]
        raise UserError(
            f"{data.name} has rows of {counted(found, 'feature{s}')}, and the run was trained on {columns:,}"
        )
    return data


def bits_of_files(options: ImageOptions) -> PixelBits:
    """By what a run scales the pixels of over 8 bits of further files: as in training; all 16 bits if it saw none."""
    return PixelBits(options.pixel_bits or MAX_BITS)


def _kind(channels: int) -> str:
    return KINDS.get(channels, f"images of {counted(channels, 'channel{s}')}")
