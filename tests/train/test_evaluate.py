from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train.conftest import crlc_config, tiny_config

from imc.cli import main
from imc.data import Dataset, Images
from imc.data.resize import resized
from imc.errors import UserError
from imc.evaluate import Options, evaluate, table
from imc.export import ExportedModel
from imc.files.json import read_json
from imc.files.run_places import DATA
from imc.pages.summary import summarise, summary_table, write_summary
from imc.report import Options as ReportOptions
from imc.report import report
from imc.runs.data import other_data, run_data
from imc.runs.files import read_clusters
from imc.runs.model import load_run
from imc.scores.evaluation import outputs, plane, recalibrate
from imc.train import train


def quick(**changes: object) -> Options:
    return Options(runs=("",), skip_probes=True, skip_figures=True, **changes)  # type: ignore[arg-type]


def test_both_splits_are_reported(run_copy: Path, split_digits: Dataset) -> None:
    result = evaluate(run_copy, data=split_digits)
    assert json.loads((run_copy / "evaluation.json").read_text()) == result
    assert {path.name for path in (run_copy / "figures").iterdir()} == {
        *("confusion-train.png", "confusion-test.png", "embeddings.png", "heatmaps.png")
    }
    for name, count in (("train", 192), ("test", 96)):
        split = result["splits"][name]
        assert split["images"] == sum(split["cluster_sizes"]) == sum(map(sum, split["confusion"])) == count
        hits = sum(row["recall"] * row["images"] for row in split["classes"])
        assert split["acc"] == pytest.approx(hits / count)
    assert 0.3 < result["encoder"]["knn"] <= 1
    assert 0.3 < result["encoder"]["linear_probe"] <= 1
    text = table(result)
    assert "digits, batch normalisation as training left it" in text
    assert "fitted to the train split, scored on the test split" in text
    assert f"{result['splits']['test']['acc']:.3f}" in text


@pytest.mark.parametrize("split", ["train", "test", "none"])
def test_the_recalibration_is_the_one_asked_for(run_copy: Path, split_digits: Dataset, split: str) -> None:
    result = evaluate(run_copy, quick(bn_recalibrate=split), split_digits)
    assert result["bn_images"] == {"train": 192, "test": 96, "none": 0}[split]
    assert result["transductive"] == (split == "test")
    assert ("transductive" in table(result)) == (split == "test")

    run = load_run(run_copy)
    if split != "none":
        recalibrate(run, getattr(split_digits, split).images)
    confidence = float(outputs(run, split_digits.test.images).confidence.mean())
    assert result["splits"]["test"]["mean_confidence"] == pytest.approx(confidence, rel=1e-6)


def test_every_command_clusters_by_the_same_form_of_the_model(
    run_copy: Path, digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = read_clusters(run_copy / "labels.csv")
    run = load_run(run_copy)
    recalibrate(run, digits.images)
    assert (outputs(run, digits.images).clusters != saved).any()  # the forms differ here

    (tmp_path / "images").mkdir()
    for index, pixels in enumerate(digits.images.numpy()):
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / "images" / f"{index}.png")
    assert main(["predict", str(run_copy), str(tmp_path / "images"), "--out", str(tmp_path / "predictions.csv")]) == 0
    assert (read_clusters(tmp_path / "predictions.csv") == saved).all()

    model = ExportedModel(load_run(run_copy)).eval()
    assert (model(digits.images)[2].numpy() == saved).all()

    data = run_data(run.config, digits)
    result, accuracy = evaluate(run_copy, quick(), data), read_json(run_copy / "result.json")["acc"]
    assert result["splits"]["train"]["acc"] == accuracy
    assert result["splits"]["train"]["cluster_sizes"] == np.bincount(saved, minlength=10).tolist()
    page = report(ReportOptions(str(run_copy)), data).read_text()
    assert f"<b>{accuracy:.3f}</b><span>ACC</span>" in page

    assert result["bn_recalibrate"] == read_json(run_copy / "result.json")["bn_recalibrate"] == "none"
    for text in (table(result), page):
        assert "batch normalisation as training left it" in text


def test_a_run_is_found_from_the_home_folder(
    run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(run_copy.parent))
    evaluate("~/run", Options(runs=("~/run",), skip_probes=True, skip_figures=True), split_digits)
    assert (run_copy / "evaluation.json").exists()


def test_images_without_a_label_are_left_out_of_all_scores(run_copy: Path, split_digits: Dataset) -> None:
    test = split_digits.test
    assert test is not None
    masked = test.labels.clone()
    masked[::3] = -1
    known = torch.nonzero(masked >= 0)[:, 0]
    part = dataclasses.replace(test, images=test.images[known], labels=masked[known])
    scores_alone = Options(runs=(str(run_copy),), skip_figures=True)  # the report below draws them
    results = [
        evaluate(run_copy, scores_alone, dataclasses.replace(split_digits, train=split, test=split))
        for split in (dataclasses.replace(test, labels=masked), part)
    ]
    for score in ("acc", "nmi", "ari", "classes", "confusion"):
        assert results[0]["splits"]["train"][score] == results[1]["splits"]["train"][score]
    assert results[0]["encoder"] == results[1]["encoder"]
    assert results[0]["splits"]["test"]["images"] == 96
    page = report(
        ReportOptions(str(run_copy)), dataclasses.replace(split_digits, train=dataclasses.replace(test, labels=masked))
    )
    (content,) = re.findall(r'<script type="application/json" id="run">(.*?)</script>', page.read_text(), flags=re.S)
    assert json.loads(content)["labels"].count(-1) == 32

    none = dataclasses.replace(
        split_digits, train=dataclasses.replace(test, labels=torch.full_like(masked, -1)), test=None
    )
    result = evaluate(run_copy, scores_alone, none)
    assert result["splits"]["train"]["acc"] is None
    assert result["encoder"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda labels: labels + 1, "go up to 10, and it names 10 classes"),
        (lambda labels: labels[:-1], "must be whole numbers, one for each of its images, 192"),
        (lambda labels: labels.float(), "must be whole numbers, one for each of its images, 192"),
        (lambda labels: labels[:, None], "must be whole numbers, one for each of its images, 192"),
    ],
)
def test_labels_that_are_none_of_the_classes_are_refused(change, says: str, digits: Images, run_copy: Path) -> None:  # type: ignore[no-untyped-def]
    images = dataclasses.replace(digits, labels=change(digits.labels))
    with pytest.raises(UserError, match=f"the labels of digits {says}"):
        run_data(load_run(run_copy).config, images)


def test_the_statistics_of_the_two_splits_differ(trained: Path, split_digits: Dataset) -> None:
    probabilities = []
    for images in (split_digits.train.images, split_digits.test.images):
        run = load_run(trained)
        recalibrate(run, images)
        probabilities.append(outputs(run, split_digits.test.images).probabilities)
    assert not torch.allclose(*probabilities, atol=1e-3)


def test_without_labels_there_are_clusters_and_no_scores(run_copy: Path, split_digits: Dataset) -> None:
    data = dataclasses.replace(
        split_digits, test=None, train=dataclasses.replace(split_digits.train, labels=None, class_names=())
    )
    result = evaluate(run_copy, data=data)
    assert result["encoder"] is None
    assert result["splits"].keys() == {"train"}
    assert result["splits"]["train"]["acc"] is None
    assert sum(result["splits"]["train"]["cluster_sizes"]) == 192
    assert not (run_copy / "figures" / "confusion-train.png").exists()
    assert (run_copy / "figures" / "heatmaps.png").exists()
    assert "no scores" in summary_table(summarise([result, result]))
    table(result)


def test_the_model_says_the_same_in_any_batch(trained: Path, split_digits: Dataset) -> None:
    run, images = load_run(trained), split_digits.test.images
    whole, parts = outputs(run, images), outputs(run, images, batch_size=7)
    torch.testing.assert_close(whole.features, parts.features)
    torch.testing.assert_close(whole.probabilities, parts.probabilities)
    assert whole.features.shape == (96, 16)
    torch.testing.assert_close(whole.probabilities.sum(dim=1), torch.ones(96))


def test_bfloat16_moves_the_probabilities_a_little(trained: Path, split_digits: Dataset) -> None:
    run, images = load_run(trained), split_digits.test.images
    exact, rounded = outputs(run, images), outputs(run, images, amp="bf16")
    assert rounded.features.dtype == torch.float32
    assert 0 < (exact.probabilities - rounded.probabilities).abs().max() < 0.1


@pytest.mark.parametrize("count", [3, 20])
def test_the_plane_is_a_function_of_the_seed(count: int) -> None:
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    points = plane(features, seed=0)
    assert points.shape == (count, 2)
    assert (points == plane(features, seed=0)).all()


def test_several_runs_are_a_mean_and_a_deviation(run_copy: Path, split_digits: Dataset, tmp_path: Path) -> None:
    results = [evaluate(run_copy, quick(bn_recalibrate=split), split_digits) for split in ("train", "none")]
    for result, accuracy, images in zip(results, (0.25, 0.75), (100, 192), strict=True):
        result["splits"]["test"]["acc"], result["training_images"] = accuracy, images
    summary = summarise(results)
    score = summary["scores"]["test"]["acc"]
    assert score["mean"] == 0.5
    assert score["deviation"] == pytest.approx(0.5 / 2**0.5)
    assert "ACC 0.500 +- 0.354" in summary_table(summary)
    written = write_summary(tmp_path / "summary", summary, results)
    assert [path.name for path in written] == ["summary.json", "accuracy-by-images.png"]
    assert all(path.stat().st_size > 0 for path in written)


def test_the_command_takes_several_runs(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--skip-probes", "--skip-figures", "--out", str(run_copy / "both")]
    assert main(["evaluate", str(run_copy), str(run_copy), *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.count("digits, batch normalisation as training left it") == 2
    assert "2 runs, mean and standard deviation" in printed
    assert json.loads((run_copy / "both" / "summary.json").read_text())["scores"]["train"]["acc"]["deviation"] == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "RUN is missing in: imc evaluate RUN [RUN ...] [options]"),
        (["nowhere"], "nowhere is not the folder of a run"),
        (["RUN", "--bn-recalibrate", "valid"], "'valid' is not known; accepted are none, train, test"),
        (["RUN", "--bn-recalibrate", "test"], "needs a test split, and digits has none; accepted are none, train"),
        (["RUN", "--data", "digitz"], "did you mean digits?"),
        (["RUN", "--out", "x"], "--out takes the summary of several runs"),
        (["RUN", "--device", "gpu"], "'gpu' is not known; accepted are auto, cpu, cuda"),
        (["RUN", "--recalibrate", "test"], "unknown flag --recalibrate; did you mean --bn-recalibrate?"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: list[str], says: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / DATA).unlink()  # it was trained on a part of the digits, of which a warning would speak
    assert main(["evaluate", *(str(run_copy) if word == "RUN" else word for word in argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert not (run_copy / "evaluation.json").exists()


def test_a_folder_is_read_at_the_size_of_the_training_on_any_machine(
    trained: Path, split_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for index in range(12):
        pixels = np.repeat(np.repeat(split_digits.train.images[index, :, :, 0].numpy(), 8, 0), 8, 1)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    config = dataclasses.replace(load_run(trained).config, data=str(tmp_path / "photos"), device="cuda")
    assert other_data(tmp_path, config, None, False).train.images.shape == (12, 8, 8, 1)
    assert other_data(tmp_path, config, str(tmp_path / "photos"), False).train.images.shape == (12, 8, 8, 1)


@pytest.fixture
def crlc_run(digits: Images, tmp_path: Path) -> Path:
    config = tiny_config(tmp_path / "crlc")
    train(crlc_config(config, sub_heads=3, epochs=1), digits)
    return tmp_path / "crlc"


def test_every_cluster_head_is_scored_beside_the_chosen_one(crlc_run: Path, split_digits: Dataset) -> None:
    result = evaluate(crlc_run, quick(), split_digits)
    run = load_run(crlc_run)
    assert result["head"] == run.model.best_head == int(run.model.head_losses.argmin())
    for split in result["splits"].values():
        for score in ("acc", "nmi", "ari"):
            heads = split["heads"][score]
            assert len(heads["values"]) == 3
            assert heads["values"][result["head"]] == split[score]
            assert heads["mean"] == pytest.approx(np.mean(heads["values"]))
            assert heads["deviation"] == pytest.approx(np.std(heads["values"], ddof=1))
        assert len(set(split["heads"]["nmi"]["values"])) > 1
    assert "mean of 3 heads" in table(result)
    assert f"head {result['head']}, the one with the lowest loss" in table(result)


def test_images_of_another_kind_are_refused(run_copy: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "colour.npy", np.zeros((20, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="colour has images in colour, and the run was trained on grey images"):
        evaluate(run_copy, quick(data=str(tmp_path / "colour.npy")))


def test_images_of_another_kind_given_from_python_are_refused(run_copy: Path, split_digits: Dataset) -> None:
    colour = dataclasses.replace(split_digits.train, images=split_digits.train.images.expand(-1, -1, -1, 3))
    data = dataclasses.replace(split_digits, train=colour, test=None)
    for command in (lambda: evaluate(run_copy, quick(), data), lambda: report(ReportOptions(str(run_copy)), data)):
        with pytest.raises(UserError, match="digits has images in colour, and the run was trained on grey images"):
            command()


def test_images_of_another_size_are_scored_at_the_runs_and_it_is_said(
    run_copy: Path, split_digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = split_digits.train.images.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    np.savez(tmp_path / "large.npz", x=large.numpy(), y=split_digits.train.labels.numpy())
    result = evaluate(run_copy, quick(data=str(tmp_path / "large.npz")))
    sentence = "large has images of 32x32 pixels, and the run takes 8x8: they are resized"
    assert f"warning: {sentence}\n" in capsys.readouterr().err
    own = evaluate(run_copy, quick(), split_digits)["splits"]["train"]
    # Four pixels for each of one value, averaged: as good as the images themselves.
    assert result["splits"]["train"]["acc"] == pytest.approx(own["acc"], abs=0.05)
    run = load_run(run_copy)
    expected = outputs(run, resized(large, 8)).clusters
    assert result["splits"]["train"]["cluster_sizes"] == np.bincount(expected, minlength=10).tolist()
