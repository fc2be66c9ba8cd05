"""What launchers leave in the environment, alone, empty or wrong: one process trains, or one sentence says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from imc.cli import main
from imc.command_line.environment import number, variable
from imc.data.cache import cache_folder
from imc.data.named import data_root
from imc.errors import UserError
from imc.machine.launchers import OTHERS, local_rank, world_size

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *OTHERS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", [*VARIABLES, *OTHERS])
def test_a_blank_variable_is_not_set(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    assert (variable(name), world_size(), local_rank()) == (None, 1, 0)


NAMES_OF_NUMBERS = pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "0x2", "1 2", "NaN", "²"])
@NAMES_OF_NUMBERS
def test_what_is_no_number_is_refused(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"the environment variable {name} must be an integer of at least"):
        world_size()


@NAMES_OF_NUMBERS
def test_every_command_that_trains_says_so_first(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "two")
    for command in (["train"], ["seeds", "digits"], ["clusters-sweep", "digits", "--clusters", "2"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"the environment variable {name} must be an integer of at least" in error
    assert list(tmp_path.iterdir()) == []


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": ""}, "WORLD_SIZE is 2, and RANK is not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "WORLD_SIZE is 2, and MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "2"}, "RANK must be an integer from 0 to 1, got '2'"),
        ({"MASTER_PORT": "port"}, "MASTER_PORT must be an integer from 0 to 65535, got 'port'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT must be an integer from 0 to 65535, got '70000'"),
        ({"WORLD_SIZE": ""}, "RANK is 1, and WORLD_SIZE says that there is one process"),
        *(
            ({"WORLD_SIZE": "", "RANK": "", name: "4"}, f"{program} started 4 processes")
            for name, program in OTHERS.items()
        ),
    ],
)
def test_variables_that_do_not_fit_together_are_a_sentence(
    changes: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {**WHOLE, **changes}.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=says):
        world_size()


def test_torchruns_variables_are_taken_under_any_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {**WHOLE, "LOCAL_RANK": " 3 ", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, text)
    assert (world_size(), local_rank()) == (2, 3)


@pytest.mark.parametrize("others", [{"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_is_one_process(others: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in others.items():
        monkeypatch.setenv(name, text)
    assert world_size() == 1


@pytest.mark.parametrize("text", ["", "  "])
def test_blank_folders_are_the_usual_ones(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("IMC_CACHE", "IMC_DATA"):
        monkeypatch.setenv(name, text)
    assert (cache_folder(), data_root()) == (tmp_path / ".cache/imc/decoded", tmp_path / ".cache/imc")
    monkeypatch.setenv("IMC_CACHE", "~/other")
    assert cache_folder() == tmp_path / "other"


def test_no_home_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_number: int) -> None:
        raise KeyError

    for name in ("HOME", "IMC_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match="there is no home to keep data in; set the environment variable IMC_CACHE"):
        cache_folder()


def test_a_number_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", " 7 ")
    assert number("X", 0) == 7
    with pytest.raises(UserError, match="X must be an integer from 0 to 6, got '7'"):
        number("X", 0, at_most=6)
