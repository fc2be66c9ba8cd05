"""Seconds of a multi-crop epoch of CIFAR-10 (batch 256, 2 x 28 + 4 x 18, ResNet-18), in five forms in one run.

    python benchmarks/cifar10_epoch.py --data-root DIR             # about 6 minutes on a GPU
    python benchmarks/cifar10_epoch.py --noise                     # the same on random pixels, without the data set
    python benchmarks/cifar10_epoch.py --noise --only "imc train"  # the forms whose name contains this
    python benchmarks/cifar10_epoch.py --tiny --out DIR            # a trial of the script itself

Forms: `imc train`'s step, on a GPU one CUDA graph; without it; with eager losses; with torch.compile'd losses; with
views from Pillow in worker processes; and the authors' loop restated. Each is timed over --steps steps after a warm-up,
and an epoch is 195 of them. A profile says where the time of `imc train`'s step goes, each part with the device's work
done.
Writes cifar10_epoch.json and cifar10_epoch.md under benchmarks/results/<device>/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import RESULTS
from loops import LossLoop, ReleasedLoop, built, pillow_loader
from losses import by_backend, imc_swav_losses
from measure import machine
from rivals import batched_losses
from torch import Tensor

from imc.config import Config
from imc.data import Dataset, Images, load
from imc.machine.convolutions import fastest_convolutions
from imc.train import plan
from imc.training.cuda_graph import WARM_UP
from imc.training.loop import Loop
from imc.training.ranks import Ranks
from imc_kernels import backends

WARMUP = WARM_UP + 10  # a step is captured after WARM_UP of them: that belongs to no timed part
Step = Callable[[], Any]


def data_set(options: argparse.Namespace) -> Dataset:
    """CIFAR-10, or noise of its shape: for a trial less of it."""
    if not options.tiny and not options.noise:
        return load("cifar10", root=None if options.data_root is None else Path(options.data_root))
    count = 96 if options.tiny else 50_000
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = Images("cifar10", images, torch.arange(count) % 10, tuple("0123456789"))
    return Dataset("cifar10", train, None, None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), note="")


def configured(data: Dataset, options: argparse.Namespace) -> Config:
    """The paper's settings, resolved; a small network for a trial."""
    small = {"batch_size": 8, "encoder": "digits", "prototypes": 20, "classifier_widths": (16,)} if options.tiny else {}
    config = Config(data="cifar10", device=options.device, **small)  # type: ignore[arg-type]
    return replace(plan(config, data), freeze_updates=0, cuda_graph=False)


def steps_of(loop: Loop) -> Iterator[None]:
    """The steps of a loop, epoch after epoch."""
    while True:
        for batch, decided in loop._rest_of_epoch():
            loop.train_step(batch, decided)
            yield


def forms(data: Dataset, config: Config, device: torch.device, workers: int) -> dict[str, Callable[[], Step]]:
    """Name -> what makes the form's step. Made one after another, so that one form's memory is free for the next."""
    images = data.train.images

    def ours(**changed: Any) -> Step:
        form = replace(config, **changed)
        loop = Loop(built(form, device), [images], form, Ranks())  # type: ignore[arg-type]
        return steps_of(loop).__next__

    def with_losses(losses: Callable[[Tensor, Tensor], Tensor]) -> Step:
        return steps_of(LossLoop(built(config, device), images, config, losses)).__next__

    def loaded(step: Callable[[list[Tensor]], Any]) -> Step:
        loader = pillow_loader(images, config, workers)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        return lambda: step(next(batches))

    def with_workers() -> Step:
        loop = LossLoop(built(config, device), images, config, imc_swav_losses)
        return loaded(lambda crops: loop.compute([size.to(device, non_blocking=True) for size in crops]))

    made: dict[str, Callable[[], Step]] = {"imc train": lambda: ours(cuda_graph=None)}
    if device.type == "cuda":
        made["imc train --no-cuda-graph"] = ours
    made |= {
        "eager losses": lambda: with_losses(by_backend("eager")),
        "torch.compile'd losses": lambda: with_losses(torch.compile(batched_losses, fullgraph=True)),
        f"views from Pillow, {workers} workers": with_workers,
        f"the authors' loop, {workers} workers": lambda: loaded(ReleasedLoop(config, device).step),
    }
    return made


def seconds_a_step(step: Step, device: torch.device, steps: int, limit: float) -> tuple[float, int]:
    """Seconds of a step, over so many steps or as many as fit into ``limit`` seconds."""
    for _ in range(WARMUP):
        step()
    synchronise(device)
    start, done = time.perf_counter(), 0
    while done < steps and (done < 3 or time.perf_counter() - start < limit):
        step()
        done += 1
    synchronise(device)
    return (time.perf_counter() - start) / done, done


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile(data: Dataset, config: Config, device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds of the parts of `imc train`'s step, each waited for."""
    loop = LossLoop(built(config, device), data.train.images, config, imc_swav_losses)
    step = steps_of(loop).__next__
    for _ in range(WARMUP):
        step()
    loop.sections.on = True
    for _ in range(steps):
        step()
    return {name: 1e3 * seconds / steps for name, seconds in loop.sections.seconds.items()}


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    facts, slowest = report["machine"], max(row["seconds_per_epoch"] for row in report["forms"])
    lines = [
        f"# An epoch of CIFAR-10 on {facts['device']}",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items() if key != "device"),
        "",
        f"{report['setting']}. Made by `{report['command']}`.",
        "",
        "| form | seconds an epoch | images/s | ms a step | steps measured | times as fast as the slowest |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["forms"]:
        seconds = row["seconds_per_epoch"]
        lines.append(
            f"| {row['form']} | {seconds:.2f} | {row['images_per_second']:.0f} | {row['ms_per_step']:.2f} | "
            f"{row['steps']} | {slowest / seconds:.1f} |"
        )
    whole = sum(report["profile"].values())
    if not whole:
        return "\n".join(lines) + "\n"
    lines += ["", "Where the time of a step goes, each part waited for:", "", "| part | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {ms:.3f} | {ms / whole:.0%} |" for name, ms in report["profile"].items()]
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], out: Path) -> None:
    """After every form, so that an end at any moment leaves what was measured."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cifar10_epoch.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "cifar10_epoch.md").write_text(markdown(report), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py (default: as imc train)")
    parser.add_argument("--steps", type=int, default=195, help="steps timed of each form (default: 195, an epoch)")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds after which a form's timing ends")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of the Pillow pipelines")
    parser.add_argument("--noise", action="store_true", help="random pixels of CIFAR-10's shape in its place")
    parser.add_argument("--only", default="", help="time the forms whose name contains this, and profile nothing")
    parser.add_argument("--tiny", action="store_true", help="a small network on noise, to try the script itself")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/<device>)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    device, data = torch.device(options.device), data_set(options)
    config = configured(data, options)
    facts, epoch = machine(device), len(data.train.images) // config.batch_size
    out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    setting = (
        f"{config.encoder}, batch {config.batch_size}, {config.large_crops} x {config.large_size} + "
        f"{config.small_crops} x {config.small_size}, amp {config.amp}, "
        f"backends {', '.join(backends.serving(device.type, torch.float32))}"
        f"{', random pixels' if options.noise or options.tiny else ''}"
    )
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"machine": facts, "setting": setting, "command": shlex.join(["python", *sys.argv])}
    report |= {"steps_per_epoch": epoch, "forms": rows, "profile": {}}
    for name, make in forms(data, config, device, options.workers).items():
        if options.only not in name or (options.no_compile and "compile" in name):
            continue
        with fastest_convolutions(device):  # as a run has it
            seconds, steps = seconds_a_step(make(), device, options.steps, options.limit)
        rows.append(
            {
                "form": name,
                "seconds_per_epoch": seconds * epoch,
                "images_per_second": config.batch_size / seconds,
                "ms_per_step": seconds * 1e3,
                "steps": steps,
            }
        )
        write(report, out)
        print(f"{name}: {seconds * epoch:.2f} s an epoch ({steps} steps)", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not options.only:
        with fastest_convolutions(device):
            report["profile"] = profile(data, config, device, min(20, options.steps))
        write(report, out)
    print(f"{out}: cifar10_epoch.json cifar10_epoch.md")


if __name__ == "__main__":
    main()
