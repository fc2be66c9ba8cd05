"""What is no image of the user's in a folder: hidden and system entries, and what imc wrote there itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import layouts
import pytest

from imc.config import Config
from imc.data import load
from imc.data.converted import Converted
from imc.data.folders import Skipped, decode_folder
from imc.data.ignored import is_hidden, mark_output
from imc.data.pixel_bits import PixelBits
from imc.errors import UserError
from imc.runs.data import require_apart

PIXELS, _ = layouts.draw(3, 32, 3, 1)
HIDDEN = (
    *(".ipynb_checkpoints", ".thumbnails", ".Trash-1000", ".Trashes", ".git", ".dtrash", ".picasaoriginals", "._x.png"),
    *("@eaDir", "@EADIR", "#recycle", "#Recycle", "$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "__MACOSX", "lost+found"),
    *("System Volume Information", "LOST.DIR", ".@__thumb", "@Recently-Snapshot", ".AppleDouble", "FOUND.000"),
    *("FOUND.013", "found.999", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder", "Config.Msi"),
    *("$WinREAgent", "$SysReset", "$Extend", "$Windows.~BT", "msdownld.tmp", "@appstore", "site-packages"),
    *("Photos Library.photoslibrary", "Catalog Previews.lrdata", "Catalog Smart Previews.lrdata", "x.app"),
)
KEPT = (
    *("#sunset", "@home", "$cash", "recycle", "MACOSX", "lost", "trash", "_private", "a.b", "images", "~old", "run"),
    *("found.1", "found.0000"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for index, name in enumerate(("cat/1", "dog/2")):
        layouts.write_image(folder / f"{name}.png", PIXELS[index])
    return folder


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("place", [".", "cat"])
def test_what_is_hidden_is_left_out_and_counted(name: str, place: str, photos: Path) -> None:
    path = photos / place / name
    layouts.write_image(path if path.suffix == ".png" else path / "deep" / "x.png", PIXELS[2])
    data = load(str(photos), labels_from_folders=True)
    assert data.train.files == ("cat/1.png", "dog/2.png")
    assert data.train.class_names == ("cat", "dog")
    assert "skipped 1: 1 hidden or system file or folder, read only where one is itself what is given" in data.note
    assert repr(str(Path(place) / name)) in data.note
    skipped = Skipped()
    decoded = decode_folder(photos, 8, 3, skipped, Converted(8, 3), PixelBits())
    assert [name for name, _ in decoded] == ["cat/1.png", "dog/2.png"]
    assert skipped.count == 1


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_hidden_is_read(name: str, photos: Path) -> None:
    layouts.write_image(photos / name / "x.png", PIXELS[2])
    data = load(str(photos), labels_from_folders=True)
    assert name in data.train.class_names
    assert "skipped" not in data.note


@pytest.mark.parametrize("name", [*(name for name in HIDDEN if name != "._x.png"), ".cache/photos"])
def test_a_hidden_folder_that_is_given_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_image(tmp_path / name / "x.png", PIXELS[0])
    assert load(str(tmp_path / name)).train.files == ("x.png",)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(f"~/{name}").train.files == ("x.png",)
    monkeypatch.chdir(tmp_path / name)
    assert load(".").train.files == ("x.png",)


def test_a_folder_of_hidden_images_alone_says_how_they_are_read(tmp_path: Path) -> None:
    layouts.write_image(tmp_path / "photos" / ".all" / "x.png", PIXELS[0])
    with pytest.raises(UserError, match=r"skipped 1: 1 hidden .*, read only where one is itself what is given"):
        load(str(tmp_path / "photos"))


def test_hidden_entries_decide_nothing_about_splits(photos: Path) -> None:
    (photos / "cat").rename(photos / "train")
    (photos / "dog").rename(photos / "test")
    layouts.write_image(photos / ".ipynb_checkpoints" / "x.png", PIXELS[2])
    layouts.write_image(photos / "train" / "@eaDir" / "x.png", PIXELS[2])
    data = load(str(photos))
    assert (data.train.files, data.test.files) == (("train/1.png",), ("test/2.png",))
    assert "left out" not in data.note


@pytest.mark.parametrize("place", ["runs/photos", "cat/run", "other"])
def test_folders_of_runs_are_never_read(place: str, photos: Path) -> None:
    for name in ("gallery.png", "figures/embeddings.png", "report/x.png"):
        layouts.write_image(photos / place / name, PIXELS[2])
    (photos / place / "config.json").write_text(json.dumps(Config().to_dict()))
    data = load(str(photos), labels_from_folders=True)
    assert data.train.files == ("cat/1.png", "dog/2.png")
    assert f"1 of imc's own output (such as {place!r})" in data.note
    with pytest.raises(UserError, match="it is the folder of a run, whose figures are no images"):
        load(str(photos / place))


@pytest.mark.parametrize("content", ['{"model_type": "vit"}', "[]", "not json", ""])
def test_another_programs_config_hides_no_image(content: str, photos: Path) -> None:
    (photos / "cat" / "config.json").write_text(content)
    assert len(load(str(photos)).train.files) == 2


@pytest.mark.parametrize(
    ("figure", "table"), [("clusters-sweep.png", "clusters-sweep.json"), ("accuracy-by-images.png", "summary.json")]
)
def test_figures_over_several_runs_are_left_out_and_what_lies_beside_them_is_read(
    figure: str, table: str, photos: Path
) -> None:
    layouts.write_image(photos / figure, PIXELS[2])
    assert len(load(str(photos)).train.files) == 3
    (photos / table).write_text("{}")
    assert load(str(photos)).train.files == ("cat/1.png", "dog/2.png")


def test_sorted_copies_are_read_only_if_given_themselves(photos: Path) -> None:
    layouts.write_image(photos / "sorted" / "3" / "x.png", PIXELS[2])
    mark_output(photos / "sorted")
    assert load(str(photos)).train.files == ("cat/1.png", "dog/2.png")
    assert load(str(photos / "sorted")).train.files == ("3/x.png",)


@pytest.mark.parametrize(
    ("out", "apart"), [(".", False), ("cat", False), ("..", True), ("new", True), ("cat/new", True)]
)
def test_a_run_does_not_write_among_the_images(out: str, apart: bool, photos: Path) -> None:
    data = load(str(photos))
    if apart:
        require_apart(photos / out, str(photos), data)
        return
    with pytest.raises(UserError, match=r"--out .* holds images of --data .*; give another --out, such as .*run"):
        require_apart(photos / out, str(photos), data)


def test_a_folder_goes_by_its_own_path_where_a_link_leads_to_it_too(photos: Path) -> None:
    for name in ("aaa", "zzz"):
        (photos / name).symlink_to(photos / "cat", target_is_directory=True)
    (photos / "outside").symlink_to(photos.parent / "elsewhere", target_is_directory=True)
    layouts.write_image(photos.parent / "elsewhere" / "x.png", PIXELS[2])
    data = load(str(photos))
    assert data.train.files == ("cat/1.png", "dog/2.png", "outside/x.png")
    assert "2 folders that a link leads to again (such as 'aaa')" in data.note


def test_a_replaced_image_of_the_same_size_and_date_is_decoded_anew(photos: Path) -> None:
    first, second = photos / "cat" / "1.bmp", photos.parent / "2.bmp"
    for path, pixels in ((first, PIXELS[0]), (second, PIXELS[2])):
        layouts.write_image(path, pixels)
        os.utime(path, ns=(1, 1))
    before = load(str(photos)).train.images[0].clone()
    shutil.copy2(second, first)
    assert first.stat().st_mtime_ns == 1
    assert (load(str(photos)).train.images[0] != before).any()


def test_names_are_hidden_in_any_case() -> None:
    assert all(is_hidden(name) and is_hidden(name.upper()) for name in HIDDEN)
    assert not any(map(is_hidden, KEPT))
