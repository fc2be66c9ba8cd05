"""Every command that the documents show exists and takes the options shown, and the README's Python runs."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from imc import cli
from imc.command_line import arguments
from imc.config import Config
from imc.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("imc ", ".venv/bin/imc ", "python -m imc.", "torchrun ", "make ", "pytest ", "python ")


@dataclass(frozen=True)
class Command:
    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text[:60]}"


def commands() -> list[Command]:
    """The commands of all pages: indented lines, continued ones joined, what && chains apart, without comments."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4}(\S.*)$", text, flags=re.M):
            parts = (" ".join(part.split()) for part in line.split("#")[0].split("&&"))
            found += [Command(page.name, part) for part in parts if part.startswith(PROGRAMS)]
    return found


COMMANDS = commands()


def check_imc(command: str, argv: list[str]) -> None:
    """The options are parsed by the command's own parser; nothing runs."""
    assert command in cli.COMMANDS
    module = importlib.import_module(f"imc.{command.replace('-', '_')}")
    flags = getattr(module, "FLAGS", None) or module.Options
    options = arguments.parse(flags, argv, program=command, description="")
    if isinstance(options, Config):
        options.validate()


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_exists_and_takes_its_options(command: Command) -> None:
    words = shlex.split(command.text)
    if words[0].endswith("imc"):
        check_imc(words[1], words[2:])
    elif words[0] == "torchrun" or words[:2] == ["python", "-m"]:
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if module.startswith("imc."):
            check_imc(module.removeprefix("imc."), rest)
        elif module != "imc_kernels":
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        assert words[0] == "pytest"
        assert "--benchmark-only" in words


def test_an_option_that_is_not_there_is_found() -> None:
    with pytest.raises(UserError, match="unknown flag --clutsers"):
        check_imc("train", ["--data", "photos", "--clutsers", "3"])


def test_the_python_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text()
    start = text.index("    import torch\n")
    block = text[start : text.index("\n\n|", start)]
    exec("\n".join(line[4:] for line in block.splitlines()), {})


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:benchmarks|csrc|imc|imc_kernels|tests)/[\w./-]+\.\w+)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
