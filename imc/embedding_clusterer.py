"""Clustering of features as a scikit-learn estimator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from imc.clusterer import SOURCE, Clusterer, as_array
from imc.features.files import unusable_rows


class EmbeddingClusterer(Clusterer):
    """Clusters rows of numbers, such as what a network gives: ``imc train --features`` with scikit-learn's conventions.

    ``X`` is an array [M, D] of features. A view of a row is one of its nearest neighbours by cosine.

    Args:
        n_clusters: number of clusters, at least 2.
        method: one that ``imc train --method`` accepts.
        neighbours: how many of each row are its views; None: 10, or all others where there are fewer.
        scaling: "length" (for features of networks), "columns" (for measurements in several units) or "none": what of
            the rows, or of the columns, is divided out before the rows are compared. None: chosen by the numbers, see
            :func:`imc.features.scaling.fitting_scaling`.
        epochs, batch_size: None: chosen by the number of rows.
        options: further fields of :class:`imc.config.Config` by name, such as ``{"sub_heads": 50}``.
        random_state: an integer is what ``imc train --seed`` takes.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        verbose: whether to show the progress of training.

    Attributes:
        labels_: int64 [M], the cluster of each row of ``fit``. A cluster may be empty.
        n_features_in_: D.
        feature_names_in_: the names of the columns, where ``X`` is a data frame.
        config_: the resolved :class:`imc.config.Config`.
        model_: the trained module, in evaluation mode.

    Errors:
        ValueError: what is not accepted, with what is.
        RunError: a loss became NaN.

    Example:
        >>> from imc import EmbeddingClusterer
        >>> from sklearn.datasets import load_digits
        >>> EmbeddingClusterer(n_clusters=10, random_state=0).fit_predict(load_digits().data)  # doctest: +SKIP
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        method: str = "crlc",
        neighbours: int | None = None,
        scaling: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.neighbours = neighbours
        self.scaling = scaling
        self.epochs = epochs
        self.batch_size = batch_size
        self.options = options
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def _own(self) -> dict[str, Any]:
        return {"features": (SOURCE,), "neighbours": self.neighbours, "scaling": self.scaling}

    def _samples(self, X: ArrayLike, *, reset: bool) -> Tensor:  # noqa: N803
        if isinstance(X, str | os.PathLike):
            raise ValueError(f"X must be an array of rows, got the path {os.fspath(X)!r}; numpy.load reads an .npy")
        rows = validate_data(
            self,
            as_array(X),
            reset=reset,
            dtype=[np.float32, np.float64, np.float16],
            ensure_min_samples=1 + reset,
            ensure_all_finite=False,  # which names no row
        )
        with np.errstate(over="ignore"):
            samples = torch.from_numpy(np.array(rows, np.float32))
        if reason := unusable_rows(samples):
            raise ValueError(f"X cannot be used: {reason}")
        return samples
