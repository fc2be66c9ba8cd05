"""Faults of a run of several processes: one killed, one stalled, all told to stop."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from imc.files.run_places import CHECKPOINT
from imc.training.checkpoint import read_checkpoint
from torture.runs import LIMIT, UPDATES, Ended, Process, left_by, torchrun
from torture.table import Bench, Row

TIMEOUT = 8  # seconds, --rank-timeout
OPTIONS = ("--rank-timeout", str(TIMEOUT))
WORLDS = (2, 3)


def start(folder: Path, world: int, *extra: str) -> list[Process]:
    """The ranks of a run, as torchrun would start them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    names = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    return [Process(folder, *OPTIONS, *extra, environment=environment) for environment in names]


def wait_for_update(folder: Path, update: int) -> None:
    """Until the run's checkpoint is of this update or a later one."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if (folder / "run" / CHECKPOINT).exists() and (read_checkpoint(folder / "run") or {})["update"] >= update:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{folder} does not reach update {update}")


def wholes(bench: Bench, row: Row) -> dict[int, dict[str, object]]:
    """What the undisturbed run of each number of ranks leaves."""
    result = {}
    for world in WORLDS:
        folder = bench.folder / f"whole-{world}"
        ended = [process.wait() for process in start(folder, world)]
        if any(end.code for end in ended):
            row.crashed(f"{world} ranks end with {[end.message[-800:] for end in ended]}")
        result[world] = left_by(folder)
    return result


def finishes(row: Row, folder: Path, world: int, whole: dict[str, object]) -> None:
    """Resume on as many ranks and compare."""
    ended = [process.wait() for process in start(folder, world, "--resume")]
    worst = next((end for end in ended if end.code), ended[0])
    row.finishes(folder, whole, worst)


def one_is_hit(bench: Bench, row: Row, number: int, seed: int) -> Row:
    draw, slowest = random.Random(seed), 0.0
    reference = wholes(bench, row)
    for world in WORLDS:
        for trial in range(bench.times(5)):
            folder, victim = bench.folder / f"{world}-{trial}", draw.randrange(world)
            ranks = start(folder, world)
            wait_for_update(folder, draw.randrange(1, UPDATES - 2))
            ranks[victim].kill(number)
            hit = time.monotonic()
            others = [rank.wait() for position, rank in enumerate(ranks) if position != victim]
            slowest = max(slowest, time.monotonic() - hit)
            ranks[victim].kill(signal.SIGKILL)
            gone = ranks[victim].wait()
            for ended in others:
                if ended.code != 1 or "another rank ended or did not answer" not in ended.sentence:
                    row.crashed(f"{folder.name} ended with {ended.code}: {ended.message[-800:]}")
            row.held(folder, _first(victim, gone, others))
            finishes(row, folder, world, reference[world])
            row.tried += 1
    row.notes.append(f"the others ended within {slowest:.1f} s")
    return row


def _first(victim: int, gone: Ended, others: list[Ended]) -> Ended:
    return gone if victim == 0 else others[0]


def rank_killed(bench: Bench) -> Row:
    row = Row("kill -9 of one of 2 and 3 ranks", "any rank, at any update")
    return one_is_hit(bench, row, signal.SIGKILL, 5)


def rank_stalled(bench: Bench) -> Row:
    row = Row("one of 2 and 3 ranks stalled", f"SIGSTOP of any rank at any update, `--rank-timeout {TIMEOUT}`")
    return one_is_hit(bench, row, signal.SIGSTOP, 6)


def ranks_terminated(bench: Bench) -> Row:
    """What a scheduler does: SIGTERM to every rank, or to one."""
    row, draw = Row("SIGTERM to one or all of 2 and 3 ranks", "at any update"), random.Random(7)
    reference = wholes(bench, row)
    for world in WORLDS:
        for trial in range(bench.times(4)):
            folder = bench.folder / f"{world}-{trial}"
            ranks = start(folder, world)
            wait_for_update(folder, draw.randrange(1, UPDATES - 4))
            for rank in ranks if trial % 2 else [draw.choice(ranks)]:
                rank.kill(signal.SIGTERM)
            ended = [rank.wait() for rank in ranks]
            for end in ended:
                if end.code != 130 or "continue with: imc train" not in end.sentence:
                    row.crashed(f"{folder.name} ended with {end.code}: {end.message[-800:]}")
            row.held(folder, ended[0])
            finishes(row, folder, world, reference[world])
            row.tried += 1
    return row


def under_torchrun(bench: Bench) -> Row:
    """The same three with torchrun as the parent, which ends what is left."""
    row, seconds = Row("the same under torchrun", "a rank killed, a rank stalled, SIGTERM to torchrun"), []
    reference = wholes(bench, row)[2]
    hits: dict[str, Callable[[int, int], None]] = {
        "killed": lambda _, rank: os.kill(rank, signal.SIGKILL),
        "stalled": lambda _, rank: os.kill(rank, signal.SIGSTOP),
        "terminated": lambda launcher, _: os.kill(launcher, signal.SIGTERM),
    }
    for name, hit in hits.items():
        folder = bench.folder / name
        launcher = torchrun(folder, 2, *OPTIONS)
        wait_for_update(folder, 2)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        hit(launcher.pid, int(children[-1]))
        at = time.monotonic()
        code = launcher.wait(LIMIT)
        seconds.append(f"{name} {time.monotonic() - at:.1f} s")
        text = (folder / "torchrun.log").read_text()
        if not code or ("did not answer" not in text and "continue with: imc train" not in text):
            row.crashed(f"{name} ended with {code}: {text[-800:]}")
        row.held(folder, Ended(code, text, 2, 0))
        finishes(row, folder, 2, reference)
        row.tried += 1
    row.notes.append(f"ended after: {', '.join(seconds)}")
    return row
