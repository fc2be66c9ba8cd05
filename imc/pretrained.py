"""An encoder's parameters from a checkpoint: a run of this package, or any state dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from imc.errors import UserError
from imc.run_files import read_torch_file
from imc.run_folder import MODEL

WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network", "encoder", "teacher", "student")


class Matched(NamedTuple):
    """What was taken over.

    Attributes:
        names: of the encoder's parameters and buffers that were found.
        missing: those that were not.
        prefix: what stands before the names in the file.
        unused: names in the file with that prefix that the encoder has no place for.
    """

    names: list[str]
    missing: list[str]
    prefix: str
    unused: list[str]

    def __str__(self) -> str:
        text = f"{len(self.names)} of {len(self.names) + len(self.missing)} tensors of the encoder"
        if self.prefix:
            text += f", under {self.prefix!r}"
        for title, names in (("not found", self.missing), ("not used", self.unused)):
            if names:
                text += f"; {title}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        return text


def load_pretrained(encoder: nn.Module, path: Path) -> Matched:
    """Copy into the encoder what a file holds for it.

    The names in the file may begin with any prefix, such as ``module.encoder.``: that under which most tensors of the
    right name and shape are found.

    Args:
        encoder: where to.
        path: the folder of a run, or a .safetensors, .pt or .pth file; the latter two are read without executing
            pickles.

    Raises:
        UserError: the file cannot be read, or holds none of the encoder's parameters.
    """
    found = _read(path / MODEL if path.is_dir() else path)
    own = encoder.state_dict()
    prefixes = {name[: -len(key)] for key in own for name in found if name.endswith(key)}

    def matches(prefix: str) -> list[str]:
        return [key for key, x in own.items() if prefix + key in found and found[prefix + key].shape == x.shape]

    best = max(sorted(prefixes), key=lambda prefix: len(matches(prefix)), default="")
    names = matches(best)
    trainable = {name for name, _ in encoder.named_parameters()}
    if not trainable.intersection(names):
        raise UserError(
            f"--init {path} has no tensor of the encoder's names and shapes: it holds {_sample(found)}, the encoder "
            f"{_sample(own)}; is --encoder or --stem another?"
        )
    try:
        encoder.load_state_dict({**own, **{key: found[best + key] for key in names}})
    except RuntimeError as error:  # sparse, quantised or empty storages
        raise UserError(f"--init {path} holds tensors that cannot be copied: {str(error).splitlines()[0]}") from None
    inside = [name for name in found if name.startswith(best)] if best else list(found)
    # Of a run, only what is the encoder's own; a file without a prefix may hold heads beside it.
    unused = [name for name in inside if name[len(best) :] not in own]
    missing = [key for key in own if key not in names and not key.endswith("num_batches_tracked")]
    return Matched(names, missing, best, unused)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except Exception as error:  # a damaged file makes the readers raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--init {path} cannot be read as a state dict: {reason}") from None
    while isinstance(content, Mapping) and not _tensors(content):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"--init {path} holds no state dict")
    return tensors


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): x for name, x in content.items() if isinstance(x, Tensor)}


def _sample(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in list(tensors.items())[:2])
