"""The parts of a configuration about images: which, and the views of them."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data import NAMES
from imc.machine.options import DeviceOptions

A_SOURCE = "data set by name, or a path: a folder of images, an .npy or an .npz"
SWITCH = ("auto", "on", "off")
VIEWS = ("affine", "crops")  # of images
ROW_VIEWS = ("neighbours", "noise", "augmented")  # of features


@dataclass(frozen=True)
class SourceOptions:
    """What the images, or the features, are called."""

    data: str = option("digits", "run", A_SOURCE, suggested=NAMES, path=True)
    features: tuple[str, ...] = option(
        None,
        "run",
        "instead of --data: .npy or .npz files of rows, one each sample; several lie side by side",
        path=True,
    )
    files: str | None = option(None, "run", "with --features: a text with the name of each row, one a line", path=True)
    labels: str | None = option(
        None,
        "run",
        "with --features: the classes of the rows, as .npy or one a line; read by the report at the end",
        path=True,
    )


@dataclass(frozen=True)
class ImageOptions:
    """The images that a model takes."""

    pixel_bits: int | None = option(
        None,
        "run",
        "bits of the values of pixels stored in 16: 2^N - 1 becomes 255; default: those of the data's largest value",
        at_least=8,
        at_most=16,
    )
    channels: int = option(None, "network", "channels of the images; found in the data", at_least=1, at_most=3)
    side: int = option(None, "network", "short side of the images, pixels; found in the data", at_least=1)


@dataclass(frozen=True)
class ColumnsOptions:
    """The rows of features that a model takes."""

    columns: tuple[int, ...] = option(None, "network", "features: columns of each file; found in the data", at_least=1)


@dataclass(frozen=True)
class SampleOptions(ColumnsOptions, ImageOptions):
    """What a model takes: images or rows."""


@dataclass(frozen=True)
class DataOptions(SourceOptions, DeviceOptions, SampleOptions):
    """How a data set is read."""

    data_root: str | None = option(
        None, "run", "folder in which named data sets lie; default: that of IMC_DATA, or ~/.cache/imc", path=True
    )
    download: bool = option(False, "run", "download a named data set that is not there")
    image_size: int | None = option(None, "run", "side to which the images of a folder are resized, pixels", at_least=4)
    labels_from_folders: bool = option(False, "run", "take the names of a folder's sub-folders as labels")


@dataclass(frozen=True)
class BankOptions:
    """Whether images beside the clustered split train the encoder alone."""

    bank: bool = option(
        None, "loss", "the classifier sees labelled-split rows only, collected to a batch", method="imc-swav"
    )


@dataclass(frozen=True)
class TrainedOptions(BankOptions, DataOptions):
    """Which images of a data set are trained on."""

    train_on: str = option(
        "train", "run", "split that is clustered; the rivals of CRLC train on both", choices=("train", "train+test")
    )


@dataclass(frozen=True)
class SeedOptions:
    """What every random number derives from."""

    seed: int = option(
        0,
        "run",
        "on CPUs of one kind, with as many --threads, two runs with one seed are bitwise equal",
        at_least=0,
        below=2**32,
    )


@dataclass(frozen=True)
class LayoutOptions:
    """How images and weights lie in memory."""

    channels_last: str = option("auto", "speed", "memory order of images and weights; auto: on", choices=SWITCH)


@dataclass(frozen=True)
class BatchOptions:
    """Batches, and where their images come from."""

    batch_size: int = option(
        None, "training", "images per update, over all ranks; the incomplete last batch is dropped", at_least=2
    )
    device_data: str = option(
        "auto",
        "speed",
        "keep the data set on the device; auto: where it takes under half the free memory",
        choices=SWITCH,
    )


@dataclass(frozen=True)
class LargeCropOptions:
    """The large crops of an image."""

    large_crops: int = option(None, "views", "large crops per image: those that assign prototypes", at_least=1)
    large_size: int = option(None, "views", "side of a large crop, pixels", at_least=4, at_most=4096)
    large_area: tuple[float, float] = option(None, "views", "area of a large crop / image area", above=0)


@dataclass(frozen=True)
class AugmentationNameOptions:
    """Which views a sample has."""

    augmentation: str = option(
        None,
        "views",
        "affine: rotation, shear, gain, noise; crops: flip, resized crops, colour; of features neighbours: rows near "
        "to a sample; noise: a sample with noise; augmented: the views that imc embed --views stored",
        choices=VIEWS + ROW_VIEWS,
    )


@dataclass(frozen=True)
class InputOptions(LargeCropOptions, AugmentationNameOptions):
    """How pixels become what a model takes."""

    pixel_scale: float = option(
        None, "views", "affine: factor on the pixels 0..255; default: gives them a standard deviation of 1", above=0
    )
    mean: tuple[float, ...] = option(None, "views", "crops: mean of each channel, 0..1; default: the data set's")
    std: tuple[float, ...] = option(None, "views", "crops: the same for the deviation", above=0)


@dataclass(frozen=True)
class SampleInputOptions(ColumnsOptions, InputOptions):
    """The same where it may be rows too."""


@dataclass(frozen=True)
class NoiseOptions:
    """Noise on a view."""

    noise: float = option(
        None, "views", "affine: standard deviation of noise on the scaled pixels; features: / their size", at_least=0
    )


@dataclass(frozen=True)
class ViewOptions(InputOptions, LayoutOptions, SeedOptions):
    """The views of either augmentation."""

    small_crops: int = option(None, "views", "small crops per image", at_least=0)
    small_size: int = option(None, "views", "side of a small crop, pixels", at_least=4, at_most=4096)
    small_area: tuple[float, float] = option(None, "views", "area of a small crop / image area", above=0)


@dataclass(frozen=True)
class AffineOptions(ViewOptions, NoiseOptions):
    """Views for small images of signs."""

    rotation: float = option(None, "views", "affine: rotation up to +-this, degrees", at_least=0, at_most=180)
    shear: float = option(None, "views", "affine: shear up to +-this", at_least=0, at_most=1)
    gain: tuple[float, float] = option(None, "views", "affine: factor on the brightness", at_least=0)


@dataclass(frozen=True)
class CropOptions(ViewOptions):
    """Views for natural images."""

    flip: float = option(None, "views", "crops: probability of mirroring", at_least=0, at_most=1)
    jitter_probability: float = option(None, "views", "crops: probability of colour jitter", at_least=0, at_most=1)
    brightness: float = option(None, "views", "crops: brightness is multiplied by 1 +- this", at_least=0)
    contrast: float = option(None, "views", "crops: the same for contrast", at_least=0)
    saturation: float = option(None, "views", "crops: the same for saturation", at_least=0)
    hue: float = option(None, "views", "crops: hue is turned by up to +-this, in turns", at_least=0, at_most=0.5)
    grayscale: float = option(None, "views", "crops: probability of losing the colour", at_least=0, at_most=1)
    blur_probability: float = option(None, "views", "crops: probability of a Gaussian blur", at_least=0, at_most=1)
    blur_sigma: tuple[float, float] = option(None, "views", "crops: its standard deviation, pixels", above=0)
    normalize: bool = option(None, "views", "crops: subtract the mean and divide by the deviation of each channel")


@dataclass(frozen=True)
class AugmentationOptions(AffineOptions, CropOptions):
    """The views of the augmentation that is chosen."""
