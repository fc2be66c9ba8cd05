"""The script that a shell reads completes commands, flags, names and paths in that shell."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imc.cli import COMMANDS, main

TAB = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source script.bash"),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -D -u; eval "$(cat script.zsh)"'),
}
SECONDS = 30.0  # a shell on a busy machine may take as long to begin
COMPLETED = [
    ("imc ", ["train", "clusters-sweep"]),
    ("imc ev", ["evaluate"]),
    ("imc --print-completion ", ["bash", "zsh", "fish"]),
    ("imc train --prot", ["--prototypes"]),
    ("imc train --no-norm", ["--no-normalize"]),
    ("imc train --method ", ["imc-swav", "crlc", "temi"]),
    ("imc train --method crlc --encoder eff", ["efficientnet-lite"]),
    ("imc train --data ", ["digits", "tiny-imagenet", "photos", "a.npy"]),
    ("imc train --data pho", ["photos"]),
    ("imc train --out ", ["photos", "runs"]),
    ("imc seeds cif", ["cifar10", "cifar100"]),
    ("imc seeds digits --seeds 1 2 --prot", ["--prototypes"]),
    ("imc predict runs/o", ["runs/one"]),
    ("imc predict runs/one a", ["a.npy"]),
    ("imc evaluate runs/one --bn-recalibrate ", ["none", "train", "test"]),
    ("imc export runs/one --check mni", ["mnist"]),
]
TYPED = [  # of which one key completes the line, or two show what there is
    ("imc ev", ["imc evaluate"]),
    ("imc train --prot", ["--prototypes"]),
    ("imc train --method ", ["imc-swav", "crlc", "temi"]),
    ("imc train --data dig", ["--data digits"]),
    ("imc train --data pho", ["--data photos/"]),
    ("imc predict runs/o", ["predict runs/one/"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with something to complete, and the scripts."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "photos").mkdir()
    (folder / "my birds").mkdir()
    (folder / "a.npy").touch()
    for shell in ("bash", "zsh", "fish"):
        with (folder / f"script.{shell}").open("w") as script, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", script)
            assert main(["--print-completion", shell]) == 0
    return folder


def require(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


@pytest.mark.parametrize(("line", "expected"), COMPLETED, ids=lambda value: value if isinstance(value, str) else "")
def test_bash_completes(line: str, expected: list[str], folder: Path) -> None:
    require("bash")
    *words, last = line.split(" ")
    ask = (
        'source script.bash\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_imc\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", ask, "bash", *words, last],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    found = done.stdout.splitlines()
    assert all(any(each.startswith(one) for each in found) for one in expected), found
    assert all(each.startswith(last) for each in found)


@pytest.mark.parametrize(("line", "expected"), COMPLETED, ids=lambda value: value if isinstance(value, str) else "")
def test_fish_completes(line: str, expected: list[str], folder: Path) -> None:
    require("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source script.fish; complete -C $argv[1]", line],
        cwd=folder,
        env=os.environ | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    found = [each.split("\t")[0] for each in done.stdout.splitlines()]
    assert all(any(each.startswith(one) for each in found) for one in expected), found


class Typing:
    """A shell on a terminal."""

    def __init__(self, shell: str, folder: Path) -> None:
        command, setup = TAB[shell]
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, os.environ | {"TERM": "dumb", "PS1": "> ", "HOME": str(folder)})
        self.seen = b""
        self.write(f"{setup}; echo re''ady\n")
        assert self.shows("ready"), self.seen

    def write(self, text: str) -> None:
        self.seen = b""
        os.write(self.terminal, text.encode())

    def shows(self, text: str) -> bool:
        end = time.monotonic() + SECONDS
        while text.encode() not in self.seen and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.seen += os.read(self.terminal, 65536).replace(b"\a", b"")
        return text.encode() in self.seen


@pytest.fixture(params=TAB)
def typing(request: pytest.FixtureRequest, folder: Path) -> Iterator[Typing]:
    require(request.param)
    shell = Typing(request.param, folder)
    yield shell
    os.close(shell.terminal)
    os.kill(shell.process, signal.SIGKILL)
    os.waitpid(shell.process, 0)


def test_the_tabulator_key_completes(typing: Typing) -> None:
    for line, expected in TYPED:
        typing.write(f"{line}\t\t")
        for text in expected:
            assert typing.shows(text), (line, text, typing.seen)
        typing.write("\x15")  # the line is taken back
    typing.write("imc predict runs/one my\t")
    assert typing.shows("my\\ birds"), typing.seen


def test_every_command_and_flag_is_in_the_script(folder: Path) -> None:
    script = (folder / "script.bash").read_text()
    for name in COMMANDS:
        assert f"_shtab_imc_{name.replace('-', '_')}_option_strings=" in script


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--print-completion", "tcsh"], "--print-completion must be bash, zsh or fish, got 'tcsh'"),
        (["--print-completion"], "--print-completion must be bash, zsh or fish, got ''"),
        (["--print-completion", "bash", "zsh"], "--print-completion must be bash, zsh or fish, got 'bash zsh'"),
        (["--print-completions", "bash"], "did you mean imc --print-completion?"),
    ],
)
def test_another_shell_is_refused(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_without_shtab_it_is_said_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == "imc: --print-completion needs shtab, which is not installed: pip install shtab\n"
