"""Clustering of images as a scikit-learn estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from imc.clusterer import Clusterer, Seen, as_array
from imc.data.cache import tensor_over
from imc.features.embedding import embed_pixels
from imc.features.options import ReadOptions
from imc.machine.torch_state import turn
from imc.models.frozen import CHANNELS
from imc.runs.data import kept_encoder, side_of_files
from imc.runs.given_files import GivenFiles, given_files, read_first, read_new
from imc.text import counted

PAD = "pad"
CUT = 0.01  # of the values outside of the range of fit; beyond this share a prediction warns
NARROW = 1 / 50  # of the range of fit; values within less are taken for values of another scale


class ImageClusterer(Clusterer):
    """Clusters images without labels, by their pixels or by what a pretrained encoder sees.

    ``imc train`` with the conventions of scikit-learn.

    ``X`` is an array of images [M, H, W] or [M, H, W, C], C 1 or 3, or of flattened ones [M, features], as in
    scikit-learn's data sets; or images in files: the path of a folder, whose images at any depth are taken in natural
    order, or a sequence of the paths of pictures. Pixels of dtype uint8 are taken as they are; of other dtypes,
    ``value_range`` is mapped to 0..255 and rounded. A prediction warns of images that lie outside of that range, or in
    a small part of it.

    Args:
        n_clusters: number of clusters, at least 2.
        method: one that ``imc train --method`` accepts; None: "crlc" with a pretrained encoder, else "imc-swav".
        encoder: which is trained: "digits", "resnet18", "resnet34", "resnet50", or a module from images [B, C, H, W] to
            features [B, F]; or a pretrained one that is kept, such as "efficientnet-lite0" (see ``imc train --help``),
            whose features are clustered; None: trained, and chosen by the size of the images.
        epochs, batch_size: None: chosen by the size and number of the images.
        image_shape: (height, width) or (height, width, channels) of flattened images; of images in files whose pixels
            are clustered (side, side), at which they are read; None: a grey square, and of files as ``imc train`` reads
            a folder; "pad": any
            number of features is laid out row by row in the smallest grey square that holds them, the rest being 0.
            Views are crops and rotations: features whose places mean nothing are better clustered by other methods.
        value_range: smallest and largest value of a pixel; None: those that ``fit`` finds. Not for uint8.
        options: further fields of :class:`imc.config.Config` by name, such as ``{"prototypes": 300}``.
        random_state: an integer is what ``imc train --seed`` takes.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        verbose: whether to show the progress of training.

    Attributes:
        labels_: int64 [M], the cluster of each image of ``fit``. A cluster may be empty.
        files_: the names of those images, where they were given as files. What cannot be read of a folder is left out
            by ``fit``, with a warning; of a list, and after ``fit``, it is an error.
        n_features_in_: H * W * C.
        feature_names_in_: the names of the columns, where ``X`` is a data frame.
        image_shape_: (H, W, C).
        value_range_: what is mapped to 0..255.
        config_: the resolved :class:`imc.config.Config`.
        model_: the trained module, in evaluation mode.

    Errors:
        ValueError: what is not accepted, with what is.
        RunError: a loss became NaN.

    Example:
        >>> from imc import ImageClusterer
        >>> from sklearn.datasets import load_digits
        >>> ImageClusterer(n_clusters=10, random_state=0).fit_predict(load_digits().data)  # doctest: +SKIP
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        method: str | None = None,
        encoder: str | nn.Module | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        image_shape: tuple[int, ...] | str | None = None,
        value_range: tuple[float, float] | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.encoder = encoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.image_shape = image_shape
        self.value_range = value_range
        self.options = options
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _module(self) -> nn.Module | None:
        return self.encoder if isinstance(self.encoder, nn.Module) else None

    def _own(self) -> dict[str, Any]:
        if isinstance(self.encoder, nn.Module):
            return {"encoder": None}
        return {"encoder": self.encoder}

    def _seen(self, samples: Tensor | GivenFiles, options: ReadOptions, *, reset: bool) -> Seen:
        if isinstance(samples, GivenFiles):
            with turn():
                read = read_first(samples, options, self._side(options)) if reset else read_new(samples, options)
            if read.skipped.count and not (reset and samples.from_folder):
                raise ValueError(f"a cluster for each image needs all of them: {read.skipped}")
            if read.skipped.count:
                warnings.warn(str(read.skipped), UserWarning, stacklevel=4)
            if reset:
                side = None if read.samples.dim() == 4 else kept_encoder(options).side
                self.image_shape_ = tuple(read.samples.shape[1:]) if side is None else (side, side, CHANNELS)
                self.value_range_, self.n_features_in_ = (0.0, 255.0), math.prod(self.image_shape_)
                self.__dict__.pop("feature_names_in_", None)
            return Seen(read.samples, read.names, read.pixel_bits)
        if not options.encodes:
            return Seen(samples)
        with turn():
            return Seen(embed_pixels(samples, kept_encoder(options)))

    def _side(self, options: ReadOptions) -> int | None:
        """At which images in files are read for a new run on their pixels."""
        if self.image_shape is None:
            return side_of_files(options)
        shape = () if isinstance(self.image_shape, str) else tuple(self.image_shape)
        if options.encodes or len(shape) != 2 or shape[0] != shape[1] or not isinstance(shape[0], int):
            whose = "the encoder's" if options.encodes else "a square, (side, side)"
            raise ValueError(f"image_shape of images in files is {whose}, got {self.image_shape!r}")
        return int(shape[0])

    def _samples(self, X: ArrayLike, *, reset: bool) -> Tensor | GivenFiles:  # noqa: N803
        """uint8 [M, H, W, C] of what a user gave; with ``reset`` the shape and the range are learned from it."""
        files = given_files(X)
        if files is not None:
            return files
        shape, X = None, as_array(X)  # noqa: N806
        array = X if hasattr(X, "ndim") else np.asarray(X)
        if array.ndim > 2:
            array = np.asarray(X)
            shape = _three(array.shape[1:])
            array = array.reshape(len(array), math.prod(shape))
        flat: NDArray[Any] = validate_data(self, array, reset=reset, dtype="numeric", ensure_min_samples=1 + reset)
        if reset:
            self.image_shape_ = _flat_shape(flat.shape[1], self.image_shape) if shape is None else shape
            self.value_range_ = self._range(flat)
        elif shape not in (None, self.image_shape_):
            raise ValueError(
                f"X has images of shape {shape}, and {type(self).__name__} was fitted to {self.image_shape_}"
            )
        if not reset:
            _warn_of_range(flat, *self.value_range_)
        pixels = _pixels(flat, *self.value_range_)
        missing = math.prod(self.image_shape_) - flat.shape[1]
        if missing:
            pixels = np.pad(pixels, ((0, 0), (0, missing)))
        return tensor_over(np.ascontiguousarray(pixels)).view(-1, *self.image_shape_)

    def _range(self, flat: NDArray[Any]) -> tuple[float, float]:
        if flat.dtype == np.uint8:
            return 0.0, 255.0
        if self.value_range is None:
            return float(flat.min()), float(flat.max())
        try:
            low, high = map(float, self.value_range)
        except (TypeError, ValueError):
            low = high = math.nan
        if not low < high:
            raise ValueError(f"value_range must be two numbers, the smaller first, got {self.value_range!r}")
        return low, high


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) or (H, W, C) as (H, W, C)."""
    three = (*shape, 1) if len(shape) == 2 else tuple(shape)
    if len(three) != 3 or three[2] not in (1, 3) or min(three) < 1:
        first = len(three) == 3 and three[0] in (1, 3)
        hint = "; move the channels to the end: X.transpose(0, 2, 3, 1)" if first else ""
        raise ValueError(f"images must be [H, W] or [H, W, C] with 1 or 3 channels, got {list(shape)}{hint}")
    return three


def _flat_shape(features: int, image_shape: tuple[int, ...] | str | None) -> tuple[int, ...]:
    """The shape of images of this many features."""
    if image_shape is None or image_shape == PAD:
        side = math.isqrt(features - 1) + 1
        if image_shape is None and side**2 != features:
            raise ValueError(
                f"X has {counted(features, 'feature{s}, which {is|are}')} no square grey image: pass "
                "image_shape=(height, width) or (height, width, channels)"
            )
        return side, side, 1
    sizes: tuple[Any, ...] = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if not sizes or not all(isinstance(size, (int, np.integer)) for size in sizes):
        raise ValueError(f"image_shape must be two or three integers, or {PAD!r}, got {image_shape!r}")
    three = _three(sizes)
    if math.prod(three) != features:
        has = counted(math.prod(three), "value{s}")
        raise ValueError(f"image_shape={image_shape} has {has}, and X has {counted(features, 'feature{s}')}")
    return three


def _warn_of_range(flat: NDArray[Any], low: float, high: float) -> None:
    """Warn of images that seem to be scaled otherwise than those of fit, where nothing else would show it."""
    smallest, largest = float(flat.min()), float(flat.max())
    outside = float(np.mean((flat < low) | (flat > high)))
    fitted = f"{low:g}..{high:g}, the range of fit"
    if outside > CUT:
        warnings.warn(
            f"{outside:.0%} of the values of X lie outside of {fitted}, and are cut", UserWarning, stacklevel=5
        )
    elif flat.dtype != np.uint8 and 0 < largest - smallest < NARROW * (high - low):
        sentence = (
            f"the values of X are {smallest:g}..{largest:g}, a small part of {fitted}; are they scaled otherwise?"
        )
        warnings.warn(sentence, UserWarning, stacklevel=5)


def _pixels(flat: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """``low`` to ``high`` as 0..255, rounded; what lies outside is cut."""
    if flat.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return flat
    scale = 255 / (high - low) if high > low else 0.0
    dtype = np.float32 if flat.dtype == np.float32 else np.float64
    return np.clip(np.rint((flat.astype(dtype) - low) * scale), 0, 255).astype(np.uint8)
