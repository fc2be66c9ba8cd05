"""Train towards the paper's 500 epochs of CIFAR-10 in pieces of a given number of minutes, and report how far it is.

    python benchmarks/cifar10_run.py --minutes 8 --data-root DIR       # repeat until it has ended
    python benchmarks/cifar10_run.py --minutes 8 --method crlc
    python benchmarks/cifar10_run.py --minutes 8 --epochs 20      # other options are those of imc train

Each call resumes the run in --run, stops after the minutes with a checkpoint, and scores that checkpoint on both splits
with batch normalisation recalibrated on the train split. The scores of every call so far go to cifar10_run.json and
cifar10_run.md under benchmarks/results/<device>/, with the number of epochs that they are after.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import RESULTS
from measure import machine

from imc.command_line import arguments
from imc.config import Config
from imc.data import Dataset, load
from imc.errors import StoppedError
from imc.methods import build_model
from imc.metrics import clustering_scores
from imc.runs.model import LoadedRun
from imc.scores.evaluation import outputs, recalibrate
from imc.train import train
from imc.training.checkpoint import read_checkpoint

PUBLISHED = {
    "imc-swav": "IMC-SwAV: ACC 89.1, NMI 81.1, ARI 79.0 after 500 epochs (mean of 15 runs)",
    "crlc": "CRLC: ACC 79.9, NMI 67.9, ARI 63.4 after 2,000 epochs",
}


def train_for(minutes: float, config: Config, data: Dataset) -> bool:
    """Train until the run ends (True) or the minutes are over (False), which leaves a checkpoint."""
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        train(config, data)
    except StoppedError as stopped:
        print(stopped)
        return False
    finally:
        timer.cancel()
    return True


def score(run_folder: Path, data: Dataset, device: torch.device) -> dict[str, Any]:
    """ACC, NMI and ARI of the folder's checkpoint on each split."""
    checkpoint = read_checkpoint(run_folder)
    assert checkpoint is not None, "a run that has trained has a checkpoint"
    config = Config.from_dict(checkpoint["config"])
    model: Any = build_model(config)
    model.load_state_dict(checkpoint["model"])
    run = LoadedRun(config, model.to(device))
    recalibrate(run, data.train.images)
    steps = len(data.train.images) // config.batch_size
    row: dict[str, Any] = {
        "epochs": round(checkpoint["update"] / steps, 2),
        "of_epochs": config.epochs,
        "training_minutes": round(checkpoint["seconds"] / 60, 2),
    }
    for name, split in (("train", data.train), ("test", data.test)):
        if split is not None and split.labels is not None:
            found = outputs(run, split.images).clusters
            row[name] = {key: round(value, 4) for key, value in clustering_scores(split.labels.numpy(), found).items()}
    return row


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    facts, rows = report["machine"], report["scores"]
    last = rows[-1]
    lines = [
        f"# CIFAR-10 by {report['method']} on {facts['device']}",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items() if key != "device"),
        "",
        f"**After {last['epochs']:g} of {last['of_epochs']} epochs**, {last['training_minutes']:g} minutes.",
        f"Published: {PUBLISHED[report['method']]}. Made by `python benchmarks/cifar10_run.py`.",
        "",
        "| epochs | minutes | train ACC | NMI | ARI | test ACC | NMI | ARI |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = [
            f"{row[split][key]:.3f}" if split in row else ""
            for split in ("train", "test")
            for key in ("acc", "nmi", "ari")
        ]
        lines.append(f"| {row['epochs']:g} | {row['training_minutes']:g} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training in this call (default: 8)")
    parser.add_argument("--method", choices=tuple(PUBLISHED), default="imc-swav")
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py (default: as imc train)")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/cifar10-<method>)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/<device>)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options, others = parser.parse_known_args()

    device, start = torch.device(options.device), time.perf_counter()
    data = load("cifar10", root=None if options.data_root is None else Path(options.data_root))
    folder = options.run or Path("runs") / f"cifar10-{options.method}"
    config = replace(
        arguments.parse(Config, others, program="cifar10_run.py", description=__doc__ or ""),
        method=options.method,
        data="cifar10",
        out=str(folder),
        resume=True,
        device=options.device,
    )
    ended = (folder / "result.json").exists() or train_for(options.minutes, config, data)
    row = score(folder, data, device)
    facts = machine(device)
    out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    name = "cifar10_run" + ("" if options.method == "imc-swav" else f"_{options.method}")
    before = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["scores"]
        if (out / f"{name}.json").exists()
        else []
    )
    rows = [*(earlier for earlier in before if earlier["epochs"] < row["epochs"]), row]
    report = {"machine": facts, "method": options.method, "ended": ended, "scores": rows}
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(markdown(report), encoding="utf-8")
    print(f"{json.dumps(row)}\n{out}: {name}.json {name}.md, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
