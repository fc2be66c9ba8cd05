"""More than 2^31 elements: no index may pass through 32 bits.

Most of what the kernels read is zero and was never written, so that it takes no memory; what differs lies at the end.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from imc_kernels import (
    backends,
    info_nce_loss,
    log_dot_product_loss,
    multi_crop,
    mutual_information_loss,
    prototype_scores,
    sinkhorn,
    swapped_prediction_loss,
)
from imc_kernels.ops.crop_parameters import Column

FREE = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30


def needs(gibibytes: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(gibibytes > FREE, reason=f"less than {gibibytes} GiB of memory is free")


# Mapping so much memory takes up to a minute each.
on_request = pytest.mark.skipif("IMC_LARGE" not in os.environ, reason="left out unless IMC_LARGE=1 is set: it is slow")
pytestmark = [pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built"), needs(12)]
BATCH, PROTOTYPES, PART = 2**21, 1032, 8  # the last of PART samples differs from the others


def scores_of(small: Tensor, batch: int) -> Tensor:
    """Scores [batch, K] whose last rows are that of ``small`` [PART, K], in the same proportion; the others zero."""
    scores = torch.zeros(batch, small.shape[-1])
    scores[-batch // PART :] = small[-1]
    return scores


@pytest.fixture(scope="module")
def small() -> Tensor:
    rows = torch.zeros(PART, PROTOTYPES)
    rows[-1] = torch.rand(PROTOTYPES, generator=torch.Generator().manual_seed(0))
    return rows


@on_request
def test_sinkhorn(small: Tensor) -> None:
    scores = scores_of(small, BATCH)
    assert scores.numel() > 2**31
    assignments = sinkhorn(scores, backend="cpu")
    expected = sinkhorn(small.double(), backend="eager").float()  # the same samples, each as often
    for ours, row in ((assignments[0], expected[0]), (assignments[-1], expected[-1])):
        torch.testing.assert_close(ours, row, rtol=1e-3, atol=0)


@on_request
def test_swapped_prediction_loss(small: Tensor) -> None:
    views, batch = 4, BATCH // 4
    scores = torch.zeros(views, batch, PROTOTYPES)
    scores[-1] = scores_of(small, batch)
    assert scores.numel() > 2**31
    assignments = torch.zeros(2, batch, PROTOTYPES)
    assignments[:, -batch // PART :, 5] = 1
    small_scores, small_assignments = torch.zeros(views, PART, PROTOTYPES), torch.zeros(2, PART, PROTOTYPES)
    small_scores[-1], small_assignments[:, -1, 5] = small, 1
    expected = swapped_prediction_loss(small_scores, small_assignments, backend="eager")
    torch.testing.assert_close(swapped_prediction_loss(scores, assignments, backend="cpu"), expected)


@on_request
def test_mutual_information_loss(small: Tensor) -> None:
    views, batch = 2, BATCH // 2
    scores, logits = torch.zeros(views, batch, PROTOTYPES), torch.zeros(views, batch, 3)
    scores[-1], logits[:, -batch // PART :, 1] = scores_of(small, batch), 2
    assert scores.numel() > 2**31
    small_scores, small_logits = torch.zeros(views, PART, PROTOTYPES), torch.zeros(views, PART, 3)
    small_scores[-1], small_logits[:, -1, 1] = small, 2
    expected = mutual_information_loss(small_logits, small_scores, backend="eager")
    ours = mutual_information_loss(logits, scores, backend="cpu")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@on_request
def test_log_dot_product_loss() -> None:
    logits = torch.zeros(16_800, 2, 64, 1000)
    assert logits.numel() > 2**31
    logits[-1] = torch.randn(2, 64, 1000, generator=torch.Generator().manual_seed(0))
    loss = log_dot_product_loss(logits, backend="cpu")
    torch.testing.assert_close(loss[[0, -1]], log_dot_product_loss(logits[[0, -1]], backend="eager"))


@on_request
def test_info_nce_loss() -> None:
    embeddings, end = torch.zeros(2, 16, 2**26 + 64), 64
    assert embeddings.numel() > 2**31
    embeddings[..., -end:] = torch.rand(2, 16, end, generator=torch.Generator().manual_seed(0)) / 8
    expected = info_nce_loss(embeddings[..., -end:].contiguous(), backend="eager")
    torch.testing.assert_close(info_nce_loss(embeddings, backend="cpu"), expected)


def test_multi_crop() -> None:
    size, batch = 224, 14_300
    assert batch * 3 * size * size > 2**31
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.zeros(batch, dtype=torch.int64)
    indices[-1] = 1
    parameters = torch.zeros(1, batch, len(Column))
    parameters[..., Column.HEIGHT] = parameters[..., Column.WIDTH] = 8
    parameters[..., Column.BRIGHTNESS : Column.HUE] = 1
    options: dict[str, Any] = {"size": size, "mean": [0.0] * 3, "std": [1.0] * 3, "dtype": torch.bfloat16}
    crops = multi_crop(images, indices, parameters, **options, backend="cpu")
    ends = [0, batch - 1]
    expected = multi_crop(images, indices[ends], parameters[:, ends], **options, backend="cpu")
    assert torch.equal(crops[:, ends], expected)


def test_prototype_scores() -> None:
    rows, prototypes = 70_000, 31_000
    assert rows * prototypes > 2**31
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, 2, generator=generator)
    weights = torch.randn(prototypes, 2, generator=generator)
    scores = prototype_scores(embeddings, weights, backend="cpu")
    for part in (slice(0, 5), slice(-5, None)):
        expected = prototype_scores(embeddings[part], weights, backend="eager")
        torch.testing.assert_close(scores[part], expected)
