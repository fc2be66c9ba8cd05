from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from train.features.blobs import blobs

from imc import EmbeddingClusterer
from imc.cli import main
from imc.metrics import clustering_accuracy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the runs are tiny

OPTIONS = {"backend": "eager", "sub_heads": 4, "warmup_updates": 5, "lr": 0.02}
ONE_CLUSTER = "it asks for one cluster: the mutual information with a constant is 0, so there is nothing to train"
EXPECTED_FAILURES = {
    "check_dont_overwrite_parameters": ONE_CLUSTER,
    "check_fit2d_1feature": ONE_CLUSTER,
    "check_fit2d_predict1d": ONE_CLUSTER,
    "check_methods_subset_invariance": ONE_CLUSTER,
}


def tiny(**parameters: Any) -> EmbeddingClusterer:
    own = {"n_clusters": 2, "epochs": 30, "random_state": 0, "options": OPTIONS, "scaling": "none"}
    return EmbeddingClusterer(**{**own, **parameters})


@parametrize_with_checks(
    [tiny(device="cpu", epochs=10)], expected_failed_checks=lambda _: EXPECTED_FAILURES, xfail_strict=True
)
def test_the_conventions_of_scikit_learn(estimator: EmbeddingClusterer, check: Any) -> None:
    check(estimator)


def test_groups_are_found_and_predicted() -> None:
    rows, labels = blobs()
    estimator = tiny(n_clusters=3).fit(rows)
    assert clustering_accuracy(labels, estimator.labels_) > 0.95
    assert (estimator.predict(rows) == estimator.labels_).all()
    probabilities = estimator.predict_proba(rows)
    assert probabilities.shape == (90, 3)
    assert (probabilities.argmax(axis=1) == estimator.labels_).all()
    assert estimator.transform(rows).shape == (90, 8)
    assert (pickle.loads(pickle.dumps(estimator)).predict(rows) == estimator.labels_).all()


def test_in_a_pipeline() -> None:
    rows, labels = blobs()
    found = make_pipeline(StandardScaler(), tiny(n_clusters=3)).fit_predict(rows)
    assert clustering_accuracy(labels, found) > 0.9


def test_what_is_saved_is_a_run(tmp_path: Path) -> None:
    rows, _ = blobs()
    estimator = tiny(n_clusters=3).fit(rows)
    estimator.save(tmp_path / "run")
    np.save(tmp_path / "new.npy", rows)
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.npy"), "--out", str(tmp_path / "new.csv")]) == 0
    lines = (tmp_path / "new.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in lines] == estimator.labels_.tolist()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"neighbours": 90}, "--neighbours must be at most 89"),
        ({"scaling": "rows"}, "accepted are length, columns, none"),
        ({"options": {"neighbours": 3}}, "options must not set 'neighbours'"),
        ({"n_clusters": 1}, "n_clusters must be an integer of at least 2"),
        ({"n_clusters": 91}, "n_samples=90 should be >= n_clusters=91"),
    ],
)
def test_what_is_not_accepted(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(**parameters).fit(blobs()[0])
