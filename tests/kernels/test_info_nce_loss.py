"""InfoNCE: golden and limiting values, symmetries, any range of products, the memory of the CPU kernel."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import all_backends, device_of
from torch import Tensor

from imc_kernels import info_nce_loss

BACKENDS = all_backends("info_nce_loss", torch.float64)
NATIVE = [name for name in BACKENDS if name != "eager"]
EMBEDDINGS = torch.tensor(
    [[[2, 0, -1], [0, 1, 0], [-1, 0, 3], [1, 1, 0]], [[1, 0, 0], [0, 2, -1], [0, 0, 1], [0, 2, 1]]],
    dtype=torch.float64,
)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def random_embeddings(batch: int, dim: int, scale: float, seed: int) -> Tensor:
    return scale * torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(embeddings: Tensor, backend: str, **options: float) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = info_nce_loss(leaf, **options, backend=backend)  # type: ignore[arg-type]
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden_value(dtype: torch.dtype, backend: str) -> None:
    """Of the method's specification."""
    tolerance = 2e-6 if dtype == torch.float32 else 6e-9
    normalised = torch.nn.functional.normalize(EMBEDDINGS, dim=-1).to(dtype)
    assert info_nce_loss(normalised, backend=backend).item() == pytest.approx(0.73082376, abs=tolerance)
    within = info_nce_loss(EMBEDDINGS.to(dtype), normalise=True, backend=backend)
    assert within.item() == pytest.approx(0.73082376, abs=tolerance)


@each_backend
@pytest.mark.parametrize(("batch", "dim"), [(1, 1), (1, 128), (128, 1), (129, 5), (512, 3)])
def test_equal_embeddings(batch: int, dim: int, backend: str) -> None:
    """log(N - 1): at 257 rows and more the last block of columns may hold nothing but a row's own product."""
    loss, gradient = value_and_gradient(torch.full((2, batch, dim), 0.5), backend)
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), rel=1e-6, abs=1e-6)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("backend", NATIVE)
@given(
    batch=st.integers(1, 300),
    dim=st.integers(1, 150),
    temperature=st.sampled_from([0.05, 0.5, 3.0]),
    normalise=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_is_the_specification(
    backend: str, batch: int, dim: int, temperature: float, normalise: bool, seed: int
) -> None:
    """Every way in which rows, columns or the depth can be cut into blocks must be right."""
    embeddings = random_embeddings(batch, dim, 1.0, seed)
    options = {"temperature": temperature, "normalise": normalise}
    for ours, exact in zip(
        value_and_gradient(embeddings, backend, **options),
        value_and_gradient(embeddings, "eager", **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)


@each_backend
@given(batch=st.integers(1, 150), dim=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_symmetries(backend: str, batch: int, dim: int, seed: int) -> None:
    embeddings = random_embeddings(batch, dim, 0.5, seed)
    expected = info_nce_loss(embeddings, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    samples, axes = torch.randperm(batch, generator=generator), torch.randperm(dim, generator=generator)
    for variant in (embeddings[:, samples], embeddings[..., axes], embeddings.flip(0), -embeddings):
        torch.testing.assert_close(info_nce_loss(variant, backend=backend), expected, rtol=1e-11, atol=1e-11)


@each_backend
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3])
def test_products_of_any_range_in_float32(scale: float, backend: str) -> None:
    """Exponents from 100 to 1e9, of rows whose norms differ: no sum of exponentials overflows."""
    embeddings = random_embeddings(150, 20, scale, 0) * torch.linspace(0.1, 2, 150, dtype=torch.float64)[:, None]
    exact, exact_gradient = value_and_gradient(embeddings.float().double(), "eager")
    loss, gradient = value_and_gradient(embeddings.float(), backend)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    error = (gradient.double() - exact_gradient).norm() / exact_gradient.norm()
    assert error < (1e-4 if scale == 1 else 0.1)  # a product of 1e9 is known to 100 only: weights near 0.5 are noise


@each_backend
def test_zero_rows_when_normalising(backend: str) -> None:
    embeddings = random_embeddings(5, 4, 1.0, 0).float()
    embeddings[0, 2] = 0
    loss, gradient = value_and_gradient(embeddings, backend, normalise=True)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@each_backend
def test_the_gradient_of_normalised_embeddings_is_tangential(backend: str) -> None:
    embeddings = random_embeddings(40, 16, 3.0, 0)
    _, gradient = value_and_gradient(embeddings, backend, normalise=True)
    assert (gradient * embeddings).sum(dim=-1).abs().max() < 1e-12
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("backend", [name for name in all_backends("info_nce_loss") if name not in BACKENDS])
@pytest.mark.parametrize(
    ("batch", "dim", "normalise"),
    [(33, 19, True), (8, 129, True), (20, 300, False), (100, 16, False)],  # ragged; D in pieces; many tiles
)
def test_on_gpu_backends_is_the_specification(batch: int, dim: int, normalise: bool, backend: str) -> None:
    embeddings = random_embeddings(batch, dim, dim**-0.5, 3).float()
    options = {"temperature": 0.2, "normalise": normalise}
    exact, exact_gradient = value_and_gradient(embeddings.double(), "eager", **options)
    loss, gradient = value_and_gradient(embeddings.to(device_of(backend)), backend, **options)
    torch.testing.assert_close(loss.cpu().double(), exact, rtol=1e-6, atol=0)
    assert (gradient.cpu().double() - exact_gradient).norm() < 2e-6 * exact_gradient.norm()
    if normalise:
        along = (gradient.cpu() * embeddings).sum(dim=-1).norm()
        assert along < 1e-6 * gradient.norm() * embeddings.norm()


MEASURE_PEAK = """
    import sys, torch, imc_kernels

    def status(field):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field))

    embeddings = torch.nn.functional.normalize(torch.randn(2, int(sys.argv[1]), 128), dim=-1)
    embeddings.requires_grad_(sys.argv[2] == "backward")
    imc_kernels.info_nce_loss(embeddings[:, :64], backend="cpu")
    before = status("VmRSS")
    loss = imc_kernels.info_nce_loss(embeddings, backend="cpu")
    assert loss.isfinite()
    print((status("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU kernels are not built")
@pytest.mark.parametrize(("batch", "direction", "most"), [(16384, "forward", 256), (4096, "backward", 64)])
def test_memory_is_linear_in_the_batch(batch: int, direction: str, most: float) -> None:
    """MiB above what was resident before. The matrices of the N x N form would take 4 GiB and 256 MiB each.

    The high-water mark of the process's own memory: the one of getrusage may be inherited from the parent.
    """
    arguments = [sys.executable, "-c", textwrap.dedent(MEASURE_PEAK), str(batch), direction]
    peak = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert float(peak) < most


def general(z: Tensor, labels: Tensor, others: bool, temperature: float | Tensor) -> Tensor:
    """SupCon's equation, term by term: the views' rows as a list."""
    rows = [(v, int(label), z[v, b]) for v in range(len(z)) for b, label in enumerate(labels)]
    losses = []
    for i, (view, label, row) in enumerate(rows):
        terms = {
            j: row @ other / temperature for j, (v, _, other) in enumerate(rows) if (v != view if others else j != i)
        }
        log_sum = torch.stack(list(terms.values())).logsumexp(dim=0)
        losses.append(torch.stack([log_sum - s for j, s in terms.items() if rows[j][1] == label]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("negatives", ["all", "other"])
@pytest.mark.parametrize(("views", "labels"), [(2, None), (3, None), (2, [4, 1, 4, 4, 2]), (3, [0, 1, 0, 1, 1])])
def test_views_labels_and_the_other_view_alone(
    views: int, labels: list[int] | None, negatives: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one block of rows and of many, whose backward computes them again; second derivatives pass through both."""
    monkeypatch.setattr(sys.modules["imc_kernels.eager.info_nce_loss"], "BLOCK", block)
    z = torch.randn(views, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    given = None if labels is None else torch.tensor(labels)
    expected = general(z, torch.arange(5) if given is None else given, negatives == "other", 0.5)

    def loss(x: Tensor) -> Tensor:
        return info_nce_loss(x, temperature=0.5, negatives=negatives, labels=given, backend="eager")

    torch.testing.assert_close(loss(z), expected)
    (gradient,), (exact,) = (torch.autograd.grad(value, z) for value in (loss(z), expected))
    torch.testing.assert_close(gradient, exact)
    if views == 2:
        assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.parametrize("block", [2, 1024])
def test_a_bank_of_negatives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["imc_kernels.eager.info_nce_loss"], "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    z, bank = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 5, 3), (7, 3)))
    for normalise in (False, True):
        q, k, others = (torch.nn.functional.normalize(x, dim=-1) if normalise else x for x in (*z, bank))
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ others.T], dim=1) / 0.2
        expected = torch.nn.functional.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(info_nce_loss(z, bank=bank, temperature=0.2, normalise=normalise), expected)
    leaves = [x.clone().requires_grad_() for x in (z, bank)]
    assert torch.autograd.gradcheck(lambda x, b: info_nce_loss(x, bank=b, temperature=0.5), leaves)


@pytest.mark.parametrize("backend", all_backends("info_nce_loss", torch.float64))
@pytest.mark.parametrize("normalise", [False, True])
def test_a_learnt_temperature(normalise: bool, backend: str) -> None:
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(t: Tensor, **options: Any) -> Tensor:
        return info_nce_loss(z, temperature=t, normalise=normalise, **options)

    plain = info_nce_loss(z, temperature=0.4, normalise=normalise, backend="eager")
    torch.testing.assert_close(loss(temperature, backend=backend), plain)
    assert torch.autograd.gradcheck(lambda t: loss(t, backend=backend), temperature)
    if backend == "eager":
        for options in ({"negatives": "other"}, {"bank": z[0]}):
            torch.testing.assert_close(loss(temperature, **options), loss(temperature.detach(), **options))
            assert torch.autograd.gradcheck(lambda t, options=options: loss(t, **options), temperature)
