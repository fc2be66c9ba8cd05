"""What a pretrained encoder sees in every image of a data set: features as an .npy file, to train on and to look at.

    imc embed photos --encoder efficientnet-lite0 --out photos.npy
    imc embed cifar10 --encoder timm:vit_small_patch14_dinov2 --out cifar10.npy
    imc embed photos --encoder module:mine.build --weights mine.safetensors --out photos.npy
    imc embed photos --encoder efficientnet-lite0 --views 5 --out views.npy   # [images, 5, features]

Images are decoded from their files at the encoder's size. What was embedded once is kept: after an interruption, or
with more images in the folder, the same command embeds those that are new. Beside the features lie photos.csv, with the
row, file, split, label and class of each image, and photos.json, with the encoder, the digest of its weights and what
was read. No file is overwritten unless ``--overwrite`` is given.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import show
from imc.data import NAMES
from imc.data.options import A_SOURCE
from imc.errors import RunError, UserError
from imc.features.embedding import Embedded, embed_images
from imc.files.csv import Rows
from imc.files.paths import user_path
from imc.files.whole import replacing
from imc.machine.device import DEVICES, choose_device
from imc.machine.threads import set_threads
from imc.machine.torch_state import turn
from imc.models.encoder_names import ACCEPTED, DEFAULT, LITES
from imc.models.frozen import FrozenEncoder
from imc.models.named import load_encoder
from imc.text import counted, visible

COLUMNS = ("row", "file", "split", "label", "class")
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Options:
    """The options of ``imc embed``."""

    data: str = argument("DATA", A_SOURCE, suggested=NAMES)
    out: str = option("features.npy", "features", "the .npy file; a .csv and a .json are written beside it", path=True)
    encoder: str = option(DEFAULT, "features", f"the encoder: {ACCEPTED}", suggested=tuple(LITES))
    weights: str | None = option(
        None,
        "features",
        "its weights, a .pt, .pth, .safetensors or .npz, instead of those that come with the name",
        path=True,
    )
    image_size: int | None = option(
        None, "features", "side to which images are resized, pixels; default: the encoder's", at_least=8, at_most=4096
    )
    views: int | None = option(
        None, "features", "views an image: itself, then random crops of it in other colours", at_least=2
    )
    seed: int = option(0, "features", "of the views", at_least=0, below=2**32)
    dtype: str = option("float32", "features", "of the features in the file", choices=DTYPES)
    overwrite: bool = option(False, "features", "replace the files if they exist")
    data_root: str | None = option(
        None, "data", "folder in which named data sets lie; default: that of IMC_DATA, or ~/.cache/imc", path=True
    )
    download: bool = option(False, "data", "download a named data set that is not there")
    labels_from_folders: bool = option(False, "data", "take the names of a folder's sub-folders as labels")
    pixel_bits: int | None = option(
        None,
        "data",
        "bits of the values of pixels stored in 16: 2^N - 1 becomes 255; default: those of the data's largest value",
        at_least=8,
        at_most=16,
    )
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    threads: int = option(0, "machine", "CPU threads; 0: as many as torch chooses", at_least=0)
    batch_size: int | None = option(
        None, "machine", "images at a time in each thread; default: 16, on a GPU 128", at_least=1
    )
    amp: str = option(
        "auto",
        "machine",
        "compute in bfloat16; auto: where the processor or the GPU has instructions for it",
        choices=("auto", "bf16", "off"),
    )


def main(argv: Sequence[str]) -> None:
    """The command: a data set and an encoder in, features out."""
    options = arguments.parse(Options, argv, program="imc embed", description=__doc__ or "")
    show(report(embed(options)))


@turn()
def embed(options: Options) -> dict[str, Any]:
    """Write the features of every image.

    Returns:
        ``images``, ``features``: how many; ``computed``: how many were not known from before; ``encoder``: its name and
        what it was trained on; ``note``: what was read and left out; ``files``: what was written.

    Raises:
        UserError: there is no such data set or encoder, no image, or the place of an output is taken.
        RunError: an output cannot be written.
    """
    check(options)
    targets = _targets(options)
    set_threads(options.threads)
    encoder = load_encoder(
        options.encoder,
        options.weights,
        side=options.image_size,
        device=choose_device(options.device),
        amp=options.amp,
    )
    try:
        found = embed_images(
            options.data,
            encoder,
            out=targets[".npy"],
            dtype=options.dtype,
            root=None if options.data_root is None else user_path(options.data_root),
            labels_from_folders=options.labels_from_folders,
            download=options.download,
            pixel_bits=options.pixel_bits,
            views=options.views,
            seed=options.seed,
            batch_size=options.batch_size,
        )
        _write_rows(targets[".csv"], found)
        with replacing(targets[".json"]) as file:
            json.dump(_description(options, encoder, found), file, indent=2)
            file.write("\n")
    except OSError as error:
        raise RunError(f"cannot write {error.filename or options.out}: {error.strerror}") from None
    return {
        "images": len(found.files),
        "features": encoder.feature_dim,
        "computed": found.computed,
        "encoder": "; ".join(filter(None, [encoder.name, encoder.trained_on and f"trained on {encoder.trained_on}"])),
        "note": found.note,
        "files": [str(path) for path in targets.values()],
    }


def report(result: dict[str, Any]) -> str:
    """What was embedded, as text."""
    images, computed = result["images"], result["computed"]
    known = "" if computed == images else f", of which {images - computed:,} were known"
    first = f"{counted(images, 'image{s}')}{known}: {counted(result['features'], 'feature{s}')} of {result['encoder']}"
    return "\n".join(map(visible, [first, result["note"], *result["files"]]))


def _targets(options: Options) -> dict[str, Path]:
    """Where the outputs go, each checked to be free."""
    out = user_path(options.out)
    if out.suffix != ".npy":
        raise UserError(f"--out must be a file that ends in .npy, got {options.out!r}")
    targets = {suffix: out.with_suffix(suffix) for suffix in (".npy", ".csv", ".json")}
    for path in targets.values():
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UserError(f"{path} exists already; give another --out, or pass --overwrite to replace files")
    return targets


def _write_rows(path: Path, found: Embedded) -> None:
    """Which image each row is of."""
    splits = [name for name, count in found.splits.items() for _ in range(count)]
    labels = [-1] * len(splits) if found.labels is None else found.labels.tolist()
    with replacing(path) as file:
        rows = Rows(file, COLUMNS)
        for number, (name, split, label) in enumerate(zip(found.files, splits, labels, strict=True)):
            known = label >= 0
            rows.add(number, name, split, label if known else "", found.class_names[label] if known else "")


def _description(options: Options, encoder: FrozenEncoder, found: Embedded) -> dict[str, Any]:
    return {
        **encoder.identity,
        "trained_on": encoder.trained_on,
        "weights": options.weights and os.path.abspath(user_path(options.weights)),
        "data": found.name,
        "shape": list(found.features.shape),
        "stored_as": options.dtype,
        "views_seed": options.seed if options.views else None,
        "splits": found.splits,
        "classes": list(found.class_names),
        "note": found.note,
    }


if __name__ == "__main__":
    sys.exit(cli.main(["embed", *sys.argv[1:]]))
