"""A small training of the digits, in a forked process so that a hundred starts cost little, and what it left."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import imc.train
import imc.training.loop
from imc import cli
from imc.data import load
from imc.files.run_places import CHECKPOINT, METRICS, RESULT
from imc.training.checkpoint import read_checkpoint, write_checkpoint

DIGITS, EPOCHS, UPDATES = 500, 3, 15
COMMAND = [
    *("train", "--out", "run", "--threads", "1", "--epochs", str(EPOCHS), "--batch-size", "96"),
    *("--widths", "4", "8", "--pool-after", "1", "--small-crops", "2", "--prototypes", "100", "--clusters", "10"),
    *("--checkpoint-minutes", "1e-9"),  # after each update
]
FLAGS = len(COMMAND)  # after these prepare() puts the data
NOT_REPEATED = {"seconds", "train_seconds", "images_per_second"}
LIMIT = 120.0  # seconds after which a process counts as hanging
_RECORD = struct.Struct("q")


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: exit code, or minus the signal that killed it; None: it had to be killed because it hung.
        message: what it wrote to stderr.
        saved: the update of the last checkpoint that it had written completely, or None.
        seconds: from its start to its end.
    """

    code: int | None
    message: str
    saved: int | None
    seconds: float

    @property
    def sentence(self) -> str:
        """The line for the user, if there is one and nothing like a traceback."""
        lines = [line for line in self.message.splitlines() if line.startswith("imc train: ")]
        return lines[-1] if len(lines) == 1 and "Traceback" not in self.message else ""


def prepare(folder: Path) -> Ended:
    """Write the images, run once in a child, and import here what it imported there: later children start at once."""
    data = folder / "digits.npy"
    np.save(data, load("digits").train.images[:DIGITS].numpy())
    COMMAND[FLAGS:] = ["--data", str(data)]
    names = folder / "modules"

    def note_imports() -> None:
        command = cli.main

        def noting(argv: Sequence[str]) -> int:
            code = command(argv)
            names.write_text("\n".join(sys.modules))
            return code

        cli.main = noting  # type: ignore[assignment]

    ended = Process(folder / "whole", sabotage=note_imports).wait()
    if ended.code != 0:
        raise SystemExit(f"the run of this test fails by itself: {ended.message}")
    for name in names.read_text().split():
        if name.split(".")[0] != "__main__":
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    return ended


class Process:
    """``imc train`` in a child of this process.

    Args:
        folder: its working directory.
        extra: further options.
        sabotage: called in the child before the command.
        environment: variables of the child.
    """

    def __init__(
        self,
        folder: Path,
        *extra: str,
        sabotage: Callable[[], object] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.start = folder, time.monotonic()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed when its text has been read
        self.records, end = os.pipe()
        os.set_blocking(self.records, False)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.chdir(folder)
                os.dup2(self.log.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.environ.update(environment or {})
                _record_checkpoints(end)
                if sabotage is not None:
                    sabotage()
                code = cli.main([*COMMAND, *extra])
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(end)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, limit: float = LIMIT) -> Ended:
        """Wait for its end; one that hangs is killed."""
        deadline, hung, status = time.monotonic() + limit, False, 0
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                hung = True
                os.kill(self.pid, 9)
                _, status = os.waitpid(self.pid, 0)
                break
            time.sleep(0.002)
        seconds = time.monotonic() - self.start
        return Ended(None if hung else os.waitstatus_to_exitcode(status), self._message(), self._last_record(), seconds)

    def _message(self) -> str:
        with self.log:
            self.log.seek(0)
            return self.log.read().decode(errors="replace")

    def _last_record(self) -> int | None:
        content = b""
        try:
            while part := os.read(self.records, 1 << 16):
                content += part
        except BlockingIOError:
            pass
        os.close(self.records)
        return _RECORD.unpack(content[-_RECORD.size :])[0] if content else None


def _record_checkpoints(end: int) -> None:
    """Tell the parent of every checkpoint once it is written."""

    def recording(folder: Path, content: dict[str, Any]) -> None:
        write_checkpoint(folder, content)
        os.write(end, _RECORD.pack(content["update"]))

    imc.training.loop.write_checkpoint = recording  # type: ignore[attr-defined]


def left_by(folder: Path) -> dict[str, Any]:
    """Everything in the folder of a run, but for its times."""
    content: dict[str, Any] = {}
    for path in sorted((folder / "run").iterdir()):
        if path.name == CHECKPOINT:
            checkpoint = read_checkpoint(path.parent) or {}
            content[path.name] = _timeless(checkpoint)
        elif path.name in (METRICS, RESULT):
            content[path.name] = [_timeless(x) for x in _objects(path)]
        else:
            content[path.name] = path.read_bytes()
    return content


def _objects(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(text)] if path.name == RESULT else [json.loads(line) for line in text.splitlines()]


def _timeless(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in NOT_REPEATED}


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two contents differ in a bit, or nothing."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return "" if a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((found for key in a if (found := difference(a[key], b[key], f"{where}/{key}"))), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := difference(x, y, f"{where}/{i}"))), "")
    return "" if a == b else where


def torchrun(folder: Path, world: int, *extra: str) -> subprocess.Popen[str]:
    """The same run under torchrun, a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    command = [sys.executable, *launcher, "--rdzv-endpoint=127.0.0.1:0", "-m", "imc.train", *COMMAND[1:], *extra]
    with (folder / "torchrun.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()
