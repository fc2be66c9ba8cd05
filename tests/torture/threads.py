"""Which operators of torch give other bits on 2 to 16 threads than on one, here: at the sizes of `imc train` on the
digits, of a ResNet's convolutions of 1x1, 3x3 and 7x7, and of its last stage on images that are too small for it.

python -m torture.threads    # in tests/; with ONEDNN_MAX_CPU_ISA=AVX2, with MKL_CBWR=AVX2,STRICT, ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]
THREADS = (1, 2, 3, 4, 8, 16)


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, weight, bias, training=True)


Case = tuple[Operator, str, tuple[int, ...], tuple[int, ...]]
CONVOLUTIONS = (
    ((256, 1, 8, 8), (32, 1, 3, 3)),
    ((256, 32, 8, 8), (32, 32, 3, 3)),
    ((512, 64, 3, 3), (128, 64, 3, 3)),
    ((128, 64, 28, 28), (64, 64, 3, 3)),
    ((64, 128, 7, 7), (128, 128, 3, 3)),
    ((128, 64, 28, 28), (64, 64, 1, 1)),
    ((64, 3, 32, 32), (64, 3, 7, 7)),
    ((128, 256, 2, 2), (256, 256, 3, 3)),
)
# Operator, memory order, shapes of the input and of the weight.
CASES: list[Case] = [
    *((convolution, order, *shapes) for shapes in CONVOLUTIONS for order in ("channels last", "contiguous")),
    *((batch_norm, order, (128, 32, 8, 8), (32,)) for order in ("channels last", "contiguous")),
    *((batch_norm, order, (128, 128, 2, 2), (128,)) for order in ("channels last", "contiguous")),
    (batch_norm, "contiguous", (128, 256), (256,)),
    (functional.linear, "contiguous", (256, 512), (128, 512)),
    (functional.linear, "contiguous", (768, 256), (10, 256)),
    (functional.linear, "contiguous", (3072, 128), (1000, 128)),
]


def results(
    threads: int, operator: Operator, order: str, shape: tuple[int, ...], weights: tuple[int, ...]
) -> dict[str, Tensor]:
    """The output and the gradients."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(size, generator=generator) for size in (shape, weights, weights[:1])]
    if order == "channels last":
        given = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in given]
    leaves = [x.requires_grad_() for x in given]
    output = operator(*leaves)
    gradients = torch.autograd.grad(output, leaves, torch.randn(output.shape, generator=generator))
    return {"output": output.detach(), **dict(zip(("input", "weight", "bias"), gradients, strict=True))}


def differing(case: Case, threads: Sequence[int] = THREADS) -> dict[str, list[int]]:
    """Of the output and the gradients those whose bits are not always those of one thread, and where not."""
    before = torch.get_num_threads()
    try:
        one = results(1, *case)
        others = {count: results(count, *case) for count in threads if count > 1}
    finally:
        torch.set_num_threads(before)
    found = {name: [n for n, other in others.items() if not other[name].equal(one[name])] for name in one}
    return {name: counts for name, counts in found.items() if counts}


if __name__ == "__main__":
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", end="")
    print("".join(f", {name}={os.environ[name]}" for name in names if name in os.environ))
    print("| operator | input | weight | memory order | not the same bits as on 1 thread |\n|---|---|---|---|---|")
    for case in CASES:
        other = [
            f"{name if name == 'output' else f'gradient of the {name}'} ({', '.join(map(str, counts))})"
            for name, counts in differing(case).items()
        ]
        print(f"| {case[0].__name__} | {list(case[2])} | {list(case[3])} | {case[1]} | {'; '.join(other) or 'none'} |")
