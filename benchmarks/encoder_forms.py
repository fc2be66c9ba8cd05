"""What the order of pixels in memory, torch.compile and fused convolutions gain a step's encoder on this processor.

    python benchmarks/encoder_forms.py                                   # some minutes on two cores
    python benchmarks/encoder_forms.py --data cifar10 --threads 1 --rounds 3

The steps of `imc train` at each preset, in the precision that `--amp auto` takes: in channels-last order, the default;
as torch makes tensors; and with the encoder compiled (`--compile`), whose first step, which compiles, is timed by
itself. Then inference by the trained encoder as it is, and with each convolution, batch normalisation and ReLU in one
call (imc/models/fusing.py). The forms take turns in one process, step by step; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from encoder_precision import SIDES, crops_of, loop
from torch import Tensor

from imc.models.fusing import fused
from imc.training.loop import Loop

FORMS: dict[str, dict[str, Any]] = {
    "channels-last": {},
    "as torch makes tensors": {"channels_last": "off"},
    "channels-last, compiled": {"compile": True},
}


def seconds_of(step: Any, *inputs: Any) -> float:
    start = time.perf_counter()
    step(*inputs)
    return time.perf_counter() - start


def inference(trained: Loop, images: Tensor, rounds: int) -> tuple[float, float]:
    """Seconds of the encoder on these images, as it is and fused."""
    model: Any = trained.model
    model.eval()
    dtype = torch.bfloat16 if model.amp else torch.float32
    images = images.contiguous(memory_format=torch.channels_last)
    single = fused(model.encoder).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(1 + rounds):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.amp):
                plain = seconds_of(model.encoder, images)
            times.append((plain, seconds_of(single, images.to(dtype))))
    unfused, merged = zip(*times[1:], strict=True)
    return statistics.median(unfused), statistics.median(merged)


def main() -> None:
    """Print a row for each preset as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SIDES, default=["fashion-mnist", "cifar10"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, batches of {options.batch}; images/s")
    print(
        f"| preset, encoder | {' | '.join(FORMS)} | its first step | inference | fused |\n|{'---|' * (len(FORMS) + 4)}"
    )
    for name in options.data:
        made = {form: loop(name, given, options.batch, "auto") for form, given in FORMS.items()}
        crops = crops_of(made["channels-last"])
        ordered = {form: [c.contiguous() if "torch" in form else c for c in crops] for form in FORMS}
        times = {form: [seconds_of(made[form].compute, ordered[form])] for form in FORMS}
        for _ in range(options.rounds):
            for form, one in made.items():
                times[form].append(seconds_of(one.compute, ordered[form]))
        steps = [f"{options.batch / statistics.median(x[1:]):.1f}" for x in times.values()]
        first = f"{times['channels-last, compiled'][0]:.0f} s"
        rates = [f"{options.batch / s:.0f}" for s in inference(made["channels-last"], crops[0][0], options.rounds)]
        encoder: Any = made["channels-last"].model.encoder
        print(f"| {name}, {type(encoder).__name__} | {' | '.join([*steps, first, *rates])} |", flush=True)


if __name__ == "__main__":
    main()
