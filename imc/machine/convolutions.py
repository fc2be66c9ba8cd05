"""How cuDNN chooses the algorithms of a run's convolutions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def chosen_by_time(device: torch.device) -> bool:
    """Whether a run on this device takes the algorithm that was the fastest at a shape's first convolution.

    On NVIDIA's GPUs: a run has few shapes, and they stay. Not on AMD's, where the search was not tried, and not where
    the program has asked for algorithms that repeat their bits: the choice itself may be another the next time.
    """
    repeatable = torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    return device.type == "cuda" and torch.version.hip is None and not repeatable


@contextlib.contextmanager
def fastest_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose by time, where :func:`chosen_by_time`; afterwards its setting is as it was."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or chosen_by_time(device)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
