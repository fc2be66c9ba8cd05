"""The trained model in the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load, save

from imc.command_line.options import only
from imc.config import Config
from imc.data import views
from imc.data.options import SampleInputOptions
from imc.errors import UserError
from imc.files.paths import user_path
from imc.files.run_places import CONFIG, MODEL
from imc.files.whole import write_file
from imc.machine.torch_state import as_in_a_new_process
from imc.methods import load_model, misfit
from imc.methods.method import Method
from imc.methods.options import ModelOptions
from imc.runs.folder import read_config


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and its resolved configuration."""

    config: Config
    model: Method

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """What the model takes: uint8 [B, H, W, C] -> float32 [B, C, s, s], unaugmented."""
        return views.prepare(images, only(self.config, SampleInputOptions))


@as_in_a_new_process()
def load_run(
    folder: Path | str, device: torch.device | str = "cpu", encoder: torch.nn.Module | None = None
) -> LoadedRun:
    """The model that a run left, in evaluation mode.

    Args:
        folder: of a run that has ended.
        device: where the model goes.
        encoder: the module given to :func:`imc.train.train`, for a run with one.

    Raises:
        UserError: no such run, or its files do not fit together.
    """
    folder = user_path(folder)
    config = read_config(folder)
    try:
        state = load((folder / MODEL).read_bytes())  # not load_file, for which a path must be UTF-8
    except Exception as error:  # a damaged file makes the reader raise anything
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} holds no finished run: {MODEL}: {reason}") from None
    options = only(config, ModelOptions)
    difference = misfit(options, encoder, state)
    if difference is not None:
        raise UserError(f"{folder / MODEL} does not fit {CONFIG} beside it: {difference}")
    model = load_model(options, encoder, state)
    return LoadedRun(config, cast(Method, model.to(device).eval()))


def save_model(path: Path, model: torch.nn.Module) -> None:
    """Write the parameters and buffers in the format of safetensors, by way of a temporary file."""
    # Contiguous, since the format has no other order; clones, since it refuses tensors that share memory.
    state = {name: x.detach().cpu().contiguous().clone() for name, x in model.state_dict().items()}
    write_file(path, save(state))
