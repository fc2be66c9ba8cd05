"""The names that others give to the tensors of a ResNet, turned into torchvision's, which are this package's too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

# What compiled, sharded and checkpointed modules put into names, at any place.
WRAPPINGS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Not detectron2's: its models have their stride elsewhere and take blue first, which no name or shape shows.
# (pattern, name, what is added to a number that the pattern captures and that follows the name)
SPELLINGS = tuple(
    (re.compile(rf"(?<![^.]){pattern}\."), name, change)
    for pattern, name, change in (
        # transformers
        (r"embedder\.embedder\.convolution", "conv1", 0),
        (r"embedder\.embedder\.normalization", "bn1", 0),
        (r"encoder\.stages\.(\d+)\.layers", "layer", 1),
        (r"layer\.(\d+)\.convolution", "conv", 1),
        (r"layer\.(\d+)\.normalization", "bn", 1),
        # the code released for IMC-SwAV, and others with the stem in one sequence
        (r"co(?:vn|nv)1\.0", "conv1", 0),
        (r"co(?:vn|nv)1\.1", "bn1", 0),
        (r"covn1", "conv1", 0),
        # ResNets for CIFAR, SCAN's among them
        (r"(?:shortcut|skip|residual)\.(?:0|conv|convolution)", "downsample.0", 0),
        (r"(?:shortcut|skip|residual)\.(?:1|bn|normalization)", "downsample.1", 0),
    )
)
BLOCK = re.compile(r"(.*?)(\d+)\.\d+\.conv1\.weight")
STAGES = 4


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without what a wrapped module puts into it."""
    return {name: WRAPPINGS.sub("", name) for name in names}


def usual(names: Iterable[str]) -> dict[str, str]:
    """Each name as torchvision has it, whatever stands before it; a name of another kind as it is."""
    spelled = {name: _usual(part) for name, part in unwrapped(names).items()}
    stages = _named_stages(set(spelled.values()))
    return {name: stages.get(part, part) for name, part in spelled.items()}


def _usual(name: str) -> str:
    for pattern, replacement, change in SPELLINGS:
        match = pattern.search(name)
        if match is not None:
            number = int(match[1]) + change if match.groups() else ""
            name = f"{name[: match.start()]}{replacement}{number}.{name[match.end() :]}"
    return name


def _named_stages(names: Set[str]) -> dict[str, str]:
    """The usual names of those tensors that lie in a sequence of a ResNet's parts: stem, four stages, what follows.

    ``net.0.weight``, ``net.1.bias``, ``net.4.0.conv1.weight`` are ``net.conv1.weight``, ``net.bn1.bias``,
    ``net.layer1.0.conv1.weight``, wherever activations and pools take numbers between them.
    """
    stages: dict[str, set[int]] = {}
    for name in names:
        match = BLOCK.fullmatch(name)
        if match and (not match[1] or match[1].endswith(".")):
            stages.setdefault(match[1], set()).add(int(match[2]))
    renamed = {}
    for prefix, found in stages.items():
        if len(found) != STAGES:
            continue
        parts = {f"{prefix}{number}.": f"{prefix}layer{stage}." for stage, number in enumerate(sorted(found), start=1)}
        stem = [name for name in names if name.startswith(prefix) and _number(name, prefix) < min(found)]
        for kind, ending in (("conv1", ".weight"), ("bn1", ".running_mean")):
            holders = [name.removesuffix(ending) for name in stem if name.endswith(ending)]
            norms = {name.removesuffix(".running_mean") for name in stem if name.endswith(".running_mean")}
            chosen = [holder for holder in holders if (holder in norms) == (kind == "bn1")]
            if len(chosen) == 1:  # of a deeper stem none is conv1
                parts[f"{chosen[0]}."] = f"{prefix}{kind}."
        for name in names:
            part = next((part for part in parts if name.startswith(part)), None)
            if part is not None:
                renamed[name] = parts[part] + name.removeprefix(part)
    return renamed


def _number(name: str, prefix: str) -> float:
    first = name[len(prefix) :].partition(".")[0]
    return int(first) if first.isdecimal() else float("inf")
