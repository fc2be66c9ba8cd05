"""Training loops that differ in one thing from `imc train`'s, to be timed against it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pillow_crops import pillow_crops
from rivals import released_losses
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from imc.config import Config
from imc.data.views import Batch
from imc.methods import build_model
from imc.methods.method import Step
from imc.training.loop import Loop
from imc.training.ranks import Ranks
from imc_kernels import draw_crop_parameters, prototype_scores

Losses = Callable[[Tensor, Tensor], Tensor]


class Sections:
    """Seconds of the parts of a step, each with the device's work done; off, it costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on = False
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class LossLoop(Loop):
    """The step of `imc train` written out, with other losses: a function of scores [V, B, K] and logits [V, B, C]."""

    def __init__(self, model: Any, images: Tensor, config: Config, losses: Losses) -> None:
        super().__init__(model, [images], config, Ranks())
        self.losses = losses
        self.sections = Sections(self.device)

    def train_step(self, batch: Batch, plan: Any) -> None:
        with self.sections("views"):
            crops = self.views(batch, self.update)
        step = self.compute(crops)
        with self.sections("metrics"):
            self.monitor.update(step, self.update)
        self.update += 1

    def compute(self, crops: list[Tensor], plan: Any = None) -> Step:
        model: Any = self.model
        views, large = sum(len(size) for size in crops), len(crops[0])
        with self.sections("encoder forward"):
            features = model.encode(crops)
        with self.sections("heads and scores"):
            model.normalize_prototypes()
            embeddings = model.projection(features).unflatten(0, (views, -1))
            scores = prototype_scores(embeddings, model.prototypes.weight, normalize_prototypes=False)
            logits = model.classifier(features.detach(), views).unflatten(0, (views, -1))
        with self.sections("losses"):
            loss = self.losses(scores, logits)
        with self.sections("backward"):
            self.optimizer.zero_grad()
            loss.backward()
        with self.sections("optimiser"):
            self.optimizer.step()
        return Step(loss, {"loss": loss.detach()}, scores.detach()[:large], logits.detach()[:large])


class PillowBatches(Dataset):
    """A batch of crops made image by image in Pillow, as a worker of a DataLoader makes it."""

    def __init__(self, images: Tensor, config: Config) -> None:
        self.images = images
        self.crops = (
            (config.large_crops, config.large_size, config.large_area),
            (config.small_crops, config.small_size, config.small_area),
        )

    def __getitem__(self, samples: Sequence[int]) -> list[Tensor]:
        indices = torch.tensor(samples)
        height, width = self.images.shape[1:3]
        seed = int(torch.randint(2**62, ()))
        made = []
        for views, size, scale in self.crops:
            drawn = draw_crop_parameters(
                seed, size, indices, views=views, scale=scale, height=height, width=width, grayscale=0.25
            )
            made.append(pillow_crops(self.images[indices], drawn, size))
        return made


def pillow_loader(images: Tensor, config: Config, workers: int) -> DataLoader:
    """Batches of crops from worker processes; the last, incomplete batch is dropped."""
    sampler = BatchSampler(RandomSampler(range(len(images))), config.batch_size, drop_last=True)
    # `sampler` with no batch size: the data set is given a whole batch's indices.
    return DataLoader(
        PillowBatches(images, config),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=config.device.startswith("cuda"),
        persistent_workers=workers > 0,
    )


class ReleasedLoop:
    """The authors' loop restated: float32, an encoder pass per view, loops over pairs of views, a look at the loss and
    at the assignments in every step, unfused Adam. Views come from Pillow in worker processes."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.model: Any = build_model(config).to(device).train()
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
        )
        self.device = device

    def step(self, crops: list[Tensor]) -> float:
        model = self.model
        model.prototypes.weight.data.copy_(normalize(model.prototypes.weight.data, dim=1))
        views = [view for size in crops for view in size.to(self.device, non_blocking=True)]
        features = [model.encoder(view) for view in views]
        scores = torch.stack([normalize(model.projection(z), dim=1) @ model.prototypes.weight.T for z in features])
        logits = torch.stack([model.classifier(z.detach()) for z in features])
        loss = released_losses(scores, logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def built(config: Config, device: torch.device) -> nn.Module:
    """The untrained model in the form in which `imc train` trains it."""
    torch.manual_seed(config.seed)
    model: Any = build_model(config).to(device)
    if config.channels_last == "on":
        model.to(memory_format=torch.channels_last)
    model.amp = config.amp == "bf16"
    return model.train()
