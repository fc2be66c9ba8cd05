"""The published data sets: where they are looked for, how they are read, fetched and normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imc.command_line.environment import folder_of
from imc.data import download
from imc.data.cifar import CIFAR10, CIFAR20, CIFAR100, Labels, read_cifar
from imc.data.dataset import Images
from imc.data.folder_sets import read_imagenette, read_tiny_imagenet
from imc.data.folders import Reader
from imc.data.idx import read_idx_folder
from imc.data.stl10 import read_stl10
from imc.errors import UserError

VARIABLE = "IMC_DATA"
Splits = tuple[Images, Images, Images | None, str]  # train, test, unlabeled, and what else the note says
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_100: Statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class NamedSet:
    """How a published set is found and read.

    Attributes:
        places: folders and archives, below the root or one of ``parents``, the preferred first.
        marks: files of which one tells that a folder is the set.
        parents: folders that users keep the set in.
        in_root: the root itself may be the folder.
        read: from name, place and what reads folders of images to the splits.
        statistics: published mean and standard deviation of the channels.
        counts: images of the published train and test split.
        side, classes: of the images, pixels, and of their labels, as published; of folders the side at which they are
            used by default.
        archives: what its publisher offers.
    """

    places: tuple[str, ...]
    marks: tuple[str, ...]
    parents: tuple[str, ...]
    read: Callable[[str, Path, Reader], Splits]
    statistics: Statistics
    counts: tuple[int, int]
    side: int
    classes: int
    archives: tuple[download.Archive, ...]
    in_root: bool = True

    def candidates(self, root: Path) -> Iterator[Path]:
        """Where the set may lie, the preferred places first."""
        bases = [root, *(root / parent for parent in self.parents)]
        yield from (base / place for base in bases for place in self.places)
        yield from bases if self.in_root else bases[1:]

    def find(self, root: Path) -> Path | None:
        """The folder or archive of the set, or None."""
        return next((place for place in self.candidates(root) if self.is_at(place)), None)

    def is_at(self, place: Path) -> bool:
        """Whether this folder or archive is the set."""
        if place.name.endswith(".gz"):
            return place.is_file()
        return any((place / mark).exists() for mark in self.marks)


def _cifar(labels: Labels) -> Callable[[str, Path, Reader], Splits]:
    return lambda name, place, read: (*read_cifar(name, place, labels), None, "")


def _idx(class_names: tuple[str, ...]) -> Callable[[str, Path, Reader], Splits]:
    return lambda name, place, read: (*read_idx_folder(name, place, class_names), None, "")


def _cifar_100(labels: Labels, classes: int) -> NamedSet:
    return NamedSet(
        places=("cifar-100-python", "cifar-100-binary", "cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
        marks=("meta", "fine_label_names.txt"),
        parents=("cifar100", "cifar-100", "CIFAR100"),
        read=_cifar(labels),
        statistics=CIFAR_100,
        counts=(50_000, 10_000),
        side=32,
        classes=classes,
        archives=download.CIFAR100,
    )


IDX_MARKS = tuple(f"train-images{dot}idx3-ubyte{gz}" for dot in "-." for gz in ("", ".gz"))

NAMED: dict[str, NamedSet] = {
    "cifar10": NamedSet(
        places=("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
        marks=("data_batch_1", "data_batch_1.bin"),
        parents=("cifar10", "cifar-10", "CIFAR10"),
        read=_cifar(CIFAR10),
        statistics=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        counts=(50_000, 10_000),
        side=32,
        classes=10,
        archives=download.CIFAR10,
    ),
    "cifar20": _cifar_100(CIFAR20, 20),
    "cifar100": _cifar_100(CIFAR100, 100),
    "stl10": NamedSet(
        places=("stl10_binary",),
        marks=("train_X.bin",),
        parents=("stl10", "STL10"),
        read=lambda name, place, read: (*read_stl10(name, place), ""),
        statistics=((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
        counts=(5_000, 8_000),
        side=96,
        classes=10,
        archives=download.STL10,
    ),
    "tiny-imagenet": NamedSet(
        places=("tiny-imagenet-200",),
        marks=("val/val_annotations.txt",),
        parents=("tiny-imagenet",),
        read=read_tiny_imagenet,
        statistics=IMAGENET,
        counts=(100_000, 10_000),
        side=64,
        classes=200,
        archives=download.TINY_IMAGENET,
    ),
    "mnist": NamedSet(
        places=("mnist", "MNIST", "MNIST/raw"),
        marks=IDX_MARKS,
        parents=(),
        read=_idx(tuple("0123456789")),
        statistics=((0.1307,), (0.3081,)),
        counts=(60_000, 10_000),
        side=28,
        classes=10,
        archives=download.MNIST,
        in_root=False,  # the files of fashion-mnist have the same names
    ),
    "fashion-mnist": NamedSet(
        places=("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
        marks=IDX_MARKS,
        parents=(),
        read=_idx(FASHION),
        statistics=((0.2860,), (0.3530,)),
        counts=(60_000, 10_000),
        side=28,
        classes=10,
        archives=download.FASHION_MNIST,
        in_root=False,
    ),
    "imagenette": NamedSet(
        places=("imagenette2-160", "imagenette2-320", "imagenette2", "imagenette", "imagenette-96"),
        marks=("train/n01440764",),
        parents=(),
        read=read_imagenette,
        statistics=IMAGENET,
        counts=(9_469, 3_925),
        side=128,
        classes=10,
        archives=download.IMAGENETTE,
    ),
}


def data_root() -> Path:
    """Where published sets lie: the variable IMC_DATA, or ~/.cache/imc."""
    return folder_of(VARIABLE)


def locate(name: str, root: Path, fetch: bool) -> Path:
    """The folder or archive of a published set, fetched if asked for and absent.

    Raises:
        UserError: it is not there, with where it was looked for and what to do; or it cannot be fetched.
    """
    entry = NAMED[name]
    place = entry.find(root)
    if place is None and fetch:
        for archive in entry.archives:
            download.fetch(archive, root)
        place = entry.find(root)
    if place is None:
        first = entry.archives[0]
        sizes = " and ".join(f"{archive.name} ({archive.size})" for archive in entry.archives[:1])
        more = f" and {len(entry.archives) - 1} more" if len(entry.archives) > 1 else ""
        raise UserError(
            f"--data {name} is not in {root} (looked for {', '.join(entry.places)}): pass --download to fetch {sizes}"
            f"{more} from {first.url.rpartition('/')[0]}, or put it there by hand, or set {VARIABLE} to the folder "
            "that holds it"
        )
    return place


def published_names(folder: Path) -> list[str]:
    """The sets, other than folders of images, that this folder is."""
    as_images = ("tiny-imagenet", "imagenette")
    return [name for name, entry in NAMED.items() if name not in as_images and entry.is_at(folder)]
