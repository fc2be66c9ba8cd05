"""An optimiser's state goes from one part of a run to the next, whatever makes either part fast."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imc.config import Config
from imc.training.optimizer import build_optimizer, load_optimizer, set_learning_rates

RATES = {"warmup_updates": 4, "lr": 0.01, "classifier_lr": 0.1, "schedule": "constant"}
CONFIG = Config(**RATES, optimizer="adam", beta1=0.9, beta2=0.99, momentum=0.9, weight_decay=0.0)  # type: ignore[arg-type]


class Model(nn.Module):
    """What an optimiser is built for: an encoder's convolution, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def main_parameters(self) -> list[nn.Parameter]:
        return list(self.convolution.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def step(self, optimizer: torch.optim.Optimizer, update: int, config: Config) -> None:
        set_learning_rates(optimizer, update, config, steps=100)
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(update))
        optimizer.zero_grad()
        self.classifier(self.convolution(x).mean((2, 3))).square().sum().backward()
        optimizer.step()


def built(model: Model, config: Config) -> Any:
    return build_optimizer(model, config, torch.device("cpu"), graphed=bool(config.cuda_graph))  # type: ignore[arg-type]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu")


def trained(config: Config, updates: int = 6) -> tuple[Model, Any]:
    model = Model()
    optimizer = built(model, config)
    for update in range(updates):
        model.step(optimizer, update, config)
    return model, optimizer


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("graph_before", [False, True])
@pytest.mark.parametrize("graph_after", [False, True])
def test_what_a_graph_needs_comes_from_the_configuration(graph_before: bool, graph_after: bool, optimizer: str) -> None:
    """Not from the checkpoint: a learning rate that is no tensor of the device would be in the graph for ever."""
    before = replace(CONFIG, optimizer=optimizer)
    model, first = trained(before)
    if graph_before:  # as a GPU's run with a graph would have written it; the CPU makes no such steps
        for group in first.param_groups:
            group["lr"] = torch.tensor(group["lr"])
            group["capturable"] = True
    resumed = Model()
    second = built(resumed, replace(before, cuda_graph=graph_after))
    rates = [group["lr"] for group in second.param_groups]
    load_optimizer(second, through_a_file(first.state_dict()))
    for group, rate in zip(second.param_groups, rates, strict=True):
        assert isinstance(group["lr"], Tensor) == graph_after == isinstance(rate, Tensor)
        if optimizer == "adam":
            assert group["capturable"] == graph_after
        assert group["fused"]
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        for name, value in first.state[theirs].items():
            assert torch.equal(second.state[mine][name], value), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("after", [torch.contiguous_format, torch.channels_last])
def test_a_resumed_part_goes_on_as_if_there_had_been_one(
    before: torch.memory_format, after: torch.memory_format, optimizer: str
) -> None:
    """Also in another memory format: the fused update runs through parameter and moments in the memory's order."""
    config = replace(CONFIG, optimizer=optimizer)
    one = Model().to(memory_format=before)
    whole = built(one, config)
    for update in range(4):
        one.step(whole, update, config)
    state = through_a_file({"model": one.state_dict(), "optimizer": whole.state_dict()})
    two = Model().to(memory_format=after)
    two.load_state_dict(state["model"])
    resumed = built(two, config)
    load_optimizer(resumed, state["optimizer"])
    for update in range(4, 8):
        one.step(whole, update, config)
        two.step(resumed, update, config)
    for mine, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_state_of_other_parameters_is_refused() -> None:
    _, optimizer = trained(CONFIG)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"].pop()
    with pytest.raises(ValueError, match="its optimiser has 1 groups of parameters, this run's 2"):
        load_optimizer(built(Model(), CONFIG), state)
