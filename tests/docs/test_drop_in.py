"""docs/drop-in.md: what stands after gives the numbers of what stands before, in float64."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

PAGE = Path(__file__).parents[2] / "docs/drop-in.md"
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.M | re.S)
PUBLIC = {
    "loss",
    "contrast",
    "clip",
    "moco",
    "supcon",
    "targets",
    "shares",
    "codes",
    "plan",
    "unbalanced",
    "experts",
    "log_plan",
}


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def inputs() -> dict[str, Any]:
    """What the page's blocks are given, by name: a number in them is a leaf."""
    given: dict[str, Any] = {
        "scores": uniform(3, 6, 5), "student": uniform(4, 6, 5), "teacher": uniform(2, 6, 5, seed=1),
        "logits": uniform(6, 3, 5), "tokens": uniform(12, 5), "z": uniform(12, 4), "z0": uniform(6, 4),
        "indexes": torch.arange(6).repeat(2),
        "z1": uniform(6, 4, seed=1), "x": uniform(9, 5), "x_tf": uniform(9, 5, seed=1), "cost": uniform(6, 5),
        "distances": uniform(40, 5), "bin_score": torch.tensor(0.3, dtype=torch.float64),
        "a": softmax(uniform(6), dim=0), "b": softmax(uniform(5), dim=0),
    }  # fmt: skip
    lists = {"high": uniform(2, 6, 5), "low": uniform(2, 6, 5, seed=1), "preds": uniform(2, 6, 5)}
    given |= {name: list(stack) for name, stack in lists.items()}
    given["queues"] = list(uniform(2, 4, 5, seed=2))
    unit = {"image": uniform(6, 4), "text": uniform(6, 4, seed=1), "features": uniform(3, 6, 4)}
    given |= {name: normalize(x, dim=-1) for name, x in unit.items()}
    given |= {"q": uniform(6, 4), "k": uniform(6, 4, seed=1), "queue": uniform(9, 4, seed=2)}
    given |= {"scale": torch.tensor(4.0, dtype=torch.float64), "labels": torch.tensor([0, 1, 0, 2, 2, 2])}
    return given | {"torch": torch, "log_softmax": log_softmax, "softmax": softmax, "cross_entropy": cross_entropy}


DIFFERENTIABLE = (
    "scores",
    "student",
    "logits",
    "z",
    "z0",
    "z1",
    "x",
    "x_tf",
    "bin_score",
    "high",
    "low",
    "preds",
    "image",
    "text",
    "scale",
    "q",
    "k",
    "features",
)


def run(code: str, given: dict[str, Any]) -> dict[str, Tensor]:
    """The results that a block names and, of those that are losses or logarithms, the gradients."""
    leaves: list[Tensor] = []
    for name in DIFFERENTIABLE:
        value = given[name]
        leaves += [x.requires_grad_() for x in (value if isinstance(value, list) else [value])]
    exec(code, given)
    results = {name: given[name] for name in PUBLIC if name in given}
    for name in ("loss", "contrast", "clip", "moco", "supcon", "log_plan"):
        if name in results:
            upstream = torch.ones_like(results[name]) * torch.linspace(
                1, 2, results[name].shape[-1] if results[name].dim() else 1
            )
            gradients = torch.autograd.grad(
                results[name], leaves, upstream.view_as(results[name]).double(), allow_unused=True
            )
            results |= {f"{name}, gradient {i}": g for i, g in enumerate(gradients) if g is not None}
    return results


def blocks(section: str) -> list[str]:
    parts = re.split(r"^(?:before|after):\n", section, flags=re.M)[1:]
    return ["\n".join(line[4:] for line in part.splitlines() if line.startswith("    ") or not line) for part in parts]


@pytest.mark.parametrize(("name", "section"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_after_is_before(name: str, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = blocks(section)
    for path, module in peers.modules().items():
        monkeypatch.setitem(sys.modules, path, module)
    expected, results = run(before, inputs()), run(after, inputs())
    assert expected
    assert expected.keys() <= results.keys()
    assert "imc_kernels" in after
    for key, value in expected.items():
        torch.testing.assert_close(
            results[key], value, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("library", ["lightly.loss", "ot"])
def test_the_restatement_is_the_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed. The gradients of lightly's losses are compared too."""
    pytest.importorskip(library, reason=f"{library} is not installed, or lacks what it imports")
    (section,) = (section for name, section in SECTIONS if name == {"lightly.loss": "lightly", "ot": "POT"}[library])
    before = blocks(section)[0]
    expected = run(before, inputs())
    for path, module in peers.modules().items():
        monkeypatch.setitem(sys.modules, path, module)
    for key, value in run(before, inputs()).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8)
