"""Images that a trained model takes in another form than their own: without their colour, or enlarged."""

from __future__ import annotations

from dataclasses import dataclass

from imc.data.decode import Kind
from imc.text import counted, inflected


@dataclass
class Converted:
    """Counts the images of a folder that are not of the kind that a run was trained on.

    Attributes:
        side, channels: of the run's images.
        images: how many there are.
        other_kind: how many are in colour where the run's are grey, or grey where they are in colour.
        small: how many have a shorter side.
    """

    side: int
    channels: int
    images: int = 0
    other_kind: int = 0
    small: int = 0

    def meet(self, kind: Kind) -> None:
        """One more image."""
        self.images += 1
        self.other_kind += kind.grey != (self.channels == 1)
        self.small += kind.short_side < self.side

    @property
    def sentences(self) -> list[str]:
        """What there is to say."""
        said = []
        if self.other_kind:
            grey = self.channels == 1
            what = (
                "in colour, and the run was trained on grey ones: their" if grey else "grey, and the run was trained on"
            )
            rest = " colour is left out" if grey else " images in colour"
            said.append(f"{self._of_all(self.other_kind)} {what}{rest}")
        if self.small:
            small = f"smaller than the {self.side} pixels a side that the run takes, and enlarged"
            said.append(f"{self._of_all(self.small)} {small}")
        return said

    def _of_all(self, count: int) -> str:
        return f"{count:,} of {counted(self.images, 'image{s}')} {inflected(count, '{is|are}')}"
