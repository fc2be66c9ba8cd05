"""The names of pretrained encoders, of which nothing is loaded here."""

from __future__ import annotations

from typing import NamedTuple


class Lite(NamedTuple):
    """One of the EfficientNet-Lites.

    Attributes:
        width, depth: see :class:`imc.models.efficientnet_lite.EfficientNetLite`.
        side: of the images it was trained on, pixels.
    """

    width: float
    depth: float
    side: int


LITES = {
    "efficientnet-lite0": Lite(1.0, 1.0, 224),
    "efficientnet-lite1": Lite(1.0, 1.1, 240),
    "efficientnet-lite2": Lite(1.1, 1.2, 260),
}
DEFAULT = "efficientnet-lite0"
PREFIXES = ("timm:", "torchvision:", "module:")
ACCEPTED = f"{', '.join(LITES)}, timm:NAME, torchvision:NAME and module:package.function"


def is_named(name: str) -> bool:
    """Whether a text is the name of a pretrained encoder."""
    return name in LITES or name.startswith(PREFIXES)
