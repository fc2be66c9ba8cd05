"""The device that a command computes on."""

from __future__ import annotations

import torch

from imc.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first GPU, or the CPU.

    Raises:
        UserError: there is none of this name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--device {name!r} cannot be used ({reason}); accepted are auto, cpu, cuda, cuda:1, ..."
        ) from None
    return device
