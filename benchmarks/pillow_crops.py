"""The crops of `multi_crop` as they are usually written, image by image in Pillow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from imc_kernels.eager.multi_crop import ORDERS
from imc_kernels.ops.crop_parameters import Column

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.array(hue) + np.uint8(int(turns * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def pillow_stages(image: Image.Image, row: list[float], size: int) -> Image.Image:
    """All but the blur and the normalisation."""
    top, left, height, width = (int(x) for x in row[:4])
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if row[Column.FLIP]:
        crop = ImageOps.mirror(crop)
    if row[Column.JITTER]:
        operations: tuple[Callable[[Image.Image], Image.Image], ...] = (
            lambda x: ImageEnhance.Brightness(x).enhance(row[Column.BRIGHTNESS]),
            lambda x: ImageEnhance.Contrast(x).enhance(row[Column.CONTRAST]),
            lambda x: ImageEnhance.Color(x).enhance(row[Column.SATURATION]),
            lambda x: shift_hue(x, row[Column.HUE]) if row[Column.HUE] else x,
        )
        for operation in ORDERS[int(row[Column.ORDER])]:
            crop = operations[operation](crop)
    return crop.convert("L").convert("RGB") if row[Column.GRAYSCALE] else crop


def pillow_crop(image: Image.Image, row: list[float], size: int) -> Tensor:
    crop = pillow_stages(image, row, size)
    tensor = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().float().div_(255)
    return tensor.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def pillow_crops(images: Tensor, parameters: Tensor, size: int) -> Tensor:
    sources = [Image.fromarray(image.numpy()) for image in images]
    views = [
        torch.stack([pillow_crop(image, row, size) for image, row in zip(sources, rows, strict=True)])
        for rows in parameters.tolist()
    ]
    return torch.stack(views)
