"""Faults of a run of one process: killed, stopped, out of disk, with a checkpoint that is damaged."""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imc.errors import UserError
from imc.files.run_places import CHECKPOINT
from imc.training.checkpoint import read_checkpoint
from imc.training.loop import Loop
from torture.runs import UPDATES, Process, difference
from torture.table import Bench, Row

PIECE = 64 * 1024  # bytes


def killed_at_random(bench: Bench) -> Row:
    """kill -9 at moments drawn over the whole length of a run, its start and its report too."""
    row, draw = Row("kill -9", "at moments drawn over a run's whole length"), random.Random(0)
    before = 0
    for number in range(bench.times(50)):
        folder = bench.folder / str(number)
        process = Process(folder)
        time.sleep(draw.uniform(0, bench.seconds))
        process.kill(signal.SIGKILL)
        before += row.held(folder, process.wait()) is None
        row.finishes(folder, bench.whole)
        row.tried += 1
    row.notes.append(f"{before} of them before the first checkpoint")
    return row


def killed_again_and_again(bench: Bench) -> Row:
    """kill -9, then of the resumed run, until one reaches the end."""
    row, draw = Row("kill -9 of the resumed run too", "until one reaches the end"), random.Random(1)
    for number in range(bench.times(5)):
        folder = bench.folder / str(number)
        while True:
            process = Process(folder, "--resume")
            time.sleep(draw.uniform(0, bench.seconds))
            process.kill(signal.SIGKILL)
            ended = process.wait()
            if ended.code == 0:
                break
            row.held(folder, ended)
            row.tried += 1
        row.finishes(folder, bench.whole, ended)
    return row


def die_at(event: int) -> Callable[[], None]:
    """Kill this process at an event of its writing: a piece of a file, before or after an fsync, or after a rename."""

    def sabotage() -> None:
        count = itertools.count()

        def happens() -> None:
            if next(count) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        class Pieces(io.FileIO):
            def write(self, content: Any) -> int:
                view = memoryview(content).cast("B")
                for start in range(0, len(view), PIECE):
                    super().write(view[start : start + PIECE])
                    happens()
                return len(view)

        opened, fsync, replace = pathlib.Path.open, os.fsync, os.replace

        def open_in_pieces(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            whole = mode != "wb" or not path.name.endswith(".tmp")
            return opened(path, mode, *arguments, **options) if whole else Pieces(path, "w")

        def fsync_with_events(number: int) -> None:
            happens()
            fsync(number)
            happens()

        def replace_with_events(*arguments: Any) -> None:
            replace(*arguments)
            happens()

        pathlib.Path.open = open_in_pieces  # type: ignore[assignment, method-assign]
        os.fsync = fsync_with_events
        os.replace = replace_with_events  # type: ignore[assignment]

    return sabotage


def killed_while_writing(bench: Bench) -> Row:
    """kill -9 at each event of writing the first files, then at some later ones."""
    row = Row("kill -9 while a file is written", "after every 64 KiB, around each fsync, after each rename")
    inside = 0
    for event in itertools.chain(range(bench.times(30)), range(30, 30 + bench.times(70), 7)):
        folder = bench.folder / str(event)
        ended = Process(folder, sabotage=die_at(event)).wait()
        if ended.code != -signal.SIGKILL:
            row.crashed(f"event {event} did not come: {ended.code} {ended.message[-300:]}")
            continue
        inside += (folder / "run" / f"{CHECKPOINT}.tmp").exists()
        row.held(folder, ended)
        row.finishes(folder, bench.whole)
        row.tried += 1
    row.notes.append(f"{inside} of them with a checkpoint half written")
    return row


def told_to_stop(bench: Bench, number: int, fault: str, seed: int) -> Row:
    row, draw = Row(fault, "at moments drawn over a run's whole length"), random.Random(seed)
    saved = 0
    for trial in range(bench.times(12)):
        folder = bench.folder / str(trial)
        process = Process(folder)
        time.sleep(draw.uniform(0, bench.seconds))
        process.kill(number)
        ended = process.wait()
        if ended.code == 130 and "continue with: imc train" in ended.sentence:
            saved += 1
        elif ended.code not in (0, -number) and not (ended.code == 130 and ended.sentence):
            row.crashed(f"{folder.name} ended with {ended.code}: {ended.message[-800:]}")
        row.held(folder, ended)
        row.finishes(folder, bench.whole)
        row.tried += 1
    row.notes.append(f"{saved} of them between the first update and the last, which saved at once")
    return row


def terminated(bench: Bench) -> Row:
    return told_to_stop(bench, signal.SIGTERM, "SIGTERM", 2)


def interrupted(bench: Bench) -> Row:
    return told_to_stop(bench, signal.SIGINT, "Ctrl-C", 3)


def disk_full(bench: Bench) -> Row:
    """Runs on file systems of many sizes, in a namespace of their own, where anybody may mount one."""
    if "IMC_TORTURE_MOUNTS" in os.environ:
        return _small_disks(bench)
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*namespace, sys.executable, "-m", "torture", "disk_full", "--share", str(bench.share), "--json"]
    environment = os.environ | {"IMC_TORTURE_MOUNTS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not result.stdout.strip():
        raise SystemExit(
            f"disk_full needs a system whose users may mount a file system: {result.stderr.strip()[-800:]}"
        )
    return Row(**json.loads(result.stdout.splitlines()[-1]))


def _small_disks(bench: Bench) -> Row:
    row = Row("disk full", "on file systems of sizes from nothing to nearly enough; then given space and resumed")
    bench.folder.mkdir(parents=True)
    for kib in range(4, 1 << 20, 4 * round(12 / bench.share)):
        disk = bench.folder / str(kib)
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", disk], check=True)
        folder = disk / "here"
        ended = Process(folder).wait()
        if ended.code != 0:
            row.tried += 1
            if ended.code not in (1, 2) or "No space left on device" not in ended.sentence:
                row.crashed(f"{kib} KiB: ended with {ended.code}: {ended.message[-800:]}")
            row.held(folder, ended)
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            row.finishes(folder, bench.whole)
        subprocess.run(["umount", disk], check=True)
        if ended.code == 0:
            break
    row.notes.append(f"enough are {kib:,} KiB")
    return row


def damaged_checkpoint(bench: Bench) -> Row:
    """Cut, flipped and half-written checkpoints: refused by a sentence, or read as what was written."""
    row, draw = Row("a damaged checkpoint", "cut short, a bit flipped, or half an older one"), random.Random(4)
    contents = []
    for update in (UPDATES // 2, UPDATES // 2 + 1):
        folder = bench.folder / str(update)
        Process(folder, sabotage=stop_after(update)).wait()
        contents.append((folder / "run" / CHECKPOINT).read_bytes())
    old, new = contents
    exact = read_checkpoint(folder / "run")
    tries = [new[: draw.randrange(len(new))] for _ in range(bench.times(200))]
    for _ in range(bench.times(1000)):
        flipped, place = bytearray(new), draw.randrange(len(new))
        flipped[place] ^= 1 << draw.randrange(8)
        tries.append(bytes(flipped))
    differing = [place for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    for _ in range(bench.times(200)):
        place = draw.randrange(differing[0] + 1, differing[-1] + 1)
        tries.append(new[:place] + old[place:])
    harmless, path = 0, folder / "run" / CHECKPOINT
    for content in tries:
        path.write_bytes(content)
        row.tried += 1
        try:
            found = read_checkpoint(folder / "run")
        except UserError:
            continue
        except Exception as error:
            row.crashed(repr(error))
            continue
        harmless += not difference(found, exact)
        row.wrong += bool(difference(found, exact))
    row.notes.append(f"{row.tried - harmless - row.wrong:,} refused, {harmless} changed no value and were read")
    path.write_bytes(tries[0])
    refused = Process(folder, "--resume").wait()
    if refused.code != 2 or "is no checkpoint that can be read" not in refused.sentence:
        row.crashed(f"ended with {refused.code}: {refused.message[-800:]}")
    path.write_bytes(new)
    row.finishes(folder, bench.whole)
    return row


def stop_after(update: int) -> Callable[[], None]:
    """Send this process a SIGTERM while it makes an update."""

    def sabotage() -> None:
        step = Loop.train_step

        def stopped(self: Loop, *arguments: Any) -> None:
            step(self, *arguments)
            if self.update == update:
                os.kill(os.getpid(), signal.SIGTERM)

        Loop.train_step = stopped  # type: ignore[method-assign]

    return sabotage
