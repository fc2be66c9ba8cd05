"""The device of this process."""

from __future__ import annotations

import torch

from imc.errors import UserError
from imc.machine import launchers

DEVICES = ("auto", "cpu", "cuda")


def choose_device(choice: str) -> torch.device:
    """The device of this process by the choice "auto", "cpu" or "cuda".

    Raises:
        UserError: there is no such device.
    """
    local = launchers.local_rank()
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise UserError(f"rank {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device("cuda", local)
