"""What the kernels are asked to reach, held against the rows of a run: printed after the tables of `--benchmark-only`.

The tables time one form after the other. A target's forms are timed once more at the end, in turns of a few calls, the
last of which counts: what slows the machine slows all alike. A ratio is that of the medians, with that of the fastest
calls beside it: where there is other work, the second says more. The floor is the larger of the work's bytes at the
copy bandwidth and its operations at the matrix rate, both measured in the same process: no form can be faster, whatever
is asked of it, but one whose products are faster than torch's (csrc/cpu/amx.h).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from cases import cases
from measure import DEVICE, copy_bandwidth, in_turns, matrix_rate

KERNELS = ("cuda", "triton", "cpu")
TURNS = 4.0  # seconds for the forms of one target
WARMING = 3  # calls that bring a form's data back into the caches, which the form before has taken
FLOOR = "the floor"
NOISE = 1.1  # below this a row that is slower than eager is the machine's, not the kernel's


class Seconds(NamedTuple):
    """Of one form."""

    median: float
    fastest: float


Groups = Mapping[str, Mapping[str, Seconds]]  # group -> row -> its times


@dataclass(frozen=True)
class Target:
    """A ratio that is asked for.

    Attributes:
        work: the beginning of the group's name.
        direction: its end.
        against: the row compared with, or FLOOR.
        asked: how many times its time must be the kernel's; of the floor, how many times as long the kernel may take.
        case: (name, size) in ``cases.py``, for the floor.
    """

    work: str
    direction: str
    against: str
    asked: float
    case: tuple[str, str]

    def is_of(self, group: str) -> bool:
        return group.startswith(self.work) and group.endswith(self.direction)


STEP = ("losses of an IMC-SwAV step", "V6 B256 K1000 C10 IMC-SwAV CIFAR-10")
SINKHORN = ("sinkhorn", "[2, 256, 1000] IMC-SwAV CIFAR-10")
CRLC = ("log_dot_product_loss", "[10, 2, 512, 10] CRLC CIFAR-10")
TEMI = ("self_distillation_loss", "[16, 2, 1024, 10] TEMI CIFAR-10")
TEMI_HEADS = ("self_distillation_loss", "[50, 2, 512, 100] TEMI, 50 heads")
CROPS = ("multi_crop", "B256 2x28 + 4x18 IMC-SwAV CIFAR-10")
TARGETS = (
    Target("losses of an IMC-SwAV step imc-swav-cifar10", "forward+backward", "torch.compile", 2.5, STEP),
    Target("losses of an IMC-SwAV step imc-swav-cifar10", "forward+backward", FLOOR, 1.5, STEP),
    Target("sinkhorn imc-swav-cifar10", "forward", "torch.compile", 2, SINKHORN),
    Target("log_dot_product_loss crlc-cifar10", "forward+backward", "N x N", 50, CRLC),
    Target("self_distillation_loss temi-cifar10", "forward+backward", "released", 10, TEMI),
    Target("self_distillation_loss temi-cifar10", "forward+backward", "torch.compile", 2, TEMI),
    Target("self_distillation_loss temi-50-heads", "forward+backward", "released", 10, TEMI_HEADS),
    Target("self_distillation_loss temi-50-heads", "forward+backward", "torch.compile", 2, TEMI_HEADS),
    Target("multi_crop imc-swav-cifar10", "one core", "released", 40, CROPS),
    Target("multi_crop imc-swav-cifar10", "one core", "kornia", 8, CROPS),
)


_kept: dict[str, dict[str, Callable[[], None]]] = {}


def keep(group: str, form: str, step: Callable[[], None]) -> None:
    """Remember what a row of the tables times, where a target asks for it."""
    if any(target.is_of(group) and form in (target.against, *KERNELS) for target in TARGETS):
        _kept.setdefault(group, {})[form] = step


def timed_in_turns() -> Groups:
    """The targets' forms of this run."""
    timed = {}
    for group, steps in _kept.items():
        samples = in_turns(steps, [()], seconds=TURNS, warming=WARMING).items()
        timed[group] = {form: Seconds(statistics.median(x) / 1e6, min(x) / 1e6) for form, x in samples}
    return timed


def kernel_of(rows: Mapping[str, Seconds]) -> str | None:
    """The backend that the automatic choice takes first, of those that the rows have."""
    return next((name for name in KERNELS if name in rows), None)


def line(target: Target, groups: Groups, floors: Mapping[tuple[str, str], float]) -> str | None:
    """One target's line; None where the run has no row for it."""
    found = [rows for group, rows in groups.items() if target.is_of(group)]
    if not found or (kernel := kernel_of(found[0])) is None:
        return None
    rows = found[0]
    head = f"{target.work}, {kernel} against {target.against}: asked {target.asked:g} x, "
    if target.against == FLOOR:
        ours, floor = rows[kernel], floors[target.case]
        ratio = ours.median / floor
        met = "met" if ratio <= target.asked else f"missed by a factor of {ratio / target.asked:.2f}"
        return head + f"measured {ratio:.3g} x ({ours.median * 1e3:.3g} ms / {floor * 1e3:.3g} ms), {met}"
    if target.against not in rows:
        return head + f"not measured: there is no row {target.against!r} in this run"
    ours, theirs = rows[kernel], rows[target.against]
    ratio, floor = theirs.median / ours.median, floors[target.case]
    text = head + f"measured {ratio:.3g} x ({theirs.median * 1e3:.3g} ms / {ours.median * 1e3:.3g} ms; "
    text += f"{theirs.fastest / ours.fastest:.3g} x by the fastest rounds), "
    text += "met" if ratio >= target.asked else f"missed by a factor of {target.asked / ratio:.2f}"
    text += f"; floor {floor * 1e3:.3g} ms"
    if ratio < target.asked and theirs.median / floor < target.asked:
        text += f": out of reach, even at the floor it would be {theirs.median / floor:.3g} x"
    return text


def slower_than_eager(groups: Groups) -> Iterator[str]:
    """A line for every kernel whose fastest round took longer than eager's, beyond noise."""
    for group, rows in groups.items():
        for name in KERNELS:
            if name not in rows or "eager" not in rows:
                continue
            ratio = rows[name].fastest / rows["eager"].fastest
            if ratio > NOISE:
                yield f"{group}, {name}: {ratio:.2f} of eager's time ({rows[name].fastest * 1e3:.3g} ms)"


def measured_floors() -> tuple[dict[tuple[str, str], float], str]:
    """Seconds of each case at this device's rates, measured now, and a line that names the rates."""
    copy = copy_bandwidth(DEVICE, 1 << 28)
    matrix = matrix_rate(DEVICE, torch.float32, 1024)
    floors = {(case.name, case.size): max(case.bytes / copy, case.operations / matrix) for case in cases()}
    return floors, f"floors at a copy bandwidth of {copy / 1e9:.1f} GB/s and {matrix / 1e9:,.0f} GFLOP/s, measured now"


def summary(groups: Groups, seconds: float) -> list[str]:
    """The lines after the tables.

    Args:
        groups: group -> row -> its times.
        seconds: that the run took.
    """
    floors, rates = measured_floors()
    turns = timed_in_turns()
    lines = [text for target in TARGETS if (text := line(target, turns, floors))]
    if lines:
        lines.append(rates)
    slower = list(slower_than_eager(groups))
    compared = sum("eager" in rows and kernel_of(rows) is not None for rows in groups.values())
    lines.append(f"never slower than eager, beyond {NOISE - 1:.0%} of noise: {compared} tables compared")
    lines += [f"    slower: {text}" for text in slower] or ["    none was"]
    return [*lines, f"printed in {seconds:.0f} s"]
