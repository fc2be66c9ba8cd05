"""How long the CUDA kernels take on an H200, by their machine code: nothing here is measured.

A case says which loops a call runs through, and how many elements each sees; what an element costs is read from the
compiled loop. The time is the largest of what one unit needs for all of it, if everything else were free, with the
launches and the barriers, which nothing hides. What stands outside of the loops counts where a case asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sass

CLOCK = 1.8e9
MULTIPROCESSORS = 132
MEMORY = 4.3e12  # bytes a second
OF_ONE = 64  # bytes a cycle between a multiprocessor and L2
REGISTERS, THREADS, SHARED = 65_536, 2_048, 228 << 10  # of a multiprocessor
# Microseconds, assumed until a GPU says: a kernel in a replayed graph that does nothing, and a barrier.
LAUNCH = 2.0
BARRIERS = {"cluster": 0.4, "grid": 1.3}
OUTSIDE = "outside"  # of all loops, once for each thread


@dataclass(frozen=True)
class Sweep:
    """What the whole problem asks of a loop.

    Attributes:
        loop: what it does (``sass.Region.kind``), or OUTSIDE; of several the one with the most elements a trip.
        elements: that it sees in all, idle threads' included.
        per: how many a trip of a thread has, or the instruction of which there is one for each; by default
            ``sass.Region.elements``.
        having: an instruction that tells it from others that do the same.
        level: where its global loads come from.
    """

    loop: str
    elements: float
    per: str | int = ""
    having: str = ""
    level: str = "L2"

    def region(self, code: list[sass.Instruction]) -> sass.Region:
        if self.loop == OUTSIDE:
            return sass.Region(sass.outside(code))
        found = [x for x in map(sass.Region, sass.loops(code)) if x.kind == self.loop and x.count(self.having)]
        if not found:
            raise LookupError(f"no loop does {self.loop!r} any more: put the case in {__file__} right")
        return max(found, key=lambda region: (self.each(region), region.instructions))

    def each(self, region: sass.Region) -> int:
        if isinstance(self.per, int):
            return self.per
        return region.count(self.per) if self.per else region.elements()


@dataclass(frozen=True)
class Case:
    """A call at the size of a paper.

    Attributes:
        warps: of a block, those that work; by default all.
        shared: dynamic, bytes of a block.
        bytes: each input read once and each output written once.
        moved: what this kernel reads and writes of memory, where that is more.
        barriers: how often the blocks of a problem wait for each other, in a ``together``.
        launches: of the call, with the small kernels that have no case.
    """

    name: str
    kernel: str
    blocks: int
    threads: int
    sweeps: tuple[Sweep, ...]
    bytes: int
    warps: int = 0
    shared: int = 0
    moved: int = 0
    barriers: int = 0
    together: str = "cluster"
    launches: int = 1


@dataclass(frozen=True)
class Time:
    """Microseconds."""

    multiprocessors: int
    resident: int  # blocks on each
    issue: float
    special: float
    shared: float
    memory: float
    waiting: float  # a warp's own trips one after the other, each as if it were alone
    fixed: float  # launches and barriers
    floor: float

    @property
    def predicted(self) -> float:
        return self.fixed + max(self.issue, self.special, self.shared, self.memory, self.waiting)

    @property
    def bound(self) -> str:
        parts = {name: getattr(self, name) for name in ("issue", "special", "shared", "memory", "waiting")}
        parts["launches and barriers"] = self.fixed
        return max(parts, key=lambda name: parts[name])


def predict(case: Case, code: list[sass.Instruction], registers: int, shared: int) -> Time:
    """From a kernel's code, its registers of a thread and its static shared memory."""
    of_block = shared + case.shared
    fits = [REGISTERS // (case.threads * -(-registers // 8) * 8), THREADS // case.threads]
    resident = max(1, min([*fits, SHARED // of_block] if of_block else fits))
    used = min(MULTIPROCESSORS, case.blocks)
    at_a_time = min(case.blocks, used * resident) * (case.warps or case.threads // 32)
    issue = special = through = waiting = 0.0
    for sweep in case.sweeps:
        region = sweep.region(code)
        trips = sweep.elements / sweep.each(region) / 32
        issue += trips * region.issue / 4 / used
        special += trips * region.special * 2 / used
        through += trips * region.accesses / used
        waiting += trips / at_a_time * sass.cycles(region.code, sweep.level)
    second = 1e6 / CLOCK
    bandwidth = min(MEMORY, used * OF_ONE * CLOCK)
    return Time(
        used,
        resident,
        issue * second,
        special * second,
        through * second,
        max(case.bytes, case.moved) / bandwidth * 1e6,
        waiting * second,
        case.launches * LAUNCH + case.barriers * BARRIERS[case.together],
        case.bytes / MEMORY * 1e6,
    )


def swapped(views: int, assigned: int, batch: int, prototypes: int) -> Case:
    held, row = 16, 64 if prototypes <= 1024 else 256  # elements of a thread, threads of a row
    rows = views * batch * row * held
    return Case(
        f"swapped_prediction_loss [{views}, {batch}, {prototypes}]",
        f"swapped_prediction_kernel<float, float, 4, {row}, {assigned}>",
        views * batch * row // 256,
        256,
        (
            Sweep("load shuffle to shared shared exp2", rows, per=held, level="memory"),
            Sweep("store", rows),
            Sweep(OUTSIDE, rows, per=held),
        ),
        4 * (2 * views + assigned) * batch * prototypes,
        launches=2,
    )


def sinkhorn(problems: int, batch: int, prototypes: int) -> Case:
    """Three iterations, of scores whose exponentials do not underflow."""
    n = problems * batch * prototypes
    in_cluster = problems * batch * prototypes * 4 <= problems * 8 * 220_000
    first = (
        Sweep("load to shared", n, level="memory")
        if in_cluster
        else Sweep("load", n, having="LDG.E.128", level="memory")
    )
    made = Sweep("shared exp2 to shared", n) if in_cluster else Sweep("load exp2 to shared", 4 * n)
    rows = Sweep("shared", 3 * n, per="FFMA", having="LEA")
    push = Sweep("shared", 3 * n, per="FFMA", having="LDS.64")
    blocks = 8 * problems if in_cluster else 128
    factors = 3 * prototypes * blocks * 8 if in_cluster else 3 * 2 * prototypes * 128
    gather = Sweep("peer" if in_cluster else "load", factors, having="FADD")
    return Case(
        f"sinkhorn [{problems}, {batch}, {prototypes}]",
        f"sinkhorn_kernel<float, 4, true, {str(in_cluster).lower()}>",
        blocks,
        512,
        (first, made, rows, push, gather, Sweep("shared store", n)),
        8 * n,
        shared=200_000,
        barriers=5 if in_cluster else 7,
        together="cluster" if in_cluster else "grid",
    )


def mutual_information(views: int, batch: int, clusters: int, prototypes: int) -> Iterable[Case]:
    n, width = views * batch * prototypes, views * prototypes + 4
    joint = views * clusters * width
    blocks = -(-views * batch // 8)
    yield Case(
        f"mutual_information_loss [{views}, {batch}, {clusters}], [{views}, {batch}, {prototypes}]: softmaxes",
        "mutual_information_softmaxes_kernel<float>",
        2 * blocks,
        256,
        (
            Sweep("load", n, having="FMNMX.NAN", level="memory"),
            Sweep("load exp2", n, level="L1"),
            Sweep("load exp2 store", n, level="L1"),
        ),
        8 * n,
    )
    yield Case(
        "its entropies",
        "mutual_information_entropies_kernel",
        views * -(-width // 256),
        256,
        (Sweep("load", joint), Sweep("load store", joint)),
        8 * joint,
        launches=2,
    )


def log_dot(heads: int, batch: int, clusters: int) -> Case:
    """In clusters of 8 blocks. A thread has a row where predictions are made and the gradient."""
    n, rows = heads * 2 * batch * clusters, 2 * batch // 8
    return Case(
        f"log_dot_product_loss [{heads}, 2, {batch}, {clusters}]",
        "log_dot_product_kernel<float, float, true, true>",
        8 * heads,
        512,
        (
            Sweep("load to shared", n, level="memory"),
            Sweep("shared", n, having="FMNMX.NAN"),
            Sweep("shared exp2 to shared", n),
            Sweep("shared to shared", n),
            Sweep("shared", 2 * n),
            Sweep("shared store", n),
        ),
        8 * n,
        warps=rows // 32,
        shared=4 * batch // 8 * (2 * (clusters | 1) + 3),
        barriers=3,
    )


def crops(views: int, batch: int, size: int, side: int = 32) -> Case:
    """Boxes of 0.7 of the side, colours on in 0.8 of the crops, blur in half. A pixel takes four turns through the loop
    of colours, a quarter of its code in each."""
    n, box = views * batch, 0.7 * side
    lanes = -(-int(box * 3) // 128) * 128  # of a row of the box
    taps = max(2.0, 2 * box / size)
    pixels = -(-size * (size | 1) // 256) * 256
    return Case(
        f"multi_crop [{side}, {side}, 3] to [{views}, {batch}, 3, {size}, {size}] bfloat16",
        "multi_crop_kernel<bfloat16, 3, true>",
        n,
        256,
        (
            Sweep("load", n * size * lanes * taps),
            Sweep("shared", n * size * 32 * taps * 3),
            Sweep("rcp", 0.8 * n * pixels),
            Sweep("shared to shared", 0.5 * n * 2 * 256 * size),
            Sweep("shared store", n * -(-size * size // 1024) * 1024 * 3, per="LDS"),
        ),
        int(n * (box * box * 3 + size * size * 3 * 2)),
        shared=12 * size * (size | 1) + 8 * side * 12,
    )


def cases() -> list[Case]:
    return [
        sinkhorn(2, 256, 1000),
        sinkhorn(1, 4096, 3000),
        swapped(6, 2, 256, 1000),
        swapped(8, 2, 4096, 3000),
        *mutual_information(6, 256, 10, 1000),
        log_dot(10, 512, 10),
        crops(2, 256, 28),
        crops(4, 256, 18),
    ]
