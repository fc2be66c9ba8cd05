"""Damaged and hostile files of a run: one sentence that names the file, and no more memory than it is long."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imc.cli import main
from imc.config import Config
from imc.errors import UserError
from imc.files.json import read_json
from imc.files.run_places import CHECKPOINT, CONFIG, DATA, METRICS, MODEL
from imc.files.torch_archive import read_torch_file
from imc.runs.files import read_clusters, read_metrics
from imc.runs.model import load_run
from imc.several_runs import clusters_of
from imc.train import train
from imc.training.checkpoint import read_checkpoint


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(
    archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "config": {}, "x": Payload()}, CHECKPOINT, _use_new_zipfile_serialization=archive)
    with pytest.raises(
        UserError, match=r"checkpoint\.pt is no checkpoint that can be read: it is damaged, or holds Python objects"
    ):
        read_checkpoint(tmp_path)
    Path(CHECKPOINT).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"checkpoint\.pt is no checkpoint that can be read"):
        read_checkpoint(tmp_path)
    assert not Path("executed").exists()


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save(torch.zeros(1_000_000), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "x.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"it is compressed, which torch\.save and np\.savez do not do"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [{}, {"config": []}, {"config": {}, "format": 2}])
def test_a_checkpoint_of_another_program_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    torch.save({"format": 1, **content}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match=r"checkpoint\.pt is no checkpoint of this version of imc"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_without_what_a_run_needs_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / DATA).unlink()  # of a part of the digits, where the command takes all
    checkpoint = torch.load(run_copy / CHECKPOINT, weights_only=True)
    for name, value in (("optimizer", {}), ("update", "soon"), ("random", [])):
        torch.save({**checkpoint, name: value}, run_copy / CHECKPOINT)
        assert main(["train", "--out", str(run_copy), "--resume"]) == 2
        assert "checkpoint.pt does not fit its configuration: " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"seed": "x"}', '{"seed": -1}', '{"x": 0}', '"\\ud800"'])
def test_a_damaged_configuration_is_named(content: str, run_copy: Path) -> None:
    (run_copy / CONFIG).write_text(content)
    with pytest.raises(UserError, match=r"it holds no readable config\.json"):
        load_run(run_copy)


def test_a_damaged_model_is_named(run_copy: Path) -> None:
    content = (run_copy / MODEL).read_bytes()
    for damaged in (b"", content[:100], content[:-1], content.replace(b"F32", b"I64", 1)):
        (run_copy / MODEL).write_bytes(damaged)
        with pytest.raises(UserError, match=r"holds no finished run: model\.safetensors: "):
            load_run(run_copy)


ABSURD: list[dict[str, object]] = [
    {"widths": [10**9, 10**9]}, {"widths": [10**30]}, {"prototypes": 10**12}, {"feature_dim": 10**18},
    {"pooled_size": 10**9},
    {"method": "crlc", "sub_heads": 10**9, "projection_bias": None, "prototypes": None, "classifier_widths": None,
     "sinkhorn_epsilon": None, "sinkhorn_iterations": None, "bank": None, "head_hidden": 10**9, "smoothing": 0.1,
     "contrast_weight": 1.0, "large_crops": 2, "small_crops": 0},
]  # fmt: skip


def never(*arguments: object) -> None:
    raise AssertionError("the model was built")


@pytest.mark.parametrize("sizes", ABSURD, ids=lambda sizes: next(iter(sizes)))
def test_sizes_that_are_not_the_saved_models_are_refused_before_anything_is_built(
    sizes: dict[str, object], run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imc.runs.model.load_model", never)
    monkeypatch.setattr("imc.train.build_model", never)
    config = {**read_json(run_copy / CONFIG), **sizes}
    (run_copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors does not fit config\.json beside it: [^\n]+$"):
        load_run(run_copy)
    assert main(["evaluate", str(run_copy)]) == 2
    assert main(["predict", str(run_copy), str(run_copy)]) == 2
    (run_copy / DATA).unlink()  # of a part of the digits, where the command takes all
    checkpoint = torch.load(run_copy / CHECKPOINT, weights_only=True)
    torch.save({**checkpoint, "config": {**checkpoint["config"], **sizes}}, run_copy / CHECKPOINT)
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit its configuration: [^\n]+$"):
        train(Config(out=str(run_copy), resume=True))


def test_names_and_shapes_of_a_model_must_be_those_of_its_configuration(run_copy: Path) -> None:
    state = load_file(run_copy / MODEL)
    first, *others = state
    renamed = {"a\nb": state[first], **{name: state[name] for name in others}}
    for wrong, reason in (
        ({**state, "a\nb": torch.zeros(1)}, r"'a\\nb' is no tensor of the model"),
        (renamed, f"{first} is not there"),
        ({**state, first: torch.zeros(7)}, rf"{first} is \[7\], the model's \["),
    ):
        save_file(wrong, run_copy / MODEL)
        with pytest.raises(UserError, match=f"model.safetensors does not fit config.json beside it: {reason}"):
            load_run(run_copy)


LINE = b'{"epoch": 1, "loss": 0.5, "lr": 0.001}'


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b'{"epoch": 1}\n{"loss": []}', LINE + b"\n1"])
def test_damaged_lines_and_results_are_named(content: bytes, tmp_path: Path) -> None:
    for read, name in ((read_json, "result.json"), (read_metrics, METRICS)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged: "):
            read(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for read, name in ((read_json, "result.json"), (read_clusters, "labels.csv")):
        with pytest.raises(UserError, match=f"{name} cannot be read: No such file or directory"):
            read(tmp_path / name)
    assert read_metrics(tmp_path / METRICS) == []


@pytest.mark.parametrize("content", ["index\n0\n", "index,cluster\n0\n", "cluster\nx\n", "cluster\n" + "9" * 30])
def test_damaged_labels_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=r"labels\.csv is damaged: it has no column of numbers named cluster"):
        clusters_of(tmp_path)


def test_metrics_are_numbers_of_epochs(tmp_path: Path) -> None:
    line = {"epoch": 1, "loss": 0.5, "lr": 1e-3}
    (tmp_path / METRICS).write_text(json.dumps(line) + "\n")
    assert read_metrics(tmp_path / METRICS) == [line]
