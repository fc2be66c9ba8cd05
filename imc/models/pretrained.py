"""An encoder's parameters from a file: a run of this package, or a checkpoint of another program.

Whatever a file is nested in, whatever stands before its names and however a ResNet's are spelled: it fits if every
tensor of the encoder is in it, with the encoder's shape, and nothing but heads beside them. Else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from imc.command_line.options import check, flag, read
from imc.errors import UserError
from imc.files.json import read_json
from imc.files.paths import user_path
from imc.files.run_places import CHECKPOINT, CONFIG, MODEL
from imc.files.tensors import StoredTensor, read_tensors
from imc.models.options import DigitsEncoderOptions
from imc.models.resnet import BLOCKS, ResNet
from imc.models.spellings import unwrapped, usual
from imc.text import counted, visible

COUNTER = "num_batches_tracked"  # which nothing here reads, and many files lack
# Words in a prefix, of which several encoders that fit are told apart: taken is what the methods' authors evaluate.
AVERAGED, TEACHER, FOLLOWING = {"ema"}, {"teacher"}, {"student", "momentum", "target", "key", "k"}
WIDTH = 64  # of the ResNets that --encoder names
SHOWN = 5  # names in a message
# What makes an encoder, for a ResNet and for the small one; stem and pool_after can differ where all shapes agree.
RESNET, SMALL = (
    ("encoder", "channels", "stem"),
    ("encoder", "channels", "widths", "pool_after", "pooled_size", "feature_dim"),
)

Stored = Mapping[str, StoredTensor]
Spelling = Callable[[Iterable[str]], dict[str, str]]


@dataclass(frozen=True)
class Matched:
    """What was taken over.

    Attributes:
        names: of the encoder's parameters and buffers that were found.
        prefix: what stands before the names in the file.
        unused: names in the file with that prefix that the encoder has no place for.
        others: prefixes under which the file holds other encoders that fit.
        notes: what else is to be known.
    """

    names: list[str]
    prefix: str
    unused: list[str]
    others: list[str]
    notes: list[str]

    def __str__(self) -> str:
        text = f"all {counted(len(self.names), 'tensor{s}')} of the encoder"
        if self.prefix:
            text += f", under {self.prefix!r}"
        if self.others:
            others = _listed(map(repr, self.others), "and")
            text += f" (there is {others} too, which --init-prefix takes)"
        if self.unused:
            text += f"; not used: {_listed(self.unused)}"
        return "; ".join([text, *self.notes])


def load_pretrained(
    encoder: nn.Module,
    path: Path,
    prefix: str | None = None,
    config: DigitsEncoderOptions | None = None,
    *,
    option: str = "--init",
    heads: tuple[str, ...] = (),
) -> Matched:
    """Copy into the encoder what a file holds for it, in the encoder's dtype.

    Of a query and a key encoder, an online and a target network, the first is taken; of a student and a teacher the
    teacher; of weights and their running average the average: those that the methods' authors evaluate.

    Args:
        encoder: where to.
        path: a file of :func:`imc.files.tensors.read_tensors`, or the folder of a run.
        prefix: of several encoders that fit, that with these names before its own, such as "student".
        config: of the encoder; what no shape shows is compared with the configuration of a run's folder.
        option: that named the file.
        heads: layers that the file may hold beside the encoder, though their names begin as the encoder's do.

    Raises:
        UserError: the file cannot be read, or does not hold the whole encoder.
    """
    file = _file(path, option)
    try:
        tensors = read_tensors(file)
        for spelling in (unwrapped, usual):
            own, found = _own_names(encoder, spelling), _renamed(tensors, spelling)
            fits = [_Fit(own, found, name, heads) for name in _prefixes(own, found)]
            whole = [fit for fit in fits if fit.whole]
            if whole:
                break
    except ValueError as reason:
        raise UserError(f"{option} {path} cannot be read: {reason}") from None
    if not whole:
        raise UserError(
            "; ".join([f"{option} {path} {_refusal(own, found, fits, option)}", *_differences(path, config)])
        )
    fit = _chosen(path, whole, prefix, option)
    others = [other.prefix for other in whole if other is not fit and not fit.equals(other)]
    try:
        encoder.load_state_dict({**encoder.state_dict(), **fit.state()})
    except ValueError as reason:
        raise UserError(f"{option} {path} cannot be used: {reason}") from None
    unused = [name for name in fit.unused if not any((fit.prefix + name).startswith(other) for other in others)]
    notes = [] if prefix is not None or not others else ["taken is the one that the authors of such methods evaluate"]
    return Matched(list(fit.taken), fit.prefix, unused, others, notes + _differences(path, config))


class _Fit:
    """What a file holds under one prefix, beside what the encoder has.

    Attributes:
        prefix: what stands before the names.
        taken: the encoder's name and the file's tensor, of those of equal shape.
        missing: usual names of the encoder's that are not there.
        unequal: those that are there in another shape, with the file's and the encoder's.
        foreign: names beside them that are part of a network, not of its head.
        unused: all names beside them.
    """

    def __init__(
        self, own: Mapping[str, tuple[str, Tensor]], found: Stored, prefix: str, heads: tuple[str, ...] = ()
    ) -> None:
        self.prefix = prefix
        there = {name: found.get(prefix + name) for name in own}
        self.missing = [name for name, x in there.items() if x is None and not name.endswith(COUNTER)]
        self.unequal = [
            (name, x.shape, tuple(own[name][1].shape))
            for name, x in there.items()
            if x is not None and x.shape != tuple(own[name][1].shape)
        ]
        wrong = {name for name, _, _ in self.unequal}
        self.taken = {
            own[name][0]: (x, own[name][1].dtype) for name, x in there.items() if x is not None and name not in wrong
        }
        inside = (name.removeprefix(prefix) for name in found if name.startswith(prefix))
        self.unused = [name for name in inside if name not in own]
        parts = {name.partition(".")[0] for name in own}
        self.foreign = [
            name
            for name in self.unused
            if (name.partition(".")[0] in parts or (re.match(r"layer\d", name) and "layer1" in parts))
            and not any(name.startswith(f"{head}.") for head in heads)
        ]
        self.whole = not (self.missing or self.unequal or self.foreign)

    def state(self) -> dict[str, Tensor]:
        """The tensors, of the encoder's dtypes.

        Raises:
            ValueError: one is damaged, or no numbers to compute with.
        """
        state = {}
        for name, (stored, dtype) in self.taken.items():
            x = stored.read()
            if dtype.is_floating_point and not x.is_floating_point():
                raise ValueError(f"{name} is of {str(x.dtype).removeprefix('torch.')}, where the encoder has fractions")
            state[name] = x = x.to(dtype)
            if not x.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity")
            if name.endswith("running_var") and (x < 0).any():
                raise ValueError(f"{name}, a variance, holds numbers below 0")
        return state

    def equals(self, other: _Fit) -> bool:
        """Whether both are the same numbers: files hold one encoder by two names."""
        return all(_equal(x, other.taken[name][0]) for name, (x, _) in self.taken.items() if name in other.taken)


def _file(path: Path, option: str) -> Path:
    """The file of a run's folder that holds its model."""
    path = user_path(path)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{option} {path} is not there; accepted are a run's folder, .pt, .pth, .safetensors, .npz")
        return path
    for name in (MODEL, CHECKPOINT):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{option} {path} is a folder without {MODEL} or {CHECKPOINT}; name the file in it")


def _own_names(encoder: nn.Module, spelling: Spelling) -> dict[str, tuple[str, Tensor]]:
    """The encoder's tensors and their own names by the names looked for, without the folder that all lie in."""
    state = encoder.state_dict()
    folders = [name.split(".")[:-1] for name in state]
    common = 0
    while folders and all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    short = {".".join(name.split(".")[common:]): (name, x) for name, x in state.items()}
    return {spelled: short[name] for name, spelled in spelling(short).items()}


def _renamed(found: Stored, spelling: Spelling) -> Stored:
    """The file's tensors by the names looked for; of two that get one name, the first.

    Raises:
        ValueError: they differ.
    """
    result: dict[str, StoredTensor] = {}
    for original, name in spelling(found).items():
        first = result.setdefault(name, found[original])
        if first is not found[original] and not _equal(first, found[original]):
            raise ValueError(f"it holds two tensors that are named {name}")
    return result


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    return one.shape == other.shape and torch.equal(one.read(), other.read())


def _prefixes(own: Iterable[str], found: Iterable[str]) -> list[str]:
    """What stands in the file before names that are the encoder's."""
    own, prefixes = set(own), dict[str, None]()
    for name in found:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                prefixes["".join(f"{part}." for part in parts[:start])] = None
    return list(prefixes)


def _chosen(path: Path, whole: list[_Fit], prefix: str | None, option: str) -> _Fit:
    """Of the encoders that fit, the one asked for, or the one that the methods' authors evaluate."""
    names = _listed((repr(fit.prefix) for fit in whole), "and")
    if prefix is not None:
        asked = [fit for fit in whole if f".{prefix.strip('.')}." in f".{fit.prefix}"]
        if not asked:
            raise UserError(f"--init-prefix {prefix}: no such encoder in {path}; there is {names}")
        whole = asked
    best = min(_rank(fit.prefix) for fit in whole)
    first, *others = [fit for fit in whole if _rank(fit.prefix) == best]
    if not all(first.equals(other) for other in others):
        advice = "choose one with --init-prefix" if option == "--init" else "give a file of one of them"
        raise UserError(f"{option} {path} holds {len(whole)} encoders that fit: {names}; {advice}")
    return first


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    return next((rank for rank, kind in ((3, FOLLOWING), (2, TEACHER), (0, AVERAGED)) if words & kind), 1)


def _refusal(own: Mapping[str, tuple[str, Tensor]], found: Stored, fits: Iterable[_Fit], option: str) -> str:
    """Why nothing in the file fits, and with which options it would."""
    best = max(fits, key=lambda fit: (len(fit.taken), -len(fit.foreign), fit.prefix == ""), default=None)
    if not found:
        return "holds no tensors"
    if best is None or not best.taken:
        held = (f"{name} {list(x.shape)}" for name, x in found.items())
        has = (f"{name} {list(x.shape)}" for name, (_, x) in own.items())
        reason = f"does not hold the encoder: it has {_listed(held, count=2)}, the encoder {_listed(has, count=2)}"
    else:
        reason = f"does not fit: it has {len(best.taken)} of {counted(len(own), 'tensor{s}')} of the encoder"
        if best.prefix:
            reason += f", under {best.prefix!r}"
        if best.unequal:
            name, there, here = best.unequal[0]
            reason += f"; {name} is {list(there)} there and {list(here)} here"
        for title, names in (("not there", best.missing), ("there and not here", best.foreign)):
            reason += f"; {title}: {_listed(names, count=2)}" if names else ""
    if option != "--init":  # of another network's weights it is not another option that helps
        return reason
    options = next(filter(None, (_options(own, found, prefix) for prefix in _prefixes(["conv1.weight"], found))), None)
    return reason if options is None else f"{reason}; {options}"


def _options(own: Mapping[str, tuple[str, Tensor]], found: Stored, prefix: str) -> str | None:
    """The options with which what the file holds under a prefix is the encoder, tried on encoders without memory."""
    shape = found[f"{prefix}conv1.weight"].shape
    stem = {3: "cifar", 7: "imagenet"}.get(shape[-1] if len(shape) == 4 else 0)
    if stem is None or shape[0] != WIDTH:
        return None
    for name, blocks in BLOCKS.items():
        last = f"{prefix}layer3.{blocks[2] - 1}.conv{3 if name == 'resnet50' else 2}.weight"
        if last not in found:
            continue
        with torch.device("meta"):
            other = ResNet(name, shape[1], stem=stem, bn_momentum=0.1, width=WIDTH)
        if _Fit(_own_names(other, usual), found, prefix).whole:
            here = next((x.shape[1] for _, x in own.values() if x.dim() == 4), shape[1])
            channels = (
                f" and images of {counted(shape[1], 'channel{s}')} (these have {here})" if here != shape[1] else ""
            )
            return f"with --encoder {name} --stem {stem}{channels} it fits"
    return None


def _differences(path: Path, options: DigitsEncoderOptions | None) -> list[str]:
    """What makes the encoder of a run another one than these options do."""
    folder = user_path(path)
    if options is None or not (folder / CONFIG).is_file():
        return []
    saved, own = read_json(folder / CONFIG), {entry.name for entry in fields(DigitsEncoderOptions)}
    before = read(DigitsEncoderOptions, {name: value for name, value in saved.items() if name in own})
    check(before)
    names = [
        name
        for name in (RESNET if before.encoder in BLOCKS else SMALL)
        if _value(before, name) != _value(options, name)
    ]
    return [f"that run had {flag(name)} {_value(before, name)}, this one has {_value(options, name)}" for name in names]


def _value(options: DigitsEncoderOptions, name: str) -> str:
    value = getattr(options, name)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _listed(names: Iterable[str], last: str = "", count: int = SHOWN) -> str:
    """The first of the names; with ``last`` the word before the last one."""
    texts = [visible(name) for name in names]
    shown = texts[:count] + (["..."] if len(texts) > count else [])
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}" if last and len(shown) > 1 else ", ".join(shown)
