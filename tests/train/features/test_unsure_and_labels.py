"""What a run on features says of new samples, and of classes that it did not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from train.features.blobs import blobs

from imc.errors import UserError
from imc.evaluate import Options, evaluate
from imc.files.csv import read_rows
from imc.predict import Options as PredictOptions
from imc.predict import predict
from imc.scores.evaluation import UNSURE


def test_a_prediction_marks_what_is_unsure(trained_on_features: Path, tmp_path: Path) -> None:
    values, _ = blobs()
    between = (values[:30].mean(axis=0) + values[30:60].mean(axis=0)) / 2
    np.save(tmp_path / "rows.npy", np.concatenate([values[:20], np.tile(between, (3, 1))]))
    predict(PredictOptions(str(trained_on_features), (str(tmp_path / "rows.npy"),), out=str(tmp_path / "new.csv")))
    rows = list(read_rows(tmp_path / "new.csv"))
    assert list(rows[0]) == ["file", "cluster", "confidence", "unsure"]
    assert "1" in [row["unsure"] for row in rows]
    assert [row["unsure"] for row in rows] == [str(int(float(row["confidence"]) < UNSURE)) for row in rows]


def test_labels_of_a_file_score_a_run_without(trained_on_features: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_on_features, tmp_path / "run")
    values, labels = blobs()
    np.save(tmp_path / "rows.npy", values)
    np.save(tmp_path / "y.npy", labels)
    plain = {"data": str(tmp_path / "rows.npy"), "skip_figures": True}
    assert evaluate(folder, Options((str(folder),), **plain))["splits"]["train"]["acc"] is None
    given = evaluate(folder, Options((str(folder),), **plain, labels=str(tmp_path / "y.npy")))
    assert given["splits"]["train"]["acc"] > 0.95
    assert given["encoder"]["knn"] is not None
    with pytest.raises(UserError, match="--labels and --labels-from-folders exclude each other"):
        evaluate(folder, Options((str(folder),), **plain, labels="y.npy", labels_from_folders=True))
