"""Which operators of torch give other bits on two threads than on one, at the sizes of `imc train` on the digits, of a
ResNet's 1x1 convolution on CIFAR-10 and of its last stage on images that are too small for it.

python -m torture.threads    # in tests/
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, weight, bias, training=True)


# Operator, memory order, shapes of the input and of the weight.
CASES: list[tuple[Operator, str, tuple[int, ...], tuple[int, ...]]] = [
    *((convolution, order, (256, 32, 8, 8), (32, 32, 3, 3)) for order in ("channels last", "contiguous")),
    *((convolution, order, (512, 64, 3, 3), (128, 64, 3, 3)) for order in ("channels last", "contiguous")),
    *((convolution, order, (128, 64, 28, 28), (64, 64, 1, 1)) for order in ("channels last", "contiguous")),
    *((convolution, order, (128, 256, 2, 2), (256, 256, 3, 3)) for order in ("channels last", "contiguous")),
    *((batch_norm, order, (128, 32, 8, 8), (32,)) for order in ("channels last", "contiguous")),
    *((batch_norm, order, (128, 128, 2, 2), (128,)) for order in ("channels last", "contiguous")),
    (batch_norm, "contiguous", (128, 256), (256,)),
    (functional.linear, "contiguous", (256, 512), (128, 512)),
    (functional.linear, "contiguous", (768, 256), (10, 256)),
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


if __name__ == "__main__":
    print("| operator | input | memory order | not the same bits on 1 and 2 threads |\n|---|---|---|---|")
    for case in CASES:
        one, two = results(1, *case), results(2, *case)
        other = [
            name if name == "output" else f"gradient of the {name}" for name in one if not one[name].equal(two[name])
        ]
        print(f"| {case[0].__name__} | {list(case[2])} | {case[1]} | {', '.join(other) or 'none'} |")
