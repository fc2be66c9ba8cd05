"""How far the crops of `multi_crop` lie from those of Pillow, which rounds to 8 bits after every stage.

    python benchmarks/pillow_steps.py --data-root DIR     # DIR holds imagenette; else noise alone

Takes some minutes. Prints the table of docs/numerics.md: the differences of all values of the crops, in steps of
1/255, for each stage alone and for all but the loss of colour in turn, by the defaults of `draw_crop_parameters` but
that all of them happen. Images are photographs of 96 pixels, noise of any colour, and noise of colours as saturated as
there are. Pillow's stages are those by which torchvision transforms its images: hue is shifted by a whole number of
1/255 turns, cut towards 0; a blur is taken in floats and rounded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pillow_crops import pillow_stages
from torch import Tensor

from imc.data import load
from imc_kernels import draw_crop_parameters, multi_crop
from imc_kernels.eager.multi_crop import blur
from imc_kernels.ops.crop_parameters import Column

COUNT, SIDE, SIZE = 1000, 96, 76
HAPPENS: dict[str, Any] = {"flip": 1.0, "jitter_probability": 1.0, "grayscale": 0.0, "blur_probability": 1.0}
STAGES = {
    "crop and resize": (),
    "brightness": (Column.BRIGHTNESS,),
    "contrast": (Column.CONTRAST,),
    "saturation": (Column.SATURATION,),
    "hue": (Column.HUE,),
    "grayscale": (Column.GRAYSCALE,),
    "blur": (Column.BLUR,),
}


def noise(saturated: bool) -> Tensor:
    """uint8 [COUNT, SIDE, SIDE, 3]."""
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    if saturated:  # of each pixel one channel is 0 and another 255
        values = random.permuted(np.stack([np.zeros_like(values[..., 0]), np.full_like(values[..., 0], 255),
                                           values[..., 0]], axis=-1), axis=-1)  # fmt: skip
    return torch.from_numpy(values)


def parameters(stage: str | None) -> Tensor:
    """[1, COUNT, 13]: one stage of the whole image, or of a crop all of them."""
    drawn = draw_crop_parameters(0, 0, torch.arange(COUNT), views=1, height=SIDE, width=SIDE, **HAPPENS)
    if stage is None:
        return drawn
    alone = torch.zeros_like(drawn)
    alone[..., Column.HEIGHT] = alone[..., Column.WIDTH] = SIDE
    alone[..., Column.BRIGHTNESS : Column.HUE] = 1
    if stage == "crop and resize":
        alone[..., : Column.BRIGHTNESS] = drawn[..., : Column.BRIGHTNESS]
    for column in STAGES[stage]:
        alone[..., column] = 1 if column == Column.GRAYSCALE else drawn[..., column]
        alone[..., Column.JITTER] = float(Column.BRIGHTNESS <= column <= Column.HUE)
    return alone


def differences(images: Tensor, stage: str | None) -> Tensor:
    """Of all values, in steps of 1/255, sorted."""
    size = SIZE if stage in (None, "crop and resize") else SIDE
    rows = parameters(stage)
    crops = multi_crop(images, torch.arange(COUNT), rows, size=size, mean=[0.0] * 3, std=[1.0] * 3)[0]
    stages = (
        pillow_stages(Image.fromarray(image.numpy()), row, size)
        for image, row in zip(images, rows[0].tolist(), strict=True)
    )
    theirs = torch.from_numpy(np.stack(list(map(np.asarray, stages)))).permute(0, 3, 1, 2).float() / 255
    blurred = blur(theirs[None], rows[..., Column.BLUR])[0].mul_(255).round_().div_(255)
    theirs = torch.where(rows[0, :, Column.BLUR, None, None, None] > 0, blurred, theirs)
    return (crops - theirs).abs_().mul_(255).flatten().sort().values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder that holds imagenette")
    options = parser.parse_args()
    kinds = {"noise": noise(False), "saturated noise": noise(True)}
    if options.data_root is not None:
        photographs = load("imagenette", root=options.data_root, image_size=SIDE).train.images
        kinds = {"photographs": photographs[:: len(photographs) // COUNT][:COUNT], **kinds}
    print("| stage |" + "".join(f" {kind}: mean | 99.9% | largest |" for kind in kinds))
    print("|---|" + "---|---|---|" * len(kinds))
    for stage in (*STAGES, None):
        cells = []
        for images in kinds.values():
            found = differences(images, stage)
            cells += [f"{found.double().mean():.2f}", f"{found[int(0.999 * len(found))]:.1f}", f"{found[-1]:.1f}"]
        print(f"| {stage or 'all in turn'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
