"""What the heads and losses of IMC-SwAV would lose by products in bfloat16 or TF32, on a CPU.

    python benchmarks/head_precision.py        a minute

A model is trained on the digits for some epochs; then each linear layer of the heads, and the scores of the
prototypes, get their operands rounded to 8 or 11 bits of mantissa, forward and backward, and sum in float32, as a GPU's
tensor cores do. Against float64 on the same features: the relative error of each loss, and of the gradients (L2) that
the heads give to the features and to their own parameters. float32 is the same without rounding.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from imc.config import Config
from imc.data import load
from imc.data.views import Batch, make_views
from imc.runs.model import load_run
from imc.train import train
from imc_kernels import backends

EPOCHS = 10
Rounding = Callable[[Tensor], Tensor]


def to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def to_tf32(x: Tensor) -> Tensor:
    """To nearest of 10 bits behind the first."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)


ROUNDINGS: dict[str, Rounding] = {"float32": lambda x: x, "TF32": to_tf32, "bfloat16": to_bfloat16}


def rounded_product(rounding: Rounding) -> Any:
    """x, w -> x w^T of rounded operands, here and in the gradients."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return rounding(x) @ rounding(weight).T

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x, weight = ctx.saved_tensors
            received = rounding(gradient)
            return received @ rounding(weight), received.flatten(0, -2).T @ rounding(x).flatten(0, -2)

    return Product.apply


@contextlib.contextmanager
def products(rounding: Rounding) -> Iterator[None]:
    product = rounded_product(rounding)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = product(x, weight)
        return result if bias is None else result + bias

    def scores(embeddings: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        return product(functional.normalize(embeddings, dim=-1), prototypes)

    with mock.patch.object(functional, "linear", linear), mock.patch("imc.methods.imc_swav.prototype_scores", scores):
        yield


def losses(model: Any, features: Tensor, views: tuple[int, ...]) -> dict[str, Tensor]:
    """Of features [V*B, F], and the gradients of their sum."""
    leaf = features.detach().requires_grad_()
    crops = [torch.empty(count, len(features) // sum(views), 0) for count in views]
    model.zero_grad()
    with mock.patch.object(type(model), "encode", return_value=leaf):
        step = model(crops)
    step.loss.backward()
    heads = [p.grad.flatten() for name, p in model.named_parameters() if not name.startswith("encoder")]
    assert leaf.grad is not None
    return {**step.terms, "gradient of the features": leaf.grad, "gradient of the heads": torch.cat(heads)}


def trained() -> tuple[Any, Tensor, tuple[int, ...]]:
    """A model, and its features of the views of a batch."""
    with tempfile.TemporaryDirectory() as folder:
        train(Config(out=folder, epochs=EPOCHS), report=False)
        run = load_run(folder)
    images, model, config = load("digits").train.images, run.model.train(), run.config
    positions = torch.arange(config.batch_size)
    batch = Batch(images, positions, positions, 0, config.batch_size)
    crops = make_views(config, torch.device("cpu"))(batch, 0)
    with torch.no_grad():
        return model, model.encode(crops), tuple(map(len, crops))


def main() -> None:
    model, features, views = trained()
    with backends.backend("eager"):
        with products(ROUNDINGS["float32"]):
            truth = losses(copy.deepcopy(model).double(), features.double(), views)
        found = {}
        for name, rounding in ROUNDINGS.items():
            with products(rounding):
                found[name] = losses(copy.deepcopy(model), features, views)
    print(f"| relative error | {' | '.join(ROUNDINGS)} |\n|{'---|' * (1 + len(ROUNDINGS))}")
    for what, exact in truth.items():
        errors = [float((made[what].double() - exact).norm() / exact.norm()) for made in found.values()]
        print(f"| {what} | {' | '.join(f'{error:.1e}' for error in errors)} |")


if __name__ == "__main__":
    main()
