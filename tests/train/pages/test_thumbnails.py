from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imc.data import Images
from imc.data.pixel_bits import PixelBits
from imc.pages.thumbnails import GAP, GROUND, Pictures, expected_bytes, make_sheets


def images_of(count: int, height: int, width: int, channels: int) -> Images:
    pixels = torch.randint(256, (count, height, width, channels), generator=torch.Generator().manual_seed(0))
    return Images("x", pixels.to(torch.uint8), None, ())


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (8, 20, 3), (300, 100, 3)])
def test_known_pixels_are_shown_at_most_so_large(height: int, width: int, channels: int) -> None:
    images = images_of(2, height, width, channels)
    picture = Pictures(images, None, PixelBits())(1, 50)
    scale = min(1, 50 / max(height, width))
    assert picture.shape == (round(height * scale), round(width * scale), 3)
    if scale == 1:
        assert (picture == images.images[1].numpy()).all()


def test_originals_are_shown_whole_and_upright(tmp_path: Path) -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :60] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    pictures = Pictures(images_of(1, 8, 8, 3), [tmp_path / "a.jpg"], PixelBits())
    assert pictures.longest == 120
    shown = pictures(0, 60)
    assert shown.shape == (60, 20, 3)
    assert shown[:25].mean() > 230  # the left half is above
    assert shown[35:].mean() < 25


def test_an_original_that_is_gone_is_shown_by_what_is_known(tmp_path: Path) -> None:
    images = images_of(1, 8, 8, 3)
    assert (Pictures(images, [tmp_path / "gone.jpg"], PixelBits())(0, 60) == images.images[0].numpy()).all()
    rows = Images("x", torch.randn(1, 4), None, ())
    without = Pictures(rows, [tmp_path / "gone.jpg"], PixelBits())
    assert not without
    assert (without(0, 6) == GROUND).all()


@pytest.mark.parametrize("sizes", [[5], [0, 3, 0, 450, 1], [30, 0]])
def test_sheets_are_of_one_group_and_hold_all(sizes: list[int]) -> None:
    images = images_of(sum(sizes), 8, 8, 1)
    order = np.random.default_rng(0).permutation(sum(sizes)).tolist()
    sheets = list(make_sheets(Pictures(images, None, PixelBits()), order, sizes, 8))
    ends = np.cumsum(sizes)
    place = 0
    for sheet in sheets:
        assert sheet.first == place
        assert np.searchsorted(ends, place, "right") == np.searchsorted(ends, place + sheet.count - 1, "right")
        content = Image.open(io.BytesIO(sheet.content))
        assert content.size == sheet.size(8)
        last = sheet.count - 1
        top, left = (8 + GAP) * np.array(divmod(last, sheet.columns))
        shown = np.asarray(content, np.int64)[top : top + 8, left : left + 8]
        assert np.abs(shown - images.images[order[place + last]].numpy()).mean() < 15  # JPEG, of noise
        place += sheet.count
    assert place == sum(sizes)


def test_one_sheet_is_in_memory_at_a_time() -> None:
    """The next pictures are not asked for before the sheet of the last is taken."""
    asked = []

    class Recorded(Pictures):
        def __call__(self, index: int, side: int) -> np.ndarray:
            asked.append(index)
            return super().__call__(index, side)

    sheets = make_sheets(Recorded(images_of(900, 8, 8, 1), None, PixelBits()), range(900), [900], 8)
    assert next(sheets).count == len(asked) == 400


def test_the_size_told_beforehand_is_near(tmp_path: Path) -> None:
    smooth = torch.linspace(0, 255, 160 * 160).reshape(1, 160, 160, 1)
    noise = torch.randn(20, 160, 160, 3, generator=torch.Generator().manual_seed(0)) * 10
    images = Images("x", (smooth + noise).clamp(0, 255).to(torch.uint8), None, ())
    written = sum(
        len(sheet.content) for sheet in make_sheets(Pictures(images, None, PixelBits()), range(20), [20], 160)
    )
    assert 0.3 < written / expected_bytes(20, 160) < 3
