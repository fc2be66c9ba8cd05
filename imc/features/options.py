"""The parts of a configuration about features: given, or what an encoder that is kept makes of images."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data.options import ROW_VIEWS, BatchOptions, ColumnsOptions, NoiseOptions, TrainedOptions, ViewOptions
from imc.models.options import KeptEncoderOptions

__all__ = ["ROW_VIEWS", "ReadOptions", "RowViewOptions"]


@dataclass(frozen=True)
class ReadOptions(TrainedOptions, KeptEncoderOptions):
    """How the samples of a run are read: images, rows, or what an encoder makes of images."""


@dataclass(frozen=True)
class RowViewOptions(BatchOptions, ColumnsOptions, ViewOptions, NoiseOptions):
    """Views of samples that are rows of features."""

    neighbours: int = option(None, "views", "features: nearest rows that are views of a sample", at_least=1)
    mutual: bool = option(None, "views", "features: only neighbours that have each other")
