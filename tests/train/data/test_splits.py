"""Which sub-folders of a user's folder are the train and the test split, and which are classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import layouts
import pytest

from imc.data import Dataset, load, splits
from imc.errors import UserError

PIXELS, _ = layouts.draw(1, 32, 3, 1)


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        layouts.write_image(folder / f"{name}.png", PIXELS[0])
    return folder


def files(data: Dataset) -> tuple[set[str], set[str] | None]:
    return set(data.train.files), None if data.test is None else set(data.test.files)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("test", ["test", "Test", "testing", "val", "VAL", "valid", "Validation", "dev"])
@pytest.mark.parametrize("beside", [(), ("extra/c", "docs/d"), ("stray",), ("other/e", "stray")])
def test_train_and_a_held_out_folder_are_the_splits_whatever_lies_beside(
    train: str, test: str, beside: tuple[str, ...], tmp_path: Path
) -> None:
    data = load(str(folder_with(tmp_path / "x", f"{train}/cat/a", f"{test}/cat/b", *beside)), labels_from_folders=True)
    assert files(data) == ({f"{train}/cat/a.png"}, {f"{test}/cat/b.png"})
    assert data.train.class_names == ("cat",)
    assert f"took {train!r} as train and {test!r} as test" in data.note
    assert ("left out what lies beside" in data.note) == bool(beside)
    for name in beside:
        assert ("1 image" if "/" not in name else repr(name.split("/")[0])) in data.note


def test_of_several_held_out_folders_the_first_is_taken_and_the_others_are_said(tmp_path: Path) -> None:
    data = load(str(folder_with(tmp_path / "x", "train/a", "val/b", "Test/c", "validation/d")))
    assert files(data) == ({"train/a.png"}, {"Test/c.png"})
    assert "left out what lies beside: 'val', 'validation'" in data.note
    folder_with(tmp_path / "x", *(f"{name}/x" for name in "abcd"))
    assert "left out what lies beside: 'a', 'b', 'c', 3 folders more" in load(str(tmp_path / "x")).note


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        (("train/a", "Train/b", "test/c"), "'Train' and 'train'"),
        (("train/a", "training/b", "val/c"), "'train' and 'training'"),
        (("train/a", "test/b", "TEST/c"), "'TEST' and 'test'"),
    ],
)
def test_two_folders_that_could_be_one_split_are_refused(names: tuple[str, ...], twice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{twice} could both be one split; rename or move one of them"):
        load(str(folder_with(tmp_path / "x", *names)))


def test_one_folder_as_both_splits_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", "train/a")
    (folder / "test").symlink_to("train", target_is_directory=True)
    with pytest.raises(UserError, match="'train' and 'test' are one folder, by a link"):
        load(str(folder))


@pytest.mark.parametrize(
    "names", [("train/a", "bus/b"), ("train/a", "stray"), ("test/a", "val/b"), ("trains/a", "test/b"), ("training",)]
)
def test_without_both_splits_every_folder_is_read(names: tuple[str, ...], tmp_path: Path) -> None:
    data = load(str(folder_with(tmp_path / "x", *names)))
    assert files(data) == ({f"{name}.png" for name in names}, None)
    assert "took" not in data.note


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("Training Set", "testing set"),
        ("train_images", "val_images"),
        ("TrainSet", "TestSet"),
        ("trainset", "devset"),
        ("TRAIN_DATA", "Valid_Data"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
        ("01-train", "01-validation"),
        ("my photos (train)", "my photos (test)"),
        ("train", "dev"),
        ("日本train", "日本test"),
    ],
)
def test_names_that_are_the_same_but_for_the_word_are_the_splits(train: str, test: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", f"{train}/cat/a", f"{test}/cat/b", "other/c")
    data = load(str(folder), labels_from_folders=True)
    assert files(data) == ({f"{train}/cat/a.png"}, {f"{test}/cat/b.png"})
    assert f"took {train!r} as train and {test!r} as test; left out what lies beside: 'other'" in data.note


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_images", "test"),
        ("train", "test_set"),
        ("bullet_train", "test_tube"),
        ("train_a", "test_b"),
        ("Train", "evaluation"),
        ("Train", "tset"),
        ("trian", "test"),
        ("cat", "val"),
        ("train-test", "cat"),
        ("restrained", "contest"),
        ("trainer", "tester"),
    ],
)
def test_names_that_are_no_pair_are_read_like_others_and_said(train: str, test: str, tmp_path: Path) -> None:
    data = load(str(folder_with(tmp_path / "x", f"{train}/a", f"{test}/b", "other/c")))
    assert files(data) == ({f"{train}/a.png", f"{test}/b.png", "other/c.png"}, None)
    of_splits = [name for name in sorted((train, test)) if (splits.WORD.search(name) and name != "train-test")]
    assert of_splits != [] or train in ("restrained", "trainer", "train-test")
    assert ("any other folder" in data.note) == bool(of_splits)
    if of_splits:
        few = f"folder{'s' * (len(of_splits) > 1)}"
        assert f"read {' and '.join(map(repr, of_splits))} as any other {few}: splits are two folders" in data.note


@pytest.mark.parametrize("place", ["images", "cat", "a/b"])
def test_splits_further_down_are_said(place: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", f"{place}/Train/a", f"{place}/val/b", "dog/c")
    sentence = (
        f"read '{place}/Train' and '{place}/val' as any other folders, since splits lie in the folder that is given"
    )
    assert sentence in load(str(folder)).note
    assert "any other" not in load(str(folder / place)).note
    (tmp_path / "y").mkdir()
    assert "any other" not in load(str(folder_with(tmp_path / "y", "a/train/b", "c/test/d"))).note


def test_two_pairs_of_splits_are_refused_unless_one_is_of_the_words_alone(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", "seg_train/a", "seg_test/b", "depth_train/a", "depth_test/b")
    with pytest.raises(UserError, match="'depth_train' and 'seg_train' could both be one split"):
        load(str(folder))
    assert files(load(str(folder_with(folder, "train/a", "test/b")))) == ({"train/a.png"}, {"test/b.png"})


@pytest.mark.parametrize("beside", ["unlabeled/b", "tset/b", "evaluation/b", "cat/b", "b"])
def test_a_train_folder_that_is_no_split_is_said(beside: str, tmp_path: Path) -> None:
    data = load(str(folder_with(tmp_path / "x", "Train/a", beside)))
    assert files(data) == ({"Train/a.png", f"{beside}.png"}, None)
    assert (
        "read 'Train' as any other folder: splits are two folders of one name, but for the word train or training"
        in (data.note)
    )


@pytest.mark.parametrize("name", ["train", "Training"])
def test_a_train_folder_alone_holds_the_classes(name: str, tmp_path: Path) -> None:
    data = load(str(folder_with(tmp_path / "x", f"{name}/cat/a", f"{name}/dog/b")), labels_from_folders=True)
    assert data.train.class_names == ("cat", "dog")
    assert data.test is None
    assert f"took {name!r} as train" in data.note


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_split_without_images_is_refused_with_the_reason(part: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", f"{'test' if part == 'train' else 'train'}/cat/a")
    (folder / part).mkdir()
    with pytest.raises(UserError, match=f"{part}': it holds no image that can be read; it is empty$"):
        load(str(folder))
    (folder / part / "notes.txt").touch()
    with pytest.raises(UserError, match=r"it holds no image that can be read; skipped 1: 1 no image by its suffix"):
        load(str(folder))


def test_a_folder_around_the_classes_is_no_class(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "x", "photos/cat/a", "photos/dog/b")
    with pytest.raises(UserError, match="finds one class, 'photos'; give the folder of the classes"):
        load(str(folder), labels_from_folders=True)
    assert load(str(folder / "photos"), labels_from_folders=True).train.class_names == ("cat", "dog")
    assert load(str(folder)).train.labels is None


def test_classes_that_may_not_be_meant_are_said(tmp_path: Path) -> None:
    accent = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    folder = folder_with(
        tmp_path / "x", "train/Cat/a", "train/dog/b", f"train/{accent[0]}/c", "test/cat/d", "test/dog/e"
    )
    folder_with(folder, f"test/{accent[1]}/f")
    (folder / "train" / "bird").mkdir()
    note = load(str(folder), labels_from_folders=True).note
    assert "1 folder without images, which is no class (such as 'bird')" in note
    assert "2 groups of classes that differ by case or spelling alone (such as " in note
    assert "4 classes in one split only (such as 'Cat')" in note
    assert "classes that" not in load(str(folder)).note


def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("imc.data.folder_sets.os.listdir", refuse)
    with pytest.raises(UserError, match=r"--data cannot use '.*': Permission denied"):
        load(str(folder_with(tmp_path / "x", "a")))
