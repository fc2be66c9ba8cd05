"""Runs that an earlier version left are read, and go on.

Those in ``earlier_runs/`` were stopped after the first of two epochs, by the version whose configuration was one class:

    imc train --data digits --epochs 2 --stop-after-epoch 1 --widths 4 4 --pool-after 1 --pooled-size 1 --feature-dim 8
        --projection-hidden 8 --embedding-dim 4 --batch-size 256 --threads 1, and small heads
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from imc.cli import main
from imc.config import Config
from imc.files.json import read_json
from imc.files.run_places import CHECKPOINT, CONFIG, METRICS, RESULT
from imc.runs.folder import read_config
from imc.runs.model import load_run

RUNS = Path(__file__).parent / "earlier_runs"
NEW = Config().to_dict()  # of a field that came later, the default
each_run = pytest.mark.parametrize("run", ["imc-swav", "crlc"])


def as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))


@each_run
def test_its_configuration_is_read_and_written_field_by_field(run: str) -> None:
    saved, again = read_json(RUNS / run / CONFIG), as_json(read_config(RUNS / run))
    assert [entry for entry in again.items() if entry[0] in saved] == list(saved.items())
    assert {name: again[name] for name in again.keys() - saved} == {name: NEW[name] for name in again.keys() - saved}


@each_run
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_it_goes_on(run: str, has_checkpoint: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(RUNS / run, folder)
    first = (folder / METRICS).read_text().splitlines()[0]
    if not has_checkpoint:
        (folder / CHECKPOINT).unlink()
    assert main(["train", "--out", str(folder), "--resume"]) == 0
    lines = (folder / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert (lines[0] == first) == has_checkpoint
    result, again = read_json(folder / RESULT), as_json(load_run(folder).config)
    assert (result["method"], result["images"], len(lines)) == (run, 1797, 2)
    told_anew = {"out": str(folder), "stop_after_epoch": None}
    assert again == {**NEW, **read_json(RUNS / run / CONFIG), **told_anew}
