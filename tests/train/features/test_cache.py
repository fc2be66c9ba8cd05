from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imc.errors import UserError
from imc.features.cache import FeatureCache, digest_of, features_folder

IDENTITY: dict[str, Any] = {"encoder": "small", "side": 8}
WIDTH = 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def digests(*names: str) -> list[bytes]:
    return [digest_of(name.encode()) for name in names]


def rows(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def fill(names: str, seed: int = 0) -> None:
    with FeatureCache(IDENTITY, WIDTH) as cache:
        cache.add(digests(*names), rows(len(names), seed))


def found(names: str) -> list[Any]:
    with FeatureCache(IDENTITY, WIDTH) as cache:
        return [cache.find(digest) for digest in digests(*names)]


def test_what_was_added_is_found_by_the_next_process(folder: Path) -> None:
    assert features_folder() == folder
    fill("ab")
    fill("c", seed=1)
    assert np.array_equal(found("abc"), [*rows(2), *rows(1, seed=1)])
    assert found("d") == [None]


def test_rows_are_added_batch_by_batch() -> None:
    with FeatureCache(IDENTITY, WIDTH) as cache:
        for number, name in enumerate("abc"):
            cache.add(digests(name), rows(1, seed=number))
            assert np.array_equal(found(name), rows(1, seed=number))  # by another process, meanwhile


def test_another_encoder_finds_nothing() -> None:
    fill("a")
    with FeatureCache({**IDENTITY, "side": 9}, WIDTH) as cache:
        assert cache.find(digests("a")[0]) is None
    with FeatureCache(IDENTITY, WIDTH + 1) as cache:
        assert cache.find(digests("a")[0]) is None


@pytest.mark.parametrize("kind", ["rows", "keys"])
def test_a_file_cut_anywhere_gives_whole_rows_or_none(kind: str, folder: Path, tmp_path: Path) -> None:
    fill("abc")
    (path,) = folder.glob(f"*/*.{kind}")
    content, expected, kept = path.read_bytes(), rows(3), []
    for size in range(len(content)):
        path.write_bytes(content[:size])
        result = found("abc")
        kept.append(sum(row is not None for row in result))
        for row, right in zip(result, expected, strict=True):
            assert row is None or np.array_equal(row, right)
    assert kept == [3 * size // len(content) for size in range(len(content))]


def test_a_damaged_row_is_none(folder: Path) -> None:
    fill("abc")
    (path,) = folder.glob("*/*.rows")
    content = bytearray(path.read_bytes())
    content[4 * WIDTH] ^= 1
    path.write_bytes(content)
    result = found("abc")
    assert result[1] is None
    assert np.array_equal([result[0], result[2]], rows(3)[[0, 2]])
    fill("b", seed=7)
    assert np.array_equal(found("b"), rows(1, seed=7))


def test_keys_without_rows_are_none(folder: Path) -> None:
    fill("abc")
    for path in folder.glob("*/*.rows"):
        path.unlink()
    assert found("abc") == [None] * 3


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        UserError, match=r"the folder of features, .* cannot be used: .*; set IMC_CACHE to another folder"
    ):
        FeatureCache(IDENTITY, WIDTH)


def test_a_full_disk_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with FeatureCache(IDENTITY, WIDTH) as cache, Path("/dev/full").open("wb", buffering=0) as full:
        cache._own = (full, full)
        with pytest.raises(UserError, match="cannot be used: No space left on device"):
            cache.add(digests("a"), rows(1))
