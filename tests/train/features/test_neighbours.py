from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from train.features.blobs import blobs

from imc.features import neighbours
from imc.features.neighbours import mutual_neighbours, nearest_neighbours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_they_are_the_nearest_by_cosine(dtype: torch.dtype) -> None:
    rows = (100 * torch.from_numpy(blobs()[0])).to(dtype)
    expected = NearestNeighbors(n_neighbors=8, metric="cosine").fit(rows.double().numpy()).kneighbors()[1]
    found = nearest_neighbours(rows, 8)
    assert found.dtype == torch.int32
    # Equal but for ties of the rounding: as sets.
    agreement = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(found.tolist(), expected, strict=True)])
    assert agreement > 0.99


def test_a_row_is_not_its_own_neighbour_also_where_it_has_copies() -> None:
    rows = torch.ones(6, 3)
    for exact in (True, False):
        found = nearest_neighbours(rows, 5, exact=exact)
        assert [sorted(row) for row in found.tolist()] == [[j for j in range(6) if j != i] for i in range(6)]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(blobs()[0])
    whole = nearest_neighbours(rows, 5)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    assert torch.equal(nearest_neighbours(rows, 5), whole)


def test_lists_find_most_of_them() -> None:
    rows = torch.from_numpy(load_digits().data)
    rows -= rows.mean(dim=0)  # as those of a run are
    exact = nearest_neighbours(rows, 10, exact=True)
    found = nearest_neighbours(rows, 10, exact=False)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(shared) > 0.9
    assert (found != torch.arange(len(rows))[:, None]).all()


def test_lists_with_few_members_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PROBES", 1)
    found = nearest_neighbours(torch.from_numpy(blobs()[0]), 60, exact=False)
    assert all(len(set(row)) == 60 for row in found.tolist())


def test_mutual_ones_have_each_other() -> None:
    found = nearest_neighbours(torch.from_numpy(blobs()[0]), 6)
    kept = mutual_neighbours(found)
    assert kept.shape == found.shape
    for row, (own, chosen) in enumerate(zip(found.tolist(), kept.tolist(), strict=True)):
        mutual = [other for other in own if row in found[other].tolist()]
        assert set(chosen) == set(mutual or own[:1])


@pytest.mark.parametrize("count", [0, 90, 91])
def test_their_number_is_that_of_the_others_at_most(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 89"):
        nearest_neighbours(torch.from_numpy(blobs()[0]), count)
