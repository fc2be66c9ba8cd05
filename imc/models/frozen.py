"""An encoder that is used as it is: images of bytes to features, at the best rate of the machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imc.data.resize import resized
from imc.errors import UserError
from imc.machine.precision import multiplies_bfloat16
from imc.machine.threads import one_thread
from imc.models.fusing import fused
from imc.text import counted

CHANNELS = 3
LEAST_COSINE = 0.98  # between features of both precisions, of images of noise


@dataclass(frozen=True)
class Pretrained:
    """A network and what it wants, as it comes from a library, a package or a function of one's own.

    Attributes:
        name: as ``--encoder`` names it.
        network: from float32 [B, 3, S, S] to [B, D], in evaluation mode.
        side: S, pixels.
        interpolation: how images become that size: bilinear or bicubic, antialiased.
        mean, std: of each channel, pixels in 0..1.
        trained_on: what it has seen, in words; empty where nothing says so.
        heads: names of layers that gave its classes, which files of its weights may hold.
    """

    name: str
    network: nn.Module
    side: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_on: str = ""
    heads: tuple[str, ...] = ()


class FrozenEncoder:
    """A pretrained network made ready to embed.

    Attributes:
        name, side, interpolation, mean, std, trained_on: see :class:`Pretrained`.
        weights_sha256: of the names, shapes and numbers of its parameters and buffers.
        feature_dim: number of features D.
        answers_sha256: of its features of two images of noise, on one thread: it changes with whatever changes them, as
            the network's code, torch or the processor.
        dtype: in which it computes; features are float32.
        device: where it computes.

    Args:
        pretrained: what is embedded with.
        side: another size in pixels than the network's own.
        device: where to.
        amp: "bf16", "off", or "auto": bfloat16 where the processor or the GPU has instructions for it.

    Raises:
        UserError: the network does not take such images, or gives no vectors.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        side: int | None = None,
        device: torch.device | str = "cpu",
        amp: str = "auto",
    ) -> None:
        self.name, self.trained_on = pretrained.name, pretrained.trained_on
        self.side = pretrained.side if side is None else side
        self.interpolation, self.mean, self.std = pretrained.interpolation, pretrained.mean, pretrained.std
        self.device = torch.device(device)
        self.weights_sha256 = digest(pretrained.network)
        scale, shift = (torch.tensor(x, dtype=torch.float32) for x in (self.std, self.mean))
        self._scale, self._shift = (x.view(-1, 1, 1).to(self.device) for x in (1 / (255 * scale), -shift / scale))
        exact = pretrained.network.eval().requires_grad_(False).float().to(self.device)
        images = torch.randint(256, (2, self.side, self.side, CHANNELS), generator=torch.Generator().manual_seed(0))
        example = self._normalised(images.to(torch.uint8))
        reduced = multiplies_bfloat16(self.device) if amp == "auto" else amp == "bf16"
        with torch.inference_mode():
            expected = vectors(exact, example, self.name)
            self.feature_dim = expected.shape[1]
            self._network, self.dtype = exact, torch.float32
            for dtype in (torch.bfloat16, torch.float32) if reduced else (torch.float32,):
                ready = fused(exact).to(dtype)
                ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                if _agree(ready, example.to(dtype), expected):
                    self._network, self.dtype = ready, dtype
                    break
        with one_thread():
            answers = self.embed_normalised(example)
        self.answers_sha256 = hashlib.sha256(answers.numpy().tobytes()).hexdigest()

    def embed_batch(self, images: Tensor) -> Tensor:
        """Features float32 [B, D] of images uint8 [B, H, W, C], C 1 or 3, on the CPU.

        Images of another size than the encoder's are resized, the short side first, and their centre cut out.
        """
        if images.shape[1:3] != (self.side, self.side):
            images = resized(images, self.side, self.interpolation)
        return self.embed_normalised(self._normalised(images))

    @torch.inference_mode()
    def embed_normalised(self, images: Tensor) -> Tensor:
        """The same of float32 [B, 3, S, S], from which ``mean`` was subtracted and which were divided by ``std``."""
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        return self._network(images).float().cpu()  # type: ignore[no-any-return]

    def _normalised(self, images: Tensor) -> Tensor:
        planes = images.to(self.device).permute(0, 3, 1, 2).float()
        return planes.expand(-1, CHANNELS, -1, -1).mul(self._scale).add_(self._shift)

    @property
    def identity(self) -> dict[str, object]:
        """What decides its features, for a cache and for a run that is loaded again."""
        return {
            "encoder": self.name,
            "weights_sha256": self.weights_sha256,
            "answers_sha256": self.answers_sha256,
            "side": self.side,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def digest(network: nn.Module) -> str:
    """SHA-256 of the names, shapes and numbers of parameters and buffers, in hexadecimal digits."""
    result = hashlib.sha256()
    for name, x in sorted(network.state_dict().items()):
        result.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        result.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()


def vectors(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """The features of a network that gives one vector an image."""
    size = "x".join(map(str, images.shape[2:]))
    try:
        features = network(images)
    except Exception as error:  # the network's own code raises anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--encoder {name} must take images float32 [B, 3, S, S]; of {size} pixels it says: {reason}"
        ) from None
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(images):
        found = f"[{', '.join(map(str, features.shape))}]" if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"--encoder {name} must give one vector an image, [B, D]; of {counted(len(images), 'image{s}')} it gives "
            f"{found}"
            + ("; average the maps over their pixels" if isinstance(features, Tensor) and features.dim() == 4 else "")
        )
    if not features.isfinite().all():
        raise UserError(f"--encoder {name} gives NaN or infinity for images of {size} pixels")
    return features.float()


def _agree(network: nn.Module, images: Tensor, expected: Tensor) -> bool:
    """Whether the network gives the expected features, but for the rounding of its dtype."""
    try:
        features = network(images.contiguous(memory_format=torch.channels_last)).float()
    except Exception:  # it cannot be computed so
        return False
    same = features.shape == expected.shape
    return same and bool((torch.cosine_similarity(features, expected) > LEAST_COSINE).all())
