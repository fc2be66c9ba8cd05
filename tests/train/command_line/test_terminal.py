"""What a command shows: on terminals that lack characters, in logs, into pipes that end; and how Ctrl-C ends it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import running
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from imc.command_line.terminal import Stages, progress, say, show
from imc.data import load
from imc.scores.evaluation import kmeans_on_pixels

IMC = [sys.executable, "-m", "imc"]


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


def written(file: io.TextIOWrapper) -> str:
    return file.buffer.getvalue().decode(file.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "\\xe9 \\u732b"), ("latin-1", "é \\u732b"), ("cp1252", "é \\u732b"), ("utf-8", "é 猫")],
)
def test_a_terminal_gets_escapes_for_what_it_lacks(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = stream(encoding), stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    show("é 猫\x1b[0m\n\udcff")
    say("é 猫\nx")
    with progress(1, "é 猫", "image", delay=0) as bar:
        bar.update()
    assert written(out) == f"{shown}\\x1b[0m\n\\xff\n"
    first, *bars = written(err).splitlines()
    assert first == f"{shown}\\nx"
    assert bars
    assert all(line.startswith(shown) for line in bars)


def test_a_log_holds_lines_and_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    err = stream("utf-8")
    monkeypatch.setattr(sys, "stderr", err)
    with progress(1000, "decode", "image", delay=0) as bar:
        for _ in range(1000):
            bar.update()
        say("skipped one")
    with progress(10, "soon done", "image") as bar, Stages("report", ("one", "two")) as stages:
        bar.update(10)
        stages.next()
        stages.next()
    assert "\r" not in written(err)
    lines = written(err).splitlines()
    assert [line.split(":")[0] for line in lines] == ["decode", "skipped one", "decode"]


@pytest.mark.parametrize("closed", [None, "closed"])
def test_closed_streams_stop_nothing(closed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [None, None] if closed is None else [stream("utf-8"), stream("utf-8")]
    for file in filter(None, streams):
        file.close()
    monkeypatch.setattr(sys, "stderr", streams[1])
    say("x")
    with progress(1, "x", "image", delay=0) as bar:
        bar.update()
    monkeypatch.setattr(sys, "stdout", None)
    show("x")


def test_a_pipe_that_nobody_reads_ends_a_command_quietly() -> None:
    with running([*IMC, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.wait(timeout=60) == 128 + signal.SIGPIPE
        assert command.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_output_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*IMC, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"imc: No space left on device\n")


def test_k_means_start_by_start_is_that_of_all_starts_in_one_call() -> None:
    images = load("digits").train.images[:300]
    with threadpool_limits(limits=1):
        pixels = images.flatten(1).numpy().astype(np.float32) / np.float32(255)
        expected = KMeans(10, n_init=10, random_state=3).fit(pixels).predict(pixels)
    assert (kmeans_on_pixels(images, 10, 3) == expected).all()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures, large enough, that decoding them takes longer than a test waits."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png", compress_level=0)
    for index in range(1, 4000):
        os.link(folder / "0.png", folder / f"{index}.png")
    return folder


def interrupt(
    command: list[str], environment: dict[str, str], ready: Callable[[str], bool], times: int
) -> tuple[int, str]:
    """Run a command on a terminal of its own, press Ctrl-C there so many times, and give its exit code and output."""
    main, terminal = pty.openpty()
    shown, pressed = "", False
    with (
        open(main, "rb", buffering=0) as screen,
        running(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True)
        as process,
    ):  # fmt: skip
        os.close(terminal)
        while True:
            try:
                part = screen.read(4096)
            except OSError:  # the terminal's other end is closed
                break
            if not part:  # the same, elsewhere than on Linux
                break
            shown += part.decode("utf-8", "replace")
            if not pressed and ready(shown):
                pressed = True
                for _ in range(times):
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.05)
        return process.wait(timeout=60), shown


@pytest.mark.parametrize(("command", "times"), [("train", 2), ("predict", 1)])
def test_ctrl_c_while_decoding_ends_in_one_line_and_leaves_no_half_file(
    command: str, times: int, photos: Path, run_copy: Path, tmp_path: Path
) -> None:
    arguments = {
        "train": ["--data", str(photos), "--clusters", "2", "--epochs", "1", "--out", str(tmp_path / "new")],
        "predict": [
            str(run_copy),
            str(photos),
            "--out",
            str(tmp_path / "out.csv"),
            "--sort-into",
            str(tmp_path / "sorted"),
        ],
    }[command]
    environment = {**os.environ, "IMC_CACHE": str(tmp_path / "cache")}
    before = set(tmp_path.rglob("*"))
    code, shown = interrupt([*IMC, command, *arguments], environment, lambda text: "image" in text, times)
    assert code == 130, shown
    assert "Traceback" not in shown
    left = {path for path in set(tmp_path.rglob("*")) - before if path.is_file() and path.name != ".imc-output"}
    assert not left


def test_a_second_ctrl_c_ends_training_at_once(tmp_path: Path) -> None:
    command = [*IMC, "train", "--epochs", "20", "--out", str(tmp_path / "run")]
    code, shown = interrupt(command, dict(os.environ), lambda text: re.search(r" [1-9]\d*/", text) is not None, 2)
    assert code == 130, shown
    assert "finishing this step, then saving a checkpoint; a second Ctrl-C ends at once" in shown
    assert "Traceback" not in shown
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("lines", [0, 1, 24])
@pytest.mark.parametrize("columns", [0, 2, 10, 40, 80, 300])
def test_a_bar_fits_a_terminal_of_any_size_and_is_shown_where_it_is_not_known(
    columns: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    with open(terminal, "w", encoding="utf-8") as stream, open(own, "rb", buffering=0) as read:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress(2, "work", "part", delay=0) as bar:
            bar.update(2)
        sent = b""
        while select.select([read], [], [], 0.1)[0]:
            sent += read.read(1 << 16)
    shown = sent.decode()
    assert all(len(state.strip("\n")) <= (columns or 80) for state in shown.split("\r"))
    if not 0 < columns < 40:
        assert "work: 100%" in shown
        assert "2/2" in shown
