"""Variables of the environment and files of settings that libraries read: no figure, bar or run depends on them, and
where a library cannot be imported for one, a sentence names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imc import cli
from imc.command_line.environment import unset
from imc.errors import UserError

# A figure and a bar, in a process that imports neither torch nor scikit-learn; the bar's times differ.
DRAW = """
import sys
from pathlib import Path
import numpy as np
from imc.pages.figures import save_accuracy_by_images
from imc.command_line.terminal import progress
save_accuracy_by_images(Path(sys.argv[1]), [(10, 0.5), (20, 0.75)], "a title")
with progress(2, "work", "part", delay=0) as bar:
    bar.update(2)
"""
# Several in each, of different libraries: a process takes a second and a half.
VARIABLES = {  # of several libraries at once, as a process takes over a second
    "no backend, no numbers, no home": "MPLBACKEND=nonsense MPLCONFIGDIR=/proc/nowhere HOME=/nowhere TMPDIR=/nowhere "
    "TQDM_SMOOTHING=x TQDM_NCOLS=x TQDM_POSITION=x TQDM_MININTERVAL=x SOURCE_DATE_EPOCH=x",
    "a notebook's, no format, no width": "MPLBACKEND=module://of_another_installation MATPLOTLIBRC=/nowhere TZ=x "
    "TQDM_BAR_FORMAT={nothing} TQDM_UNIT_DIVISOR=0 COLUMNS=0 LINES=x TERM=nonsense",
    "a window's, ASCII, without docstrings, warnings as errors": "MPLBACKEND=QtAgg LC_ALL=C PYTHONUTF8=0 "
    "PYTHONCOERCECLOCALE=0 PYTHONOPTIMIZE=2 PYTHONWARNINGS=error NO_COLOR=1",
}
SETTINGS = {
    "another look": b"text.usetex: True\nsavefig.bbox: standard\nfont.family: nonesuch\npath.sketch: 1, 100, 2\n",
    "no settings": b"backend: nonsense\nfont.size: huge\nno colon\nfigure.dpi: 5\n",
}


def drawn(path: Path, **variables: str) -> tuple[bytes, str]:
    """The figure's bytes, and what stands on standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "TQDM"))}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(path)], env=environment | variables, capture_output=True, check=False
    )
    error = done.stderr.decode(errors="replace")
    assert done.returncode == 0, error
    return path.read_bytes(), error


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return drawn(tmp_path_factory.mktemp("plain") / "x.png")[0]


@pytest.mark.parametrize("name", VARIABLES)
def test_figures_and_bars_do_not_depend_on_variables(name: str, plain: bytes, tmp_path: Path) -> None:
    figure, said = drawn(tmp_path / "x.png", **dict(each.split("=", 1) for each in VARIABLES[name].split()))
    assert figure == plain
    assert "work: 100%" in said
    assert "2/2" in said


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_do_not_depend_on_a_file_of_settings(name: str, plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(SETTINGS[name])
    assert drawn(tmp_path / "x.png", MPLCONFIGDIR=str(tmp_path))[0] == plain


def test_variables_are_there_again() -> None:
    before = {"IMC_TEST_A": "1", "IMC_TEST_B": ""}
    os.environ.update(before)
    try:
        with unset("IMC_TEST_"):
            assert not before.keys() & os.environ.keys()
        assert before.items() <= os.environ.items()
    finally:
        for name in before:
            del os.environ[name]


@pytest.mark.parametrize("raises", ["int('x')", "open('/nowhere/at/all')", "raise RuntimeError", "import of_nothing"])
def test_a_library_that_cannot_be_imported_is_named(
    raises: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_library.py").write_text(raises)
    (tmp_path / "some_command.py").write_text("import some_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"some_library cannot be imported: .*; a variable of the environment or"):
        cli.imported("some_command")


def test_an_error_of_this_package_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"__name__": "imc.train"}
    exec("def fails(name): return {}['no such key']", own)
    monkeypatch.setattr("importlib.import_module", own["fails"])
    with pytest.raises(KeyError):
        cli.imported("imc.train")
