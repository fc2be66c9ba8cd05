"""More than 2^31 elements: no index may pass through 32 bits."""

import os

import pytest
import torch

from imc_kernels import backends, prototype_scores

NEEDED = 12 * 2**30  # bytes, with room for the rest of the machine

pytestmark = [
    pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built"),
    pytest.mark.skipif(
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < NEEDED,
        reason="less than 12 GiB of memory is free",
    ),
]


def test_prototype_scores_past_two_to_the_31() -> None:
    rows, prototypes = 70_000, 31_000
    assert rows * prototypes > 2**31
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, 2, generator=generator)
    weights = torch.randn(prototypes, 2, generator=generator)
    scores = prototype_scores(embeddings, weights, backend="cpu")
    for part in (slice(0, 5), slice(-5, None)):
        expected = prototype_scores(embeddings[part], weights, backend="eager")
        torch.testing.assert_close(scores[part], expected)
