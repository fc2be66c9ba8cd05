"""The parts of a configuration about features: given, or what an encoder that is kept makes of images."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data.options import (
    ROW_VIEWS,
    AugmentationNameOptions,
    BatchOptions,
    ColumnsOptions,
    NoiseOptions,
    TrainedOptions,
    ViewOptions,
)
from imc.models.options import KeptEncoderOptions

__all__ = ["ROW_VIEWS", "ReadOptions", "RowViewOptions"]


AUGMENTED = "augmented"  # a value of --augmentation
EMBEDDED_VIEWS = 5  # an image, where --views says nothing


@dataclass(frozen=True)
class ReadOptions(TrainedOptions, KeptEncoderOptions, AugmentationNameOptions):
    """How the samples of a run are read: images, rows, or what an encoder makes of images."""

    views: int = option(
        None,
        "views",
        "--encoder with --augmentation augmented: views an image, itself and random crops of it in other colours",
        at_least=2,
    )

    @property
    def are_augmented(self) -> bool:
        """Whether the views of a sample are stored ones."""
        return self.augmentation == AUGMENTED

    @property
    def embedded_views(self) -> int | None:
        """How many views an encoder that is kept makes of each image; None: of the image alone."""
        return (self.views or EMBEDDED_VIEWS) if self.are_augmented else None


@dataclass(frozen=True)
class RowViewOptions(BatchOptions, ColumnsOptions, ViewOptions, NoiseOptions):
    """Views of samples that are rows of features."""

    neighbours: int = option(None, "views", "features: nearest rows that are views of a sample", at_least=1)
    mutual: bool = option(None, "views", "features: only neighbours that have each other")
