from __future__ import annotations

import numpy as np
import torch

from imc.pages.similar import NEARLY_SAME, PAIRS, find_neighbours, nearly_same


def test_neighbours_are_the_nearest_by_what_differs_from_the_mean() -> None:
    features = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) + 100
    found, cosines = find_neighbours(features, seed=0)
    unit = torch.nn.functional.normalize((features - features.mean(0)).double(), dim=1)
    every = (unit @ unit.T).fill_diagonal_(-2)
    expected = every.topk(found.shape[1], dim=1)
    np.testing.assert_allclose(cosines, expected.values, atol=1e-4)
    assert (found == expected.indices.numpy()).mean() > 0.99


def test_copies_are_one_group_and_others_none() -> None:
    features = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    features[[7, 30]] = features[3] + 0.01 * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    features[12] = features[11]
    groups = nearly_same(*find_neighbours(features, seed=0))
    assert [sorted(group) for group in groups] == [[11, 12], [3, 7, 30]]  # the most alike first


def test_of_many_pairs_the_most_alike_are_shown() -> None:
    count = 2 * PAIRS + 100
    neighbours = (np.arange(count, dtype=np.int32) ^ 1)[:, None]
    cosines = np.linspace(1, NEARLY_SAME, count, dtype=np.float32)[:, None]
    groups = nearly_same(neighbours, cosines)
    assert len(groups) == PAIRS
    assert groups[0] == [0, 1]


def test_one_image_has_no_neighbour() -> None:
    found, cosines = find_neighbours(torch.randn(1, 4), seed=0)
    assert found.shape == cosines.shape == (1, 0)
    assert nearly_same(found, cosines) == []
