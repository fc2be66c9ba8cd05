from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imc.cli import main
from imc.config import Config
from imc.data import Dataset, Images
from imc.data.ignored import OUTPUT_MARK
from imc.errors import UserError
from imc.files.json import read_json
from imc.files.run_places import CONFIG
from imc.predict import Options, predict
from imc.runs.model import load_run
from imc.scores.evaluation import outputs
from imc.train import train


@pytest.fixture
def folder(split_digits: Dataset, tmp_path: Path) -> Path:
    """24 digits of the test split, some in a sub-folder, between two files that are no images."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(24):
        name = f"more/{index}.png" if index >= 20 else f"{index}.png"
        Image.fromarray(split_digits.test.images[index, :, :, 0].numpy()).save(folder / name)
    (folder / "5a.png").write_bytes((folder / "5.png").read_bytes()[:60])
    (folder / "notes.txt").touch()
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_clusters_are_those_of_the_model(run_copy: Path, folder: Path, split_digits: Dataset) -> None:
    result = predict(Options(str(run_copy), (str(folder),), batch_size=7))
    assert (result["images"], result["skipped"]) == (24, 2)
    path = run_copy / "predictions-photos.csv"
    assert result["files"] == [str(path)]
    expected = outputs(load_run(run_copy), split_digits.test.images[:24])
    by_path = {row["file"]: row for row in rows(path)}
    assert by_path.keys() == {f"more/{index}.png" if index >= 20 else f"{index}.png" for index in range(24)}
    for name, row in by_path.items():
        index = int(Path(name).stem)
        assert int(row["cluster"]) == expected.clusters[index]
        assert float(row["confidence"]) == pytest.approx(expected.confidence[index], abs=1e-5)


def test_it_needs_the_weights_and_the_configuration_only(
    run_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (run_copy / name).rename(bare / name)

    def no_data(*_: object, **__: object) -> None:
        raise AssertionError("the data set was loaded")

    monkeypatch.setattr("imc.data.load", no_data)
    assert predict(Options(str(bare), (str(folder),)))["images"] == 24


def test_embeddings_are_in_the_order_of_the_csv(run_copy: Path, folder: Path, split_digits: Dataset) -> None:
    target = folder.parent / "embeddings.npy"
    predict(Options(str(run_copy), (str(folder),), embeddings=str(target), batch_size=5))
    embeddings = np.load(target)
    expected = outputs(load_run(run_copy), split_digits.test.images[:24]).features.numpy()
    order = [int(Path(row["file"]).stem) for row in rows(run_copy / "predictions-photos.csv")]
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected[order], atol=1e-5)


def test_sorting_copies_and_leaves_the_folder_alone(run_copy: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    target = folder.parent / "sorted"
    predict(Options(str(run_copy), (str(folder),), sort_into=str(target)))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    copies = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    expected = {
        f"{row['cluster']}/{row['file']}": before[folder / row["file"]]
        for row in rows(run_copy / "predictions-photos.csv")
    }
    mark = copies.pop(OUTPUT_MARK)  # that these are no new images of the user's
    assert b"\n" in mark
    assert copies == expected


def test_a_batch_is_all_that_is_in_memory(run_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def recorded(run: object, images: object, **settings: object) -> object:
        sizes.append(len(images))  # type: ignore[arg-type]
        return outputs(run, images, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("imc.predict.outputs", recorded)
    predict(Options(str(run_copy), (str(folder),), batch_size=10))
    assert sizes == [10, 10, 4]


def test_what_cannot_be_read_is_named(run_copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run_copy), str(folder)]) == 0
    captured = capsys.readouterr()
    assert "skipped 5a.png: damaged or cut short" in captured.err
    assert "24 images in" in captured.out
    assert "skipped 2: " in captured.out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--out", "TAKEN"], "exists already; give another --out, or pass --overwrite"),
        (["--embeddings", "TAKEN"], "--embeddings must be a file that ends in .npy"),
        (["--sort-into", "FULL"], "--sort-into must be a new or an empty folder"),
        (["--sort-into", "FOLDER/sorted"], "--sort-into must lie outside of"),
        (["--batch-size", "0"], "--batch-size must be an integer of at least 1"),
    ],
)
def test_nothing_of_the_user_is_overwritten(
    flags: list[str], says: str, run_copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken, full = folder.parent / "taken.csv", folder.parent / "full"
    taken.write_text("mine")
    full.mkdir()
    (full / "mine.txt").touch()
    places = {"TAKEN": taken, "FULL": full, "FOLDER/sorted": folder / "sorted"}
    assert main(["predict", str(run_copy), str(folder), *(str(places.get(word, word)) for word in flags)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in full.iterdir()) == ["mine.txt"]
    assert not (folder / "sorted").exists()


def test_a_csv_is_replaced_if_asked(run_copy: Path, folder: Path) -> None:
    options = Options(str(run_copy), (str(folder),), out=str(folder.parent / "out.csv"), overwrite=True)
    predict(options)
    first = (folder.parent / "out.csv").read_bytes()
    predict(options)
    assert (folder.parent / "out.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere", "is not there; accepted are folders, pictures, .npy files and features"), ("empty", "no image")],
)
def test_a_folder_without_images(
    name: str, says: str, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run_copy), str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err
    assert not list(run_copy.glob("predictions*"))


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    run_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("shutil.copy2", full)
    assert main(["predict", str(run_copy), str(folder), "--sort-into", str(folder.parent / "sorted")]) == 1
    assert "cannot write somewhere: No space left on device" in capsys.readouterr().err
    assert not list(run_copy.glob("predictions*"))


def test_outputs_that_are_not_finite_are_refused(
    run_copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_json(run_copy / CONFIG)
    (run_copy / CONFIG).write_text(json.dumps({**config, "pixel_scale": 1e38}))
    for command in (["predict", str(run_copy), str(folder)], ["evaluate", str(run_copy)]):
        assert main(command) == 1
        assert "the model gives NaN or infinite numbers for an image; are its parameters" in capsys.readouterr().err
    assert not (run_copy / "predictions-photos.csv").exists()


def test_images_of_another_kind_than_the_runs_are_counted_and_said(
    run_copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run_copy), str(folder)]) == 0
    assert "warning" not in capsys.readouterr().err
    noise = np.random.default_rng(0).integers(256, size=(12, 12, 3), dtype=np.uint8)
    for index in range(2):
        Image.fromarray(noise).save(folder / f"colour{index}.png")
    Image.fromarray(noise[:, :, 0]).convert("P").save(folder / "palette.png")
    Image.fromarray(noise[:4, :4, 0]).save(folder / "tiny.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(noise[:, :, 0]).convert("LA").save(folder / "transparent.png")
    assert main(["predict", str(run_copy), str(folder), "--overwrite"]) == 0
    captured = capsys.readouterr()
    for sentence in (
        "3 of 30 images are in colour, and the run was trained on grey ones: their colour is left out",
        "1 of 30 images is smaller than the 8 pixels a side that the run takes, and enlarged",
    ):
        assert f"warning: {sentence}" in captured.err
        assert sentence in captured.out


def test_grey_images_for_a_run_in_colour_are_counted_and_said(
    tiny: Config, digits: Images, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(tiny, epochs=1), dataclasses.replace(digits, images=digits.images.expand(-1, -1, -1, 3)))
    capsys.readouterr()
    result = predict(Options(str(tiny.out), (str(folder),)))
    assert result["note"].startswith(
        "24 of 24 images are grey, and the run was trained on images in colour; skipped 2: "
    )


def test_a_picture_is_predicted_by_itself(
    run_copy: Path, folder: Path, split_digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = outputs(load_run(run_copy), split_digits.test.images[:24])
    picture = folder / "3.png"
    assert main(["predict", str(run_copy), str(picture)]) == 0
    said = f"{picture}: cluster {expected.clusters[3]}, confidence {expected.confidence[3]:.3f}\n"
    assert capsys.readouterr().out == said + f"{run_copy / 'predictions-3.csv'}\n"
    assert [row["file"] for row in rows(run_copy / "predictions-3.csv")] == [str(picture)]


def test_pictures_folders_and_arrays_go_together(run_copy: Path, folder: Path, split_digits: Dataset) -> None:
    images = split_digits.test.images
    np.save(folder.parent / "more.npy", images[24:30].numpy())
    given = (str(folder / "3.png"), str(folder / "7.png"), str(folder / "more"), str(folder.parent / "more.npy"))
    result = predict(Options(str(run_copy), given, batch_size=4))
    assert result["pictures"] == []
    expected = outputs(load_run(run_copy), images[:30])
    order = [3, 7, 20, 21, 22, 23, *range(24, 30)]
    table = rows(run_copy / "predictions-3-and-3-more.csv")
    names = [*given[:2], *(str(folder / "more" / f"{index}.png") for index in range(20, 24))]
    assert [row["file"] for row in table] == [*names, *(f"{given[3]}[{row}]" for row in range(6))]
    assert [int(row["cluster"]) for row in table] == expected.clusters[order].tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("4.jpg", "4.jpg' is not there; accepted are folders, pictures, .npy files and features; did you mean"),
        ("pipe", "pipe' is no folder and no file"),
        ("5a.png", "5a.png cannot be read: damaged or cut short"),
        ("notes.txt", "notes.txt cannot be read: empty"),
        ("photo.heic", "photo.heic cannot be read: "),
        ("colour.npy", "colour.npy has images in colour, and the run was trained on grey images"),
        ("words.npy", "words.npy': the array has shape [3]"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(
    name: str, says: str, run_copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(64))
    np.save(folder / "colour.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(folder / "words.npy", np.array(["a", "b", "c"]))
    assert main(["predict", str(run_copy), str(folder / name)]) == 2
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]
    assert not list(run_copy.glob("predictions*"))


def test_copies_of_pictures_of_one_name_are_kept_apart(run_copy: Path, folder: Path) -> None:
    for name in ("a", "b"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "1.png").write_bytes((folder / "1.png").read_bytes())
    pictures = tuple(str(folder.parent / name / "1.png") for name in ("a", "b"))
    target = folder.parent / "sorted"
    predict(Options(str(run_copy), pictures, sort_into=str(target)))
    assert sorted(path.name for path in target.rglob("*.png")) == ["1-2.png", "1.png"]
    array = folder.parent / "x.npy"
    np.save(array, np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(UserError, match="--sort-into copies files"):
        predict(Options(str(run_copy), (str(array),), sort_into=str(folder.parent / "other")))


@pytest.mark.parametrize(("bits", "factor"), [(12, 16), (None, 256)])
def test_wide_pixels_are_scaled_as_in_training(bits: int | None, factor: int, run_copy: Path, folder: Path) -> None:
    """The same picture in 8 bits and, ``factor`` times as bright, in 16, by a run that saw so many bits."""
    config = read_json(run_copy / CONFIG)
    (run_copy / CONFIG).write_text(json.dumps({**config, "pixel_bits": bits}))
    with Image.open(folder / "3.png") as image:
        pixels = np.asarray(image)
    wide = np.rint(pixels * (((1 << (bits or 16)) - 1) / 255)).astype(np.uint16)
    assert abs(int(wide.max()) - factor * int(pixels.max())) < factor
    Image.fromarray(wide).save(folder.parent / "wide.png")
    np.save(folder.parent / "wide.npy", wide[None])
    given = (str(folder / "3.png"), str(folder.parent / "wide.png"), str(folder.parent / "wide.npy"))
    result = predict(Options(str(run_copy), given))
    first, *others = rows(Path(result["files"][0]))
    assert [(row["cluster"], row["confidence"]) for row in others] == [(first["cluster"], first["confidence"])] * 2
    assert f"taken as {bits or 16} bits" in result["note"]
