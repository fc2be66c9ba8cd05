"""Train IMC-SwAV: cluster a data set without its labels.

    python -m imc.train                          # the digits, everything at its default; writes runs/digits/
    python -m imc.train --seed 1 --out my/run    # another seed, another folder
    python -m imc.train --epochs 5               # a quick look
    python -m imc.train --backend eager          # plain PyTorch instead of the fused kernels

The run folder holds

    config.json     the configuration, everything resolved
    metrics.jsonl   one line per epoch: loss terms, use of prototypes and clusters, learning rate at its end, speed
    model.pt        {"model": state dict, "config": dict}; torch.load(..., weights_only=True) reads it
    labels.csv      index, cluster, confidence and, where there are labels, label
    confusion.png   classes against clusters, where there are labels
    gallery.png     the most and least certain images of each cluster
    result.json     ACC, NMI, ARI beside those of k-means on the pixels, time, backend, seed, versions

From Python: ``train(Config(seed=1))`` returns what result.json holds.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from imc import arguments, cli
from imc.config import Config
from imc.data import Images, load
from imc.data.views import Crops, Views, unit_scale
from imc.errors import UserError
from imc.evaluation import assign
from imc.methods.imc_swav import ImcSwav
from imc.models.encoders import DigitsEncoder
from imc.monitor import EpochMonitor, collapse_warnings
from imc.report import table, write_report
from imc.run_folder import append_json_line, open_run_folder, save_model, write_json
from imc_kernels import backends


def main(argv: Sequence[str]) -> None:
    """The command: flags in, a run folder and a table out."""
    config = arguments.parse(argv, program="imc train", description=__doc__ or "")
    result = train(config)
    print(table(result, Path(result["out"])))


def train(config: Config, data: Images | None = None) -> dict[str, Any]:
    """Train, evaluate and write the run folder.

    Sets torch's number of threads and seeds its global generator.

    Args:
        config: what to run.
        data: the images to use instead of loading ``config.data``.

    Returns:
        The content of result.json, and ``out``, the run folder.

    Raises:
        UserError: a value that is not accepted.
        RunError: a loss became NaN.
    """
    config.validate()
    data = load(config.data).train if data is None else data
    config = _resolve(config, data)
    folder = open_run_folder(config)
    config = replace(config, name=config.name or folder.name, out=str(folder))
    write_json(folder / "config.json", asdict(config))

    torch.manual_seed(config.seed)
    model = build_model(config, channels=data.images.shape[-1])
    model = model.to(data.images.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with backends.backend(config.backend):
        try:
            seconds = _fit(model, data.images, config, folder / "metrics.jsonl")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {folder} holds the metrics of the epochs so far") from None
    save_model(folder / "model.pt", model.state_dict(), asdict(config))
    assert config.pixel_scale is not None
    clusters, confidence = assign(model, data.images, config.large_size, config.pixel_scale)
    result = write_report(folder, config, data, clusters, confidence, seconds)
    empty = result["clusters"] - result["clusters_used"]
    if empty:
        _warn(f"{empty} of {result['clusters']} clusters are empty; a higher --entropy-weight evens them out")
    return {**result, "out": str(folder)}


def build_model(config: Config, channels: int) -> ImcSwav:
    """The untrained model of a resolved configuration, for images of this many channels."""
    assert config.clusters is not None
    encoder = DigitsEncoder(
        channels,
        widths=config.widths,
        pool_after=config.pool_after,
        pooled_size=config.pooled_size,
        feature_dim=config.feature_dim,
        bn_momentum=config.bn_momentum,
    )
    return ImcSwav(
        encoder,
        projection_hidden=config.projection_hidden,
        embedding_dim=config.embedding_dim,
        projection_bias=config.projection_bias,
        prototypes=config.prototypes,
        clusters=config.clusters,
        classifier_widths=config.classifier_widths,
        bn_momentum=config.bn_momentum,
        sinkhorn_epsilon=config.sinkhorn_epsilon,
        sinkhorn_iterations=config.sinkhorn_iterations,
        temperature=config.temperature,
        entropy_weight=config.entropy_weight,
        logit_limit=config.logit_limit,
    )


def learning_rate(update: int, updates: int, peak: float, warmup: int) -> float:
    """The rate of the update with this number, from 0: linear to ``peak`` over the warm-up, then a half cosine to 0."""
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (updates - warmup)))


def _resolve(config: Config, data: Images) -> Config:
    """Replace what stands for "chosen by the run", and check what depends on the data."""
    count = len(data.images)
    if config.batch_size > count:
        raise UserError(f"--batch-size must be at most {count}, the images of {data.name}, got {config.batch_size}")
    if config.clusters is None and not data.class_names:
        raise UserError(f"--clusters must say how many to find: {data.name} has no labels to take the number from")
    clusters = len(data.class_names) if config.clusters is None else config.clusters
    if clusters > count:
        raise UserError(f"--clusters must be at most {count}, the images of {data.name}, got {clusters}")
    if config.threads:
        torch.set_num_threads(config.threads)
    backend = _resolve_backend(config.backend, data.images.device)
    scale = unit_scale(data.images) if config.pixel_scale is None else config.pixel_scale
    return replace(config, clusters=clusters, backend=backend, threads=torch.get_num_threads(), pixel_scale=scale)


def _resolve_backend(name: str, device: torch.device) -> str:
    try:
        chosen = backends.requested() if name == "auto" else name
    except ValueError as error:
        raise UserError(str(error)) from None
    refusals = {known: entry.refusal(device.type, torch.float32) for known, entry in backends.BACKENDS.items()}
    if chosen is None:
        return next(known for known, refusal in refusals.items() if refusal is None)
    if chosen not in refusals:
        raise UserError(f"--backend {chosen!r} is not known; accepted are auto, {', '.join(refusals)}")
    if refusals[chosen] is not None:
        raise UserError(f"--backend {chosen} cannot run here: {refusals[chosen]}")
    return chosen


def _fit(model: ImcSwav, images: Tensor, config: Config, metrics: Path) -> float:
    """Train ``model`` on uint8 images [M, H, W, C], one line of ``metrics`` per epoch; the seconds it took."""
    generator = torch.Generator(images.device).manual_seed(config.seed)
    views = _views(images, config, generator)
    classifier = {id(parameter) for parameter in model.classifier.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in classifier], "peak": config.lr},
        {"params": list(model.classifier.parameters()), "peak": config.classifier_lr},
    ]
    optimizer = torch.optim.Adam(
        groups, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=True
    )
    steps = len(images) // config.batch_size
    updates = config.epochs * steps
    assert config.clusters is not None
    start, update = time.perf_counter(), 0
    interval = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; a log file gets few
    with tqdm(total=updates, desc="train", unit="step", mininterval=interval, maxinterval=interval) as bar:
        for epoch in range(1, config.epochs + 1):
            epoch_start = time.perf_counter()
            monitor = EpochMonitor(config.prototypes, config.clusters, images.device)
            order = torch.randperm(len(images), generator=generator, device=images.device)
            for indices in order[: steps * config.batch_size].split(config.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(update, updates, group["peak"], config.warmup_updates)
                step = model(views(indices))
                optimizer.zero_grad()
                step.loss.backward()
                if update < config.warmup_updates:
                    model.drop_prototype_gradient()
                optimizer.step()
                monitor.update(step)
                update += 1
                bar.update()
            summary = monitor.summary(first_update=update - steps)
            seconds = time.perf_counter() - epoch_start
            speed = steps * config.batch_size / seconds
            timing = {"images_per_second": round(speed, 1), "seconds": round(seconds, 4)}
            append_json_line(metrics, {"epoch": epoch, **summary, "lr": optimizer.param_groups[0]["lr"], **timing})
            bar.set_postfix(loss=f"{summary['loss']:.3f}", prototypes=f"{summary['prototype_use']:.0%}", refresh=False)
            if epoch in (config.epochs // 2, config.epochs) and update > config.warmup_updates:
                for sentence in collapse_warnings(summary, config.prototypes):
                    _warn(f"epoch {epoch}: {sentence}")
    return time.perf_counter() - start


def _views(images: Tensor, config: Config, generator: torch.Generator) -> Views:
    assert config.pixel_scale is not None
    crops = [Crops(config.large_crops, config.large_size, config.large_area)]
    if config.small_crops:
        crops.append(Crops(config.small_crops, config.small_size, config.small_area))
    return Views(
        images,
        crops,
        scale=config.pixel_scale,
        rotation=config.rotation,
        shear=config.shear,
        gain=config.gain,
        noise=config.noise,
        generator=generator,
    )


def _warn(sentence: str) -> None:
    tqdm.write(f"warning: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
