"""TensorBoard's event files, where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imc.errors import UserError


class EventFiles:
    """Scalars for TensorBoard, where they are wanted.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, wanted: bool) -> None:
        self.writer: Any = None
        self.new_writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.new_writer = SummaryWriter

    def write_to(self, folder: Path) -> None:
        """Write into this run's folder from now on."""
        if self.new_writer is not None:
            self.writer = self.new_writer(str(folder / "tensorboard"))

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, values: Mapping[str, float], update: int) -> None:
        """Add scalars at this number of updates."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, update)
