"""A run whose steps are replayed is the run whose steps are made, bit by bit: shown without a GPU, by an emulation that
repeats what was recorded and no Python (replayed.py)."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.conftest import crlc_config
from train.training.replayed import emulated

from imc.config import Config
from imc.data import Dataset, Images
from imc.data.views import Batch
from imc.errors import UserError
from imc.methods.imc_swav import BANKED, FILLS, QUEUED
from imc.methods.memory import Queue
from imc.methods.method import FROZEN, Plan, Step
from imc.models.encoders import CustomEncoder
from imc.train import train
from imc.training import cuda_graph
from imc.training.checkpoint import read_checkpoint
from imc.training.cuda_graph import FURTHER, WARM_UP, GraphedStep, obstacle

PLAIN: frozenset[str] = frozenset()
NEVER = 10**9


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.train._report", lambda *_: {})


def leaves(state: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {key: x for part, inner in items for key, x in leaves(inner, f"{name}/{part}").items()}


def ended(config: Config) -> dict[str, Tensor]:
    """All that the run has left: parameters, moments, learning rates, what is remembered, and every loss."""
    folder = Path(str(config.out))
    checkpoint = read_checkpoint(folder)
    assert checkpoint is not None
    found = leaves({name: checkpoint[name] for name in ("model", "optimizer", "training", "monitor")})
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = {x: v for x, v in json.loads(line).items() if x not in ("seconds", "images_per_second")}
        found |= {f"epoch {values['epoch']} {x}": torch.tensor(v, dtype=torch.float64) for x, v in values.items()}
    return found


# What each run changes, on which backend, and the forms that its steps have.
CASES: dict[str, tuple[dict[str, Any], str, set[frozenset[str]]]] = {
    "crops made outside the graph, another rate at each update": (
        {"schedule": "cosine", "optimizer": "sgd", "lr": 0.05, "epochs": 3},
        "cpu",
        {PLAIN},
    ),
    "crops made within, frozen prototypes, then a queue that fills": (
        {"augmentation": "crops", "freeze_updates": 4, "queue": 96, "queue_start_epoch": 2, "epochs": 4},
        "eager",
        {frozenset({FROZEN}), PLAIN, frozenset({FILLS}), frozenset({FILLS, QUEUED})},
    ),
    "a bank and a queue": (
        {"bank": True, "queue": 24, "queue_start_epoch": 0, "epochs": 4},
        "cpu",
        {frozenset({FILLS, QUEUED}), frozenset({FILLS, QUEUED, BANKED})},
    ),
    "crlc": ({"method": "crlc", "sub_heads": 2, "epochs": 2}, "cpu", {PLAIN}),
}


def run(config: Config, data: Dataset | Images, replays: bool) -> tuple[dict[str, Tensor], dict[frozenset[str], int]]:
    with emulated(2 if replays else NEVER) as counted:
        train(config, data)
    return ended(config), counted


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture
def partly_labelled(split_digits: Dataset) -> Dataset:
    """Of which half are not clustered."""
    train = split_digits.train
    halves = [dataclasses.replace(train, images=train.images[i::2], labels=train.labels[i::2]) for i in (0, 1)]
    return dataclasses.replace(split_digits, train=halves[0], unlabeled=dataclasses.replace(halves[1], labels=None))


def configured(case: str, tiny: Config) -> Config:
    options, backend, _ = CASES[case]
    config = dataclasses.replace(
        tiny, freeze_updates=0, warmup_updates=4, backend=backend, batch_size=24, small_crops=1
    )
    if options.get("method") == "crlc":
        return crlc_config(config, **{name: x for name, x in options.items() if name != "method"})
    return dataclasses.replace(config, **options)


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_steps_themselves(
    case: str, tiny: Config, partly_labelled: Dataset, tmp_path: Path
) -> None:
    config, forms = configured(case, tiny), CASES[case][2]
    data = partly_labelled if config.bank else partly_labelled.train
    made, none = run(dataclasses.replace(config, out=str(tmp_path / "made")), data, replays=False)
    replayed, counted = run(dataclasses.replace(config, out=str(tmp_path / "replayed")), data, replays=True)
    assert not none
    assert set(counted) == forms
    assert all(count > 0 for count in counted.values()), counted
    assert differing(made, replayed) == []


def step_of(value: Tensor) -> Step:
    return Step(value, {}, None, value)


class Kept:
    """What a step adds up, in one of several ways."""

    def __init__(self, how: str) -> None:
        self.how, self.tensor, self.number = how, torch.zeros(2), 0
        self.queue = Queue(4)

    def add(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            self.tensor.add_(x)
        elif self.how == "in another tensor":
            self.tensor = self.tensor + x
        elif self.how == "as a number":
            self.number += 1
            self.tensor.copy_(x * self.number)
        else:
            self.queue.push(x.view(1, 2, 1))
            assert self.queue.rows is not None
            return self.queue.rows.sum(dim=1)
        return self.tensor * 1


@pytest.mark.parametrize(
    ("how", "right"), [("in place", True), ("in a queue", True), ("in another tensor", False), ("as a number", False)]
)
def test_the_emulation_tells_what_a_step_keeps_in_python(how: str, right: bool) -> None:
    def results(warm_up: int) -> list[Tensor]:
        kept = Kept(how)
        with emulated(warm_up):
            step = graphed(lambda crops, plan: step_of(kept.add(crops[0])))
            return [step(batch_of(n), n, Plan()).loss.clone() for n in range(6)]

    pairs = zip(results(2), results(NEVER), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == right


class CountedViews:
    """Stands for what makes crops: keeps the updates that it was called for."""

    def __init__(self) -> None:
        self.updates: list[int] = []

    def __call__(self, batch: Batch, update: int) -> list[Tensor]:
        self.updates.append(int(update))
        return [torch.full((2,), float(update))]


def batch_of(number: int) -> Batch:
    return Batch(torch.zeros(1), torch.full((2,), number), torch.full((2,), number), 0, 2)


def graphed(compute: Any, **options: Any) -> GraphedStep:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    given = {"inside": None, "refuse": pytest.fail, "views": CountedViews(), **options}
    return GraphedStep(compute, optimizer=optimizer, **given)


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ("a" * (WARM_UP + 3), "o" * WARM_UP + "rrr"),
        ("a" * (WARM_UP + 3) + "b" * (FURTHER + 3), "o" * WARM_UP + "rrr" + "o" * FURTHER + "rrr"),
        ("a" * 4 + "b" * (WARM_UP - 1), "o" * WARM_UP + "rrr"),  # not warm yet when the step changes
        ("a" * (WARM_UP - 1) + "b" * (FURTHER + 3), "o" * (WARM_UP - 1) + "o" * FURTHER + "rrr"),
        ("ab" * (WARM_UP // 2 + 3), "o" * (WARM_UP + 1) + "rrrrr"),  # each is watched once the process is warm
    ],
)
def test_a_process_makes_ordinary_steps_before_it_captures_one(forms: str, expected: str) -> None:
    """However many updates the run has made before in other processes; and of each form."""
    made: list[str] = []
    views = CountedViews()

    def compute(crops: list[Tensor], _plan: Plan) -> Step:
        made.append("o")
        return step_of(crops[0] * 2)

    with emulated(WARM_UP):
        step = graphed(compute, views=views)
        for number, form in enumerate(forms, start=1000):
            before = len(made)
            result = step(batch_of(number), number, Plan(frozenset(form)))
            captured = step.graphs.get(frozenset(form))
            if captured is not None and captured.step is result:
                made[before:] = ["r"]
            assert result.loss.tolist() == [2.0 * number] * 2
    assert "".join(made) == expected
    assert views.updates == list(range(1000, 1000 + len(forms)))


def test_crops_are_made_in_the_graph_from_the_number_of_the_update() -> None:
    seen: list[Any] = []

    class Inside(CountedViews):
        def __call__(self, batch: Batch, update: Any) -> list[Tensor]:
            seen.append(update)
            return [batch.positions * 1000 + update]

    views: Any = Inside()
    with emulated(2):
        step = graphed(lambda crops, plan: step_of(crops[0] + 0), views=views, inside=views)
        values = [step(batch_of(n), n, Plan()).loss.tolist() for n in range(5)]
    assert values == [[1001 * n] * 2 for n in range(5)]
    assert seen[:2] == [0, 1]
    assert isinstance(seen[2], Tensor)
    assert len(seen) == 3  # the replays run no Python


def test_the_graphs_of_a_run_end_with_it() -> None:
    """Else a process group whose exchanges they hold would wait for them for ever."""
    with emulated(2):
        with graphed(lambda crops, plan: step_of(crops[0] + 0)) as step:
            for number in range(4):
                step(batch_of(number), number, Plan())
            assert step.graphs
        assert not step.graphs


def test_a_step_that_waits_for_the_device_stays_ordinary(
    tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "watched", lambda work, device: (work(), True))
    with emulated(2) as replays:
        train(tiny, digits)  # on a GPU this is said; here no graph was to be expected
        with pytest.raises(UserError, match="--cuda-graph cannot hold a step that waits for the device"):
            train(dataclasses.replace(tiny, cuda_graph=True, overwrite=True), digits)
    assert not replays


class Group:
    """Stands for the ranks of a run."""


@pytest.mark.parametrize(
    ("device", "group", "exchange", "hip", "sentence"),
    [
        ("cpu", None, "", None, "needs a CUDA device, and this run is on the CPU"),
        ("cuda", None, "", None, None),
        ("cuda", None, "", "7.0", None),
        ("cuda", Group(), "cuda:nccl", None, None),
        ("cuda", Group(), "cpu:gloo,cuda:nccl", None, None),
        (
            "cuda",
            Group(),
            "cpu:gloo,cuda:gloo",
            None,
            "holds what NCCL exchanges between ranks, and those of this run have gloo",
        ),
        ("cuda", Group(), "cuda:nccl", "7.0", "works on one rank only on AMD's GPUs"),
    ],
)
def test_why_a_step_is_no_graph(
    device: str, group: Any, exchange: str, hip: str | None, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda _group: exchange)
    monkeypatch.setattr(torch.version, "hip", hip)
    reason = obstacle(torch.device(device), group, nn.Identity())
    assert reason == sentence or (reason is not None and sentence is not None and reason.startswith(sentence))


def test_an_encoder_of_ones_own_is_no_graph() -> None:
    custom = CustomEncoder(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), 1, 8)
    assert "an encoder of one's own" in str(obstacle(torch.device("cuda"), None, custom))


@pytest.mark.parametrize("waits", [True, False])
def test_a_wait_for_the_device_is_found_and_other_warnings_go_on(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []

    def set_mode(mode: Any) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)

    def work() -> Step:
        warnings.warn("another", UserWarning, stacklevel=1)
        if waits:
            warnings.warn(
                "called a synchronizing CUDA operation (Triggered internally at ...)", UserWarning, stacklevel=1
            )
        return step_of(torch.zeros(()))

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.warns(UserWarning, match="^another$") as seen:
        _, waited = cuda_graph.watched(work, torch.device("cuda"))
    assert waited == waits
    assert [str(warning.message) for warning in seen] == ["another"]
    assert modes == ["warn", 0]
