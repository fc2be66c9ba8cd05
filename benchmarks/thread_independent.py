"""What `--thread-independent` costs: its form of a step against the usual one, in turns within one process.

    python benchmarks/thread_independent.py                  # on 1 and 2 threads, about two minutes on two cores
    python benchmarks/thread_independent.py --threads 1 8 32 --steps 40

Per case and number of threads the ratio of the medians, and the share f of the processor time of a step that goes into
the convolutions' gradients of the weight, the only part that stays on one thread: the price on T is at most
1 + f (T - 1). Other programs on the machine distort the ratio, and f hardly.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from imc.config import Config
from imc.data import Dataset, Images, load
from imc.machine.arithmetic import processor
from imc.methods import build_model
from imc.models import convolution
from imc.train import plan
from imc.training.loop import Loop
from imc.training.ranks import Ranks

WARMUP = 3


def noise() -> Dataset:
    """Images of the shape of CIFAR-10's."""
    pixels = torch.randint(0, 256, (256, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images("cifar10", pixels, torch.arange(256) % 10, tuple("0123456789"))
    return Dataset("cifar10", images, None, None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), note="")


CASES: dict[str, tuple[Callable[[], Dataset], dict[str, Any]]] = {
    "CRLC, digits": (lambda: load("digits"), {"method": "crlc"}),
    "IMC-SwAV, digits": (lambda: load("digits"), {}),
    "IMC-SwAV, ResNet-18, batch 32": (noise, {"batch_size": 32}),
}


def main() -> None:
    """Print a row for each case and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20, help="of each form")
    options = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, {options.steps} steps of each form in turns\n")
    print("| | threads | ms a step, usual | --thread-independent | ratio | share f |\n|" + "---|" * 6)
    for name, (data, given) in CASES.items():
        for threads in options.threads:
            usual, independent, share = measured(data(), Config(**given, threads=threads), options.steps)
            row = f"{usual:.1f} | {independent:.1f} | {independent / usual:.2f} | {share:.2f}"
            print(f"| {name} | {threads} | {row} |", flush=True)


def measured(data: Dataset, config: Config, steps: int) -> tuple[float, float, float]:
    """Median milliseconds of a step in the usual form and in the independent one, and the share of the latter's
    processor time that goes into gradients of the weight."""
    config = plan(config, data)
    torch.set_num_threads(config.threads)  # as train does; plan leaves torch as it was
    model = build_model(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loop = Loop(model, [data.train.images], config, Ranks())
    convolutions = [module for module in loop.model.modules() if isinstance(module, convolution.Convolution)]
    batches = (batch for _ in itertools.count() for batch in loop._rest_of_epoch())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    processor_time, spent = 0.0, list[float]()
    with timed_gradients(spent):
        for turn in range(WARMUP + steps):
            for independent in (False, True):
                for module in convolutions:
                    module.thread_independent = independent
                before = len(spent)
                batch = next(batches)
                start, processor_start = time.perf_counter(), time.process_time()
                loop.train_step(*batch)
                if turn < WARMUP:
                    del spent[before:]
                    continue
                seconds[independent].append(time.perf_counter() - start)
                processor_time += independent * (time.process_time() - processor_start)
    usual, alone = (1e3 * statistics.median(seconds[form]) for form in (False, True))
    return usual, alone, sum(spent) / processor_time


@contextmanager
def timed_gradients(spent: list[float]) -> Iterator[None]:
    """Inside, the processor time of each gradient of a weight that is computed on one thread is appended, seconds."""
    alone = convolution.one_thread

    @contextmanager
    def timed() -> Iterator[None]:
        with alone():
            start = time.process_time()
            yield
            spent.append(time.process_time() - start)

    convolution.one_thread = timed
    try:
        yield
    finally:
        convolution.one_thread = alone


if __name__ == "__main__":
    main()
