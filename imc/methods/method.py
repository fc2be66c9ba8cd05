"""What the methods have in common: an encoder, the step that training calls, and what evaluation asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from imc.methods.calibration import answer_temperature
from imc.models.standardise import standardise_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from imc.methods.jury import Jury


class Step(NamedTuple):
    """What one step gives.

    Attributes:
        loss: scalar, carries the gradient.
        terms: the detached scalars that add up to ``loss``.
        scores: detached, [A, B, K]: the prototype scores of the large crops; None for a method without prototypes.
        logits: detached, [A, B, C]: the cluster logits of the large crops.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    scores: Tensor | None
    logits: Tensor


class Plan(NamedTuple):
    """What the host has decided of a step before it: the step itself asks nothing that changes from one to the next.

    Attributes:
        form: by name, what its launches depend on: steps of one form are the same launches on the same tensors.
        slots: int64 [B] on the device, where each row of the global batch goes in the method's bank; None: it has none.
    """

    form: frozenset[str] = frozenset()
    slots: Tensor | None = None


FROZEN = "prototypes frozen"  # in a plan's form


class Method(nn.Module):
    """Encoder, heads and loss of a method. Subclasses give ``forward`` and ``classify``.

    Attributes:
        encoder: ``encoder(images [V*B, C, H, W], views)`` -> [V*B, F].
        clusters: number C of clusters.
        num_prototypes: number K of prototypes; 0 for a method without.
        calibrated: whether the confidence of the answer is; that of a method on features, or that began on such.
        jury: heads that tell how sure the answer may be, for a method on features whose own do not.
        group: where set, the batch is spread over its processes.
        amp: whether the encoder runs in bfloat16 where autocast does so. The heads and losses do not.
        per_size: whether the encoder's batch normalisation takes all crops of a size as one group.
        frozen: whether the encoder is a constant: in evaluation mode and without gradient.
    """

    group: ProcessGroup | None = None
    amp = False
    per_size = False
    frozen = False
    answer_temperature: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        clusters: int,
        num_prototypes: int = 0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.jury: Jury | None = None
        self.calibrated = standardise_of(encoder) is not None
        if self.calibrated:
            self.register_buffer("answer_temperature", torch.tensor(temperature, dtype=torch.float32))
        self.clusters, self.num_prototypes = clusters, num_prototypes

    def prepare(self, labelled: Tensor) -> Plan:
        """Decide what the next step is to do, and count it as made. Its tensors are on the host.

        Args:
            labelled: bool [B] on the host: which rows of the global batch belong to the split that is clustered.
        """
        return Plan()

    def forward(self, crops: Sequence[Tensor], plan: Plan | None = None) -> Step:
        """The loss of one step.

        Args:
            crops: for each crop size [V_size, B, C, s, s]; those of the first are the large crops.
            plan: what :meth:`prepare` gave, on the device; None: a step that remembers nothing.
        """
        raise TypeError(f"{type(self).__name__} has no forward")

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cluster logits [B, C] of features [B, F]; also those of each head [H, B, C], for a method with several."""
        raise TypeError(f"{type(self).__name__} has no classify")

    def with_jury(self, step: Step, features: Tensor, views: int) -> Step:
        """A step whose loss trains the jury too, on features [V*B, F]."""
        if self.jury is None:
            return step
        loss = self.jury(features, views, self.group)
        return step._replace(loss=step.loss + loss, terms={**step.terms, "jury": loss.detach()})

    def merge(self) -> None:
        """Called after the last step, for heads that have more clusters than the answer."""

    def _calibrated(self, logits: Tensor) -> Tensor:
        """The logits of the answer, on features as sure as :meth:`calibrate` found."""
        return logits / self.answer_temperature if self.calibrated else logits

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Make the answer on features [N, F] as sure as other heads agree; see :mod:`imc.methods.calibration`."""
        features = features.to(self.answer_temperature.device)
        answer = self.classify(features)[0] * self.answer_temperature
        temperature = answer_temperature(answer.cpu(), self._others(features).cpu(), float(self.answer_temperature))
        self.answer_temperature.fill_(temperature)

    def _others(self, features: Tensor) -> Tensor:
        """The clusters int64 [H, N] of features [N, F] by heads that did not give the answer."""
        return features.new_empty(0, len(features)).long() if self.jury is None else self.jury.winners(features)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features [B, F] of images [B, channels, s, s]."""
        return self._features([images], [1])[0]

    def predict(self, images: Tensor) -> Tensor:
        """Cluster logits [B, C] of images [B, channels, s, s]."""
        return self.classify(self.features(images))[0]

    def embed(self, images: Tensor) -> Tensor:
        """The point [B, D] of each image that the representation loss sees, of length 1."""
        raise TypeError(f"{type(self).__name__} has no embed")

    def encode(self, crops: Sequence[Tensor]) -> Tensor:
        """Features float32 [V*B, F] of all crops, those of one size in one pass."""
        views = [1 if self.per_size else len(size) for size in crops]
        parts = self._features([size.flatten(0, 1) for size in crops], views)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _features(self, images: Sequence[Tensor], views: Sequence[int]) -> list[Tensor]:
        """Of images of each size; autocast rounds each weight once for all of them."""
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            torch.autocast(images[0].device.type, dtype=torch.bfloat16, enabled=self.amp),
        ):
            features = [self.encoder(*given) for given in zip(images, views, strict=True)]
        return [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in features]

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def main_parameters(self) -> list[nn.Parameter]:
        """What ``--lr`` trains."""
        own = {id(parameter) for parameter in self.classifier_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in own]

    def classifier_parameters(self) -> list[nn.Parameter]:
        """What ``--classifier-lr`` trains."""
        return []

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch, counted from 0."""

    def freeze_prototypes(self) -> None:
        """Keep the next optimiser step from changing the prototypes, where there are any."""

    def training_state(self) -> dict[str, Any]:
        """What the next step depends on beside parameters and buffers: the same in all processes."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`training_state` gave."""
