"""The archives that publishers offer, and fetching them: checked before anything in them is used."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from imc.errors import UserError


@dataclass(frozen=True)
class Archive:
    """A file that a publisher offers.

    Attributes:
        url: where.
        md5: of the file.
        size: in words.
        unpacks_to: the folder that it is unpacked to, below the root; None: it is read as it is.
        folder: where the file itself is put, below the root.
    """

    url: str
    md5: str
    size: str
    unpacks_to: str | None = None
    folder: str = "."

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_MNIST = "http://yann.lecun.com/exdb/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

CIFAR10 = (Archive(f"{_CIFAR}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "170 MB"),)
CIFAR100 = (Archive(f"{_CIFAR}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "169 MB"),)
STL10 = (
    Archive(
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "91f7769df0f17e558f3565bffb0c7dfb",
        "2.6 GB",
        unpacks_to="stl10_binary",
    ),
)
TINY_IMAGENET = (
    Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "248 MB",
        unpacks_to="tiny-imagenet-200",
    ),
)
IMAGENETTE = (
    Archive(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
        "e793b78cc4c9e9a4ccc0c1155377a412",
        "99 MB",
        unpacks_to="imagenette2-160",
    ),
)
MNIST = (
    Archive(f"{_MNIST}/train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "10 MB", folder="mnist"),
    Archive(f"{_MNIST}/train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", "29 kB", folder="mnist"),
    Archive(f"{_MNIST}/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", "2 MB", folder="mnist"),
    Archive(f"{_MNIST}/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", "5 kB", folder="mnist"),
)
_FOLDER = "fashion-mnist"
FASHION_MNIST = (
    Archive(f"{_FASHION}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "26 MB", folder=_FOLDER),
    Archive(f"{_FASHION}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", "30 kB", folder=_FOLDER),
    Archive(f"{_FASHION}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", "4 MB", folder=_FOLDER),
    Archive(f"{_FASHION}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", "5 kB", folder=_FOLDER),
)


def fetch(archive: Archive, root: Path) -> None:
    """Put an archive below ``root`` and unpack it. If it is there already and whole, nothing is fetched.

    Raises:
        UserError: it cannot be fetched, is not what was published, or cannot be written.
    """
    import pooch  # here, because nothing else needs what it imports
    import requests

    folder = root / archive.folder
    pooch.get_logger().setLevel("WARNING")
    partial = f"{archive.name}.unpacking"
    unpack = pooch.Unzip if archive.name.endswith(".zip") else pooch.Untar
    try:
        shutil.rmtree(folder / partial, ignore_errors=True)
        pooch.retrieve(
            archive.url,
            known_hash=f"md5:{archive.md5}",
            fname=archive.name,
            path=folder,
            progressbar=True,
            processor=unpack(extract_dir=partial) if archive.unpacks_to else None,
        )
        if archive.unpacks_to:
            os.replace(folder / partial / archive.unpacks_to, folder / archive.unpacks_to)
            shutil.rmtree(folder / partial)
    except requests.RequestException as error:
        raise UserError(
            f"--download cannot fetch {archive.url} ({type(error).__name__}); without a network, put {archive.name} "
            f"from elsewhere into {folder} and repeat the command: it is then checked and used"
        ) from None
    except ValueError:
        raise UserError(
            f"--download got a {archive.name} from {archive.url} whose md5 is not {archive.md5}: it was damaged on its "
            f"way, or is no longer what was published"
        ) from None
    except OSError as error:
        raise UserError(f"--download cannot write {folder}: {error.strerror or error}") from None
