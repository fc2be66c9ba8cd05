"""A folder of images for each name, as torchvision's ImageFolder and Hugging Face's imagefolder read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imc.command_line.terminal import progress
from imc.data.sorting import filling, folders_of, put
from imc.handover.labelled import Labelled


def write_folders(folder: Path, images: Sequence[Labelled], *, link: bool = False, unnamed: bool = True) -> None:
    """Copy each image into the folder of its name, at the place that it has among its own.

    Args:
        folder: a new one, or an empty one.
        images: with their files.
        link: by symbolic links instead.
        unnamed: those without a name too, into a folder of their own.
    """
    folders = folders_of([image.name for image in images])
    with filling(folder), progress(len(images), "link" if link else "copy", "image") as bar:
        for image in images:
            assert image.path is not None
            if unnamed or image.name is not None:
                put(image.path, folder / folders[image.name] / _place(image), link=link)
            bar.update()


def _place(image: Labelled) -> Path:
    """Where an image lies among its own; of one that is named by a path from elsewhere its file alone."""
    assert image.path is not None
    place = Path(image.file)
    name = image.path.name
    return Path(name) if place.is_absolute() or ".." in place.parts else place.with_name(name)
