"""One whole IMC-SwAV step of `imc train` at the settings of CIFAR-10: `pytest --benchmark-only`.

The kernels (`cpu`) against the released form, which prepares its views image by image in Pillow and loops over pairs of
views in its losses. Both run in one process, in turn.

    bench_step                the whole step on a ResNet-18 of a quarter of the width (beside the full one all else
                              vanishes on two cores), and what of it is outside the encoder's forward and backward:
                              views, heads, losses, optimiser, metrics. The heads' products are the same in both.
    bench_views_and_losses    what the two forms do differently: the views, and the losses with their gradients
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from losses import by_backend
from pillow_crops import pillow_crops
from rivals import released_losses
from torch import Tensor, nn

from imc.config import Config
from imc.data import Dataset, Images
from imc.data.views import Batch
from imc.methods import build_model
from imc.methods.method import Plan, Step
from imc.models.resnet import ResNet
from imc.train import plan
from imc.training.loop import Loop
from imc.training.ranks import Ranks
from imc_kernels import backends, prototype_scores

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
ROUNDS = 3
LOSSES = {"cpu": by_backend("cpu"), "released form": released_losses}


class TimedEncoder(nn.Module):
    """A narrow ResNet-18 that adds up the seconds of its forward passes and marks when the first gradient reaches it.

    Its features are brought to the full width, so that the heads cost what they cost beside any encoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.narrow = ResNet("resnet18", 3, stem="cifar", bn_momentum=0.1, width=16)
        self.widen = nn.Linear(self.narrow.feature_dim, 512)
        self.seconds = 0.0
        self.backward_from = 0.0

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        start = time.perf_counter()
        features = self.widen(self.narrow(images, views))
        self.seconds += time.perf_counter() - start
        features.register_hook(self._mark)
        return features

    def _mark(self, gradient: Tensor) -> None:
        # The pass over the other size comes after the first.
        self.backward_from = self.backward_from or time.perf_counter()


class TimedLoop(Loop):
    """A loop whose step ends its backward pass visibly: nothing but the optimiser follows it."""

    backward_end = 0.0

    def compute(self, crops: list[Tensor], plan: Any = None) -> Step:
        step = self.loss(crops)
        self.optimizer.zero_grad()
        step.loss.backward()
        self.backward_end = time.perf_counter()
        self.optimizer.step()
        return step

    def loss(self, crops: list[Tensor]) -> Step:
        return self.model(crops)

    def make_views(self, batch: Batch) -> list[Tensor]:
        return self.views(batch, self.update)

    def timed_step(self, batch: Batch) -> tuple[float, float]:
        """Seconds of the step, and of what is outside the encoder."""
        encoder: Any = self.model.encoder
        encoder.seconds = encoder.backward_from = 0.0
        start = time.perf_counter()
        self.train_step(batch, Plan())
        whole = time.perf_counter() - start
        return whole, whole - encoder.seconds - (self.backward_end - encoder.backward_from)


class ReleasedLoop(TimedLoop):
    """The same with the released form of augmentation and losses."""

    def train_step(self, batch: Batch, plan: Any) -> None:
        step = self.compute(self.make_views(batch))
        self.monitor.update(step, self.update)
        self.update += 1

    def make_views(self, batch: Batch) -> list[Tensor]:
        parameters = self.views.parameters(batch, self.update)  # type: ignore[attr-defined]
        sizes = (self.options.large_size, self.options.small_size)
        images = batch.images[batch.positions]
        return [pillow_crops(images, drawn, size) for drawn, size in zip(parameters, sizes, strict=True)]

    def loss(self, crops: list[Tensor]) -> Step:
        model: Any = self.model
        model.normalize_prototypes()
        features = model.encode(crops)
        embeddings = model.projection(features).unflatten(0, (6, -1))
        scores = prototype_scores(embeddings, model.prototypes.weight, normalize_prototypes=False, backend="eager")
        logits = model.classifier(features.detach(), 6).unflatten(0, (6, -1))
        loss = released_losses(scores, logits)
        return Step(loss, {"loss": loss.detach()}, scores.detach()[:2], logits.detach()[:2])


@pytest.fixture(scope="module")
def loops() -> dict[str, TimedLoop]:
    images = torch.randint(0, 256, (2048, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = Images("cifar10", images, None, ())
    data = Dataset("cifar10", train, test=None, unlabeled=None, mean=MEAN, std=STD, note="")
    config = replace(plan(Config(data="cifar10", clusters=10), data), freeze_updates=0)
    made: dict[str, TimedLoop] = {}
    for name, kind in (("cpu", TimedLoop), ("released form", ReleasedLoop)):
        torch.manual_seed(0)
        model = build_model(config)
        model.encoder = TimedEncoder()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made[name] = kind(model.train(), [images], config, Ranks())
    return made


def bench_step(benchmark, loops: dict[str, TimedLoop]) -> None:  # type: ignore[no-untyped-def]
    if "cpu" not in backends.available():
        pytest.skip("the CPU kernels are not built")
    benchmark.group = "one IMC-SwAV step, CIFAR-10 settings, ResNet-18 of width 16"
    benchmark.name = "outside the encoder, cpu"
    streams = {name: loop._rest_of_epoch() for name, loop in loops.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}

    def both() -> None:
        for name, loop in loops.items():
            times[name].append(loop.timed_step(next(streams[name])[0]))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    whole, outside = (min(values) for values in zip(*times["cpu"][1:], strict=True))
    _, released = (min(values) for values in zip(*times["released form"][1:], strict=True))
    report = {"whole": whole, "outside": outside, "share": outside / whole, "times faster outside": released / outside}
    benchmark.extra_info.update({name: round(value, 4) for name, value in report.items()})
    print(f"\n{benchmark.group}: " + ", ".join(f"{name} {value:.3g}" for name, value in report.items()))


def bench_views_and_losses(benchmark, loops: dict[str, TimedLoop]) -> None:  # type: ignore[no-untyped-def]
    if "cpu" not in backends.available():
        pytest.skip("the CPU kernels are not built")
    benchmark.group = "views and losses of an IMC-SwAV step, CIFAR-10 settings"
    benchmark.name = "cpu and released form, in turn"
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(6, 256, 1000, generator=generator) * 2 - 1).requires_grad_()
    logits = torch.randn(6, 256, 10, generator=generator).requires_grad_()
    batch = next(loops["cpu"]._rest_of_epoch())[0]
    times: dict[str, list[float]] = {name: [] for name in loops}

    def both() -> None:
        for name, loop in loops.items():
            start = time.perf_counter()
            loop.make_views(batch)
            torch.autograd.grad(LOSSES[name](scores, logits), (scores, logits))
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ours, released = (min(times[name][1:]) for name in ("cpu", "released form"))
    benchmark.extra_info.update({"cpu": round(ours, 5), "released form": round(released, 4)})
    print(f"\n{benchmark.group}: cpu {ours:.3g}, released form {released:.3g}, {released / ours:.3g} times as long")
