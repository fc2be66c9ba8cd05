"""What bfloat16 gains the encoders on this processor: the steps of `imc train` and the rate of inference, in both.

    python benchmarks/encoder_precision.py                                    # some minutes on two cores
    python benchmarks/encoder_precision.py --data cifar10 --batch 64 --rounds 5
    python benchmarks/encoder_precision.py --data cifar10 --encoder resnet50

Each data set stands for its preset: images of noise of its size, its encoder, crops, heads and losses. Both precisions
take turns in one process, step by step, so that what slows the machine slows both alike; medians. On it rests what
`--amp auto` takes (imc/training/placement.py).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imc.config import Config
from imc.data import Dataset, Images
from imc.methods import build_model
from imc.train import plan
from imc.training.loop import Loop
from imc.training.placement import place
from imc.training.ranks import Ranks

SIDES = {"digits": (8, 1), "mnist": (28, 1), "fashion-mnist": (28, 1), "cifar10": (32, 3), "stl10": (96, 3)}
PRECISIONS = ("off", "bf16")


def loop(name: str, given: dict[str, Any], batch: int, amp: str) -> Loop:
    """A preset's, on images of noise."""
    side, channels = SIDES[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, side, side, channels), dtype=torch.uint8, generator=generator)
    statistics_of_noise = ((0.5,) * channels, (0.29,) * channels)
    data = Dataset(name, Images(name, images, None, ()), None, None, *statistics_of_noise, note="")
    config = replace(plan(Config(data=name, clusters=10, batch_size=batch, amp=amp, **given), data), freeze_updates=0)
    torch.manual_seed(0)
    model = build_model(config)
    place(model, config, torch.device("cpu"), Ranks())
    return Loop(model, [images], config, Ranks())


def crops_of(loop: Loop) -> list[Tensor]:
    """Those of the first step."""
    batch, _ = next(loop._rest_of_epoch())
    return loop.views(batch, 0)


def seconds(loop: Loop, crops: list[Tensor]) -> tuple[float, float]:
    """Of a training step on these crops, and of the clusters of its first view."""
    start = time.perf_counter()
    loop.compute(crops)
    middle = time.perf_counter()
    loop.model.eval()
    with torch.inference_mode():
        loop.model.predict(crops[0][0])
    end = time.perf_counter()
    loop.model.train()
    return middle - start, end - middle


def main() -> None:
    """Print a row for each preset as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SIDES, default=["digits", "fashion-mnist", "cifar10"])
    parser.add_argument("--encoder")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {options.batch}")
    print("| preset, encoder | step, float32: images/s | bfloat16 | | inference, float32: images/s | bfloat16 | |")
    print("|---|---|---|---|---|---|---|")
    for name in options.data:
        given = {} if options.encoder is None else {"encoder": options.encoder}
        made = {amp: loop(name, given, options.batch, amp) for amp in PRECISIONS}
        crops = crops_of(made["off"])
        times: dict[str, list[tuple[float, float]]] = {amp: [] for amp in PRECISIONS}
        for _ in range(1 + options.rounds):
            for amp, loop in made.items():
                times[amp].append(seconds(loop, crops))
        columns = []
        for which in range(2):
            exact, rounded = (statistics.median(t[which] for t in times[amp][1:]) for amp in PRECISIONS)
            columns += [f"{options.batch / exact:.1f}", f"{options.batch / rounded:.1f}", f"{exact / rounded:.2f} x"]
        encoder: Any = made["off"].model.encoder
        print(f"| {name}, {type(encoder).__name__} {options.encoder or ''} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
