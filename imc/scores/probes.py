"""How much of the classes an encoder's features hold, by two readers that see labels: neighbours and a linear layer.

An image whose label is below 0 has none, and is left out.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' weights exp(cosine / temperature), as in arXiv 1805.01978
QUERIES = 1024  # at a time: bounds the memory of the similarities
FOLDS = 5
ITERATIONS = 1000  # of L-BFGS, at most


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor | None = None,
    test_labels: Tensor | None = None,
    *,
    neighbours: int = NEIGHBOURS,
) -> float | None:
    """Accuracy of the weighted vote of each image's nearest neighbours by cosine (arXiv 1805.01978, section 3.4).

    Args:
        features: float [M, F], the images that vote.
        labels: int64 [M].
        test_features, test_labels: float [N, F] and int64 [N], the images to classify. None: the voters themselves,
            each without its own vote.
        neighbours: how many vote, at most.

    Returns:
        None where no image is left to vote, or to classify.
    """
    features, labels = _labelled(features, labels)
    leave_one_out = test_features is None
    queries, truth = features, labels
    if test_features is not None and test_labels is not None:
        queries, truth = _labelled(test_features, test_labels)
    if len(labels) <= leave_one_out or not len(truth):
        return None
    voters = functional.normalize(features, dim=1)
    classes = int(labels.max()) + 1
    right = 0
    for start in range(0, len(queries), QUERIES):
        batch = functional.normalize(queries[start : start + QUERIES], dim=1)
        similarity = batch @ voters.T
        if leave_one_out:
            rows = torch.arange(len(batch), device=batch.device)
            similarity[rows, start + rows] = -torch.inf
        top, index = similarity.topk(min(neighbours, len(voters) - leave_one_out), dim=1)
        # Relative to the nearest neighbour: the winner is the same, and exp does not overflow.
        weights = ((top - top[:, :1]) / TEMPERATURE).exp()
        votes = torch.zeros(len(batch), classes, dtype=weights.dtype, device=batch.device).scatter_add_(
            1, labels[index], weights
        )
        right += int((votes.argmax(dim=1) == truth[start : start + QUERIES]).sum())
    return right / len(queries)


def linear_probe_accuracy(
    features: Tensor, labels: Tensor, test_features: Tensor | None = None, test_labels: Tensor | None = None
) -> float | None:
    """Accuracy of logistic regression (scikit-learn's, L2 weight 1) on the standardised features.

    Args:
        features: float [M, F], what it is fitted to.
        labels: int64 [M].
        test_features, test_labels: float [N, F] and int64 [N], what it is scored on. None: the mean over 5 folds of the
            former (fewer where a class has fewer images), each scored by a fit to the others.

    Returns:
        None where a class has a single image, so that no folds exist, where there is one class only, or where no image
        is left to score.
    """
    features, labels = _labelled(features, labels)
    x, y = features.float().cpu().numpy(), labels.cpu().numpy()
    if len(labels.unique()) < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    if test_features is not None and test_labels is not None:
        test_features, test_labels = _labelled(test_features, test_labels)
        if not len(test_labels):
            return None
        return float(probe.fit(x, y).score(test_features.float().cpu().numpy(), test_labels.cpu().numpy()))
    folds = min(FOLDS, int(labels.unique(return_counts=True)[1].min()))
    if folds < 2:
        return None
    return float(cross_val_score(probe, x, y, cv=StratifiedKFold(folds, shuffle=True, random_state=0)).mean())


def _labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    known = labels >= 0
    return features[known.to(features.device)], labels[known].long()
