"""Tensors out of files that hold anything else besides: found by name, equal, and nothing run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imc.files.tensors import read_tensors


class Options(dict):  # type: ignore[type-arg]
    """A dict with attributes, as training programs keep their options in."""

    __getattr__ = dict.get


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))


def checkpoint() -> dict[str, Any]:
    """A state dict among what training programs save beside it."""
    optimizer = torch.optim.Adam(module().parameters())
    return {
        "state_dict": module().state_dict(),
        "step": torch.tensor(3),
        "args": argparse.Namespace(out=Path("/somewhere"), lr=0.1, device=torch.device("cpu"), dtype=torch.float16),
        "options": Options(depth=18, nested=Options(width=1)),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "classes": {"of a set", ("and", "tuples")},
        "counts": collections.defaultdict(list, {"a": [1]}),
        "optimizer": optimizer.state_dict(),
        "whole": optimizer,
        "function": torch.nn.functional.relu,
    }


Write = Callable[[object, Path], object]


def by_pickle(protocol: int) -> Write:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


def by_torch(archive: bool, protocol: int = 2) -> Write:
    return lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=archive, pickle_protocol=protocol
    )


WRITERS = {
    **{f"torch-{protocol}": by_torch(True, protocol) for protocol in (2, 3, 4, 5)},
    **{f"torch-before-1.6-{protocol}": by_torch(False, protocol) for protocol in (2, 4)},
    **{f"pickle-{protocol}": by_pickle(protocol) for protocol in (2, 3, 4, 5)},
}


def require_equal(path: Path, prefix: str, names: Callable[[str], str] = str) -> None:
    found = read_tensors(path)
    for name, expected in module().state_dict().items():
        stored = found[prefix + names(name)]
        assert stored.shape == tuple(expected.shape)
        assert torch.equal(stored.read(), expected)
        assert stored.read().dtype == expected.dtype


@pytest.mark.parametrize("writer", WRITERS)
def test_a_state_dict_beside_anything(writer: str, tmp_path: Path) -> None:
    WRITERS[writer](checkpoint(), tmp_path / "x")
    require_equal(tmp_path / "x", "state_dict.")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_whole_module(writer: str, tmp_path: Path) -> None:
    WRITERS[writer]({"model": module()}, tmp_path / "x")
    require_equal(tmp_path / "x", "model.")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_numpy(protocol: int, tmp_path: Path) -> None:
    arrays = {name: x.numpy() for name, x in module().state_dict().items()}
    (tmp_path / "x").write_bytes(pickle.dumps({"model": arrays, "author": "somebody"}, protocol))
    require_equal(tmp_path / "x", "model.")


def test_arrays_in_any_order_of_memory_and_bytes(tmp_path: Path) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    forms = {"fortran": np.asfortranarray(array), "swapped": array.astype(">f4"), "part": array[:, ::2]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(forms, 4))
    np.savez(tmp_path / "x.npz", **forms)
    for file in ("x.pkl", "x.npz"):
        found = read_tensors(tmp_path / file)
        assert {name: x.read().tolist() for name, x in found.items()} == {name: x.tolist() for name, x in forms.items()}


def test_safetensors_npz_and_torchscript(tmp_path: Path) -> None:
    state = module().state_dict()
    save_file(state, tmp_path / "safetensors")
    np.savez(tmp_path / "x.npz", **{name: x.numpy() for name, x in state.items()})
    scripted: Any = torch.jit.script(module())
    scripted.save(str(tmp_path / "scripted"))
    for file in ("safetensors", "x.npz", "scripted"):
        require_equal(tmp_path / file, "")


@pytest.mark.parametrize("archive", [True, False])
def test_views_of_storages(archive: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    views = {
        "all": base,
        "turned": base.view(4, 6).t(),
        "part": base[5:9],
        "repeated": base[:1].expand(3, 2),
        "empty": torch.empty(0, 3),
        "single": torch.tensor(7.0),
        "parameter": nn.Parameter(base[2:4]),
    }
    torch.save(views, tmp_path / "x", _use_new_zipfile_serialization=archive)
    found = read_tensors(tmp_path / "x")
    assert {name: x.read().tolist() for name, x in found.items()} == {name: x.tolist() for name, x in views.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_the_dtype_is_the_files(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"x": torch.tensor([0, 1, 1]).to(dtype)}, tmp_path / "x")
    assert torch.equal(read_tensors(tmp_path / "x")["x"].read(), torch.tensor([0, 1, 1]).to(dtype))


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_run(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[writer]({"a": Payload(), "state_dict": module().state_dict(), "z": Payload()}, tmp_path / "x")
    require_equal(tmp_path / "x", "state_dict.")
    assert not Path("executed").exists()
    pickle.loads(pickle.dumps(Payload()))  # what pickle does with it
    assert Path("executed").exists()


def test_what_refers_to_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"x": torch.ones(1)}
    content["self"] = [content]
    torch.save(content, tmp_path / "x")
    assert list(read_tensors(tmp_path / "x")) == ["x"]


# A dict whose key is a tuple of pairs of itself 60 times over, lists nested 200,000 deep, a memo of 2^32 entries.
HOSTILE = {
    "hashed for years": b"\x80\x02}" + b"(" + b"K\x01" + b"".join(b"2\x86" for _ in range(60)) + b"K\x02u.",
    "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "no operand": b"\x80\x02R.",
    "long text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end_soon(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(HOSTILE[name])
    damaged = name in ("no operand", "long text")
    with pytest.raises(ValueError, match="it is damaged, or no pickle") if damaged else contextlib.nullcontext():
        assert read_tensors(tmp_path / "x") == {}


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "x", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, content[:8] if entry.filename.endswith("data/0") else content)
    with pytest.raises(ValueError, match="a tensor is larger than what it is stored in"):
        read_tensors(tmp_path / "x")["x"].read()


@pytest.mark.parametrize("archive", [True, False])
def test_many_views_of_one_storage_are_read_once(archive: bool, tmp_path: Path) -> None:
    base = torch.arange(1 << 22, dtype=torch.float32)
    torch.save(list(base.split(1 << 13)), tmp_path / "x", _use_new_zipfile_serialization=archive)
    start = time.process_time()
    found = read_tensors(tmp_path / "x")
    assert torch.equal(torch.cat([x.read() for x in found.values()]), base)
    assert time.process_time() - start < 2  # 512 times 16 MB would take longer


def test_a_number_that_is_repeated_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "x")
    with pytest.raises(ValueError, match="a tensor is larger than what it is stored in"):
        read_tensors(tmp_path / "x")["x"].read()


@pytest.mark.parametrize("damage", ["sum", "record"])
def test_a_damaged_record_is_a_sentence(damage: str, tmp_path: Path) -> None:
    torch.save({"x": torch.full((1000,), 1.25)}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    at = content.index(torch.tensor(1.25).numpy().tobytes())
    broken = content[:at] + b"\1" + content[at + 1 :] if damage == "sum" else content.replace(b"data/0", b"data/9")
    (tmp_path / "x").write_bytes(broken)
    with pytest.raises(ValueError, match="it is damaged: a tensor cannot be read"):
        read_tensors(tmp_path / "x")["x"].read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no file of tensors"),
        (b"some text", "no file of tensors"),
        (b"<!DOCTYPE html>", "no file of tensors; accepted are what torch.save or pickle wrote"),
        (b"version https://git-lfs.github.com/spec/v1\n", "only a pointer of Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no file of tensors"),
        (b"PK\x03\x04" + bytes(100), "damaged, or no file of tensors"),
        (b"\x80\x02", "damaged, or no pickle"),
        (bytes(8) + b"{}", "damaged, or no file of tensors"),
    ],
)
def test_other_files_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_tensors(tmp_path / "x")
