from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from train.conftest import crlc_config

from imc import export
from imc.cli import main
from imc.config import Config
from imc.data import Dataset, Images
from imc.errors import RunError
from imc.export import ExportedModel, Options, traced
from imc.methods import build_model
from imc.runs.model import LoadedRun, load_run
from imc.scores.evaluation import outputs
from imc.train import plan

SCRIPT = """
import sys
sys.modules["imc"] = sys.modules["imc_kernels"] = None  # importing either fails
import numpy, onnxruntime, torch
images = numpy.load("images.npy")
program = torch.export.load("model.pt2").module()
logits, probabilities, clusters = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})
with torch.no_grad():
    found = program(torch.from_numpy(images))
dtypes = [str(x.dtype) for x in found]
numpy.savez("found.npz", torch=found[2], onnx=clusters, probabilities=probabilities, dtypes=dtypes)
"""


def test_both_forms_run_without_this_package_and_give_its_clusters(
    run_copy: Path, split_digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run_copy)]) == 0
    printed = capsys.readouterr().out
    for name in ("model.pt2", "model.onnx"):
        assert f"{run_copy / name}: the same cluster as the model for 64 of 64 images of digits" in printed
    assert "images: uint8 [B, 8, 8, 1]" in printed
    assert split_digits.test is not None
    np.save(run_copy / "images.npy", split_digits.test.images.numpy())
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=run_copy, check=True)
    found = np.load(run_copy / "found.npz")
    expected = outputs(load_run(run_copy), split_digits.test.images)
    np.testing.assert_array_equal(found["torch"], expected.clusters)
    np.testing.assert_array_equal(found["onnx"], expected.clusters)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
    assert list(found["dtypes"]) == ["torch.float32", "torch.float32", "torch.int64"]


def test_the_graph_is_plain(trained: Path) -> None:
    run = load_run(trained)
    graph = traced(ExportedModel(run).eval()).run_decompositions()
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not any("imc" in name or "wrap_with" in name for name in called)
    norms = [name for name in called if "batch_norm" in name]
    assert norms == ["aten._native_batch_norm_legit_no_training.default"]


def test_the_file_says_what_it_is(run_copy: Path) -> None:
    export.export(Options(str(run_copy), format="torch"))
    extra = {"imc.json": ""}
    torch.export.load(run_copy / "model.pt2", extra_files=extra)
    about = json.loads(extra["imc.json"])
    assert (about["clusters"], about["image"], about["method"]) == (10, [8, 8, 1], "imc-swav")


def test_the_training_data_are_not_needed(run_copy: Path, tmp_path: Path) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    result = export.export(Options(str(run_copy), format="torch", out=str(tmp_path / "new" / "folder")))
    assert result["checked"] == "drawn patterns, as its data set is not here"
    assert list((tmp_path / "new" / "folder").iterdir()) == [tmp_path / "new" / "folder" / "model.pt2"]


def test_a_form_that_differs_is_not_written(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path) -> export.Program:
        program = export._read_torch(path)
        return lambda images: tuple(x.roll(1, 0) for x in program(images))

    monkeypatch.setitem(export._READERS, "torch", wrong)
    before = sorted(run_copy.iterdir())
    with pytest.raises(RunError, match="another cluster than the model"):
        export.export(Options(str(run_copy), format="torch"))
    assert sorted(run_copy.iterdir()) == before


def test_a_missing_package_is_one_sentence(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["export", str(run_copy)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ONNX needs onnxruntime, not installed here; pip install onnxruntime, or give --format torch" in error


def test_nothing_is_overwritten(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "model.pt2").write_text("mine")
    assert main(["export", str(run_copy), "--format", "torch"]) == 2
    assert "exists already; give another --out, or pass --overwrite" in capsys.readouterr().err
    assert (run_copy / "model.pt2").read_text() == "mine"


def test_every_method_has_a_graph(tiny: Config, digits: Images) -> None:
    config = plan(crlc_config(tiny, small_crops=None), digits)
    model = ExportedModel(LoadedRun(config, build_model(config))).eval()
    program = traced(model).module()
    for count in (1, 5):
        for found, expected in zip(program(digits.images[:count]), model(digits.images[:count]), strict=True):
            torch.testing.assert_close(found, expected)
