"""Checkpoints: everything that the rest of a run depends on, in one file that is always whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imc.errors import UserError
from imc.files.run_places import CHECKPOINT
from imc.files.torch_archive import read_torch_file
from imc.files.whole import write_file
from imc.methods import misfit
from imc.methods.options import ModelOptions

FORMAT = 1


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Replace the folder's checkpoint: at any moment the file holds the old one or the new."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_file(folder / CHECKPOINT, buffer.getbuffer())


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, on the CPU, or None where there is none.

    Raises:
        UserError: the file is damaged, or no checkpoint of this version.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        content = read_torch_file(path)
    except ValueError as reason:
        raise UserError(f"{path} is no checkpoint that can be read: {reason}; --overwrite starts anew") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} is no checkpoint of this version of imc")
    return content


def require_fit(folder: Path, options: ModelOptions, encoder: nn.Module | None, checkpoint: dict[str, Any]) -> None:
    """The checkpoint holds a model of its options: to be asked before that is built.

    Raises:
        UserError: it does not.
    """
    state = checkpoint.get("model")
    reason = misfit(options, encoder, state) if isinstance(state, dict) else "it holds no model"
    if reason is not None:
        raise unfit(folder, reason)


def unfit(folder: Path, reason: str) -> UserError:
    """The folder's checkpoint does not fit its own configuration."""
    return UserError(f"{folder / CHECKPOINT} does not fit its configuration: {reason}; --overwrite starts anew")


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's global generators of this process."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: list[dict[str, torch.Tensor]], rank: int) -> None:
    """Continue from a process's state; a rank that the run did not have takes another's."""
    state = states[rank % len(states)]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
