"""Reads the machine code of a GPU kernel: its loops, what they count, and how long a warp alone takes for a trip.

`cuobjdump -sass` prints an instruction with its 128 bits. The upper ones hold what ptxas decided: for how many cycles
nothing of the warp is issued after it, which of six barriers its result or its reading of registers takes, and which
barriers it waits for. A warp's time depends on nothing else where nothing else runs, but for the latencies below.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Cycles from issue to result, of what has no fixed latency: from microbenchmarks of Hopper that others have published
# (arXiv:2402.13499), rounded. Replaced by measurements once there are some.
LATENCIES = {"LDS": 30, "LDSM": 33, "LD": 200, "SHFL": 24, "MUFU": 24, "F2F": 24, "ATOM": 600, "BAR": 30}
GLOBAL = {"memory": 700, "L2": 270, "L1": 40}
OTHER = 16
NO_BARRIER = 7

INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+ +)?([A-Z0-9_.]+)([^;]*);\s+/\* 0x[0-9a-f]+ \*/\s+/\* 0x([0-9a-f]+) \*/"
)
FLOAT32 = {"FADD", "FMUL", "FFMA", "FFMA2", "FADD2", "FMUL2", "FMNMX", "FMNMX3", "FSEL", "FSETP", "FSET"}
# What a multiprocessor's quarter starts every other cycle only: all that is neither a product nor a sum of floats.
HALF_RATE = FLOAT32 - {"FADD", "FMUL", "FFMA", "FFMA2", "FADD2", "FMUL2"} | {
    "IADD3", "LOP3", "ISETP", "SEL", "SHF", "LEA", "PRMT", "VIADD", "VIMNMX", "VIADDMNMX", "IMNMX", "PLOP3", "IABS",
    "IMAD", "UIMAD", "IADD",
}  # fmt: skip
GLOBAL_LOADS = {"LDG", "LDGSTS"}


class Instruction(NamedTuple):
    address: int
    opcode: str  # with its modifiers
    operands: str
    stall: int
    write_barrier: int
    read_barrier: int
    waits: int  # a bit for each barrier

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def bytes(self) -> int:
        """Of a thread's access."""
        found = re.search(r"\.(?:U|S|BYPASS\.|)(8|16|64|128)(?:\.|$)", self.opcode)
        return int(found[1]) // 8 if found else 4


def functions(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """(mangled name, instructions) of each function that cuobjdump printed."""
    for part in text.split("Function : ")[1:]:
        name = part.split(maxsplit=1)[0]
        code = []
        for address, opcode, operands, upper in INSTRUCTION.findall(part):
            bits = int(upper, 16) >> 41
            code.append(
                Instruction(
                    int(address, 16), opcode, operands, bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
                )
            )
        yield name, code


def disassemble(cuobjdump: str, path: str, *options: str) -> Iterator[tuple[str, list[Instruction]]]:
    command = [cuobjdump, "-sass", *options, path]
    return functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Each loop's instructions without those of the loops inside it, by address."""
    owner = _owners(code)
    own: dict[int, list[Instruction]] = {}
    for x in code:
        if x.address in owner:
            own.setdefault(owner[x.address], []).append(x)
    return [own[start] for start in sorted(own)]


def outside(code: list[Instruction]) -> list[Instruction]:
    """What is in no loop, up to the last exit: behind it stand calls and what warps do whose threads went apart."""
    owner = _owners(code)
    end = max(x.address for x in code if x.base == "EXIT")
    return [x for x in code if x.address not in owner and x.address <= end]


def _owners(code: list[Instruction]) -> dict[int, int]:
    """An instruction's address -> that of the start of the innermost loop which it is in."""
    ends: dict[int, int] = {}
    for x in code:
        target = re.search(r"\b0x([0-9a-f]+)\s*$", x.operands)
        if x.base == "BRA" and target and int(target[1], 16) <= x.address:
            ends[int(target[1], 16)] = max(x.address, ends.get(int(target[1], 16), 0))
    owner: dict[int, int] = {}
    for start, end in sorted(ends.items(), key=lambda span: span[0] - span[1]):  # the longest first
        owner.update((x.address, start) for x in code if start <= x.address <= end and start < end)
    return owner


def in_flight(code: list[Instruction]) -> int:
    """The most global loads that are under way when a warp first waits for one of them."""
    loads: Counter[int] = Counter()
    most = 0
    for x in code + code:
        waited = [barrier for barrier in loads if x.waits >> barrier & 1 and loads[barrier]]
        if waited:
            most = max(most, loads.total())
            for barrier in waited:
                del loads[barrier]
        if x.base in GLOBAL_LOADS and x.write_barrier != NO_BARRIER:
            loads[x.write_barrier] += 1
    return most


def cycles(code: list[Instruction], level: str = "memory") -> int:
    """A trip's, of one warp with nothing beside it, the second time; its global loads come from ``level``."""
    now, ready, ends = 0, [0] * 6, []
    for _ in range(2):
        for x in code:
            now = max([now] + [ready[barrier] for barrier in range(6) if x.waits >> barrier & 1])
            latency = GLOBAL[level] if x.base in GLOBAL_LOADS else LATENCIES.get(x.base, OTHER)
            if x.write_barrier != NO_BARRIER:
                ready[x.write_barrier] = max(ready[x.write_barrier], now + latency)
            if x.read_barrier != NO_BARRIER:
                ready[x.read_barrier] = max(ready[x.read_barrier], now + OTHER)
            now += max(1, x.stall)
        ends.append(now)
    return ends[1] - ends[0]


@dataclass(frozen=True)
class Region:
    """What a loop's trip has of each kind, for one thread."""

    code: list[Instruction]

    def count(self, kind: str | Callable[[Instruction], bool]) -> int:
        """Instructions whose name begins with ``kind``, or of which it holds."""
        holds = (lambda x: x.opcode.startswith(kind)) if isinstance(kind, str) else kind
        return sum(map(holds, self.code))

    def scalars(self, *bases: str, size: int = 4) -> int:
        """Elements of ``size`` bytes that these instructions move."""
        return sum(max(1, x.bytes // size) for x in self.code if x.base in bases)

    def bytes(self, *bases: str) -> int:
        return sum(x.bytes for x in self.code if x.base in bases)

    @property
    def instructions(self) -> int:
        return len(self.code)

    @property
    def float32(self) -> int:
        return self.count(lambda x: x.base in FLOAT32)

    @property
    def special(self) -> int:
        """On the special-function unit, 16 threads a cycle: MUFU and conversions, not those of 32 bits."""
        return self.count(lambda x: x.base in ("MUFU", "F2F", "F2I", "I2F", "FRND"))

    @property
    def float64(self) -> int:
        """Conversions to or from float64."""
        return self.count(lambda x: x.base in ("F2F", "F2I", "I2F") and "F64" in x.opcode)

    @property
    def double(self) -> int:
        """Arithmetic in float64."""
        return self.count(lambda x: x.base in ("DADD", "DMUL", "DFMA", "DSETP"))

    @property
    def matrix(self) -> int:
        return self.count(lambda x: re.match(r"(?:[A-Z]*MMA|UTC[A-Z]*MMA)$", x.base) is not None and x.base != "HFMA2")

    @property
    def shared(self) -> int:
        return self.count(lambda x: x.base in ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LD", "ST"))

    @property
    def accesses(self) -> int:
        """Cycles that shared memory and the first-level cache need for a warp's loads and stores: 128 bytes in one."""
        bases = ("LDS", "STS", "LDSM", "STSM", "LD", "ST", "LDG", "LDGSTS", "STG")
        return sum(max(1, x.bytes // 4) for x in self.code if x.base in bases)

    @property
    def issue(self) -> float:
        """Cycles in which a quarter of a multiprocessor starts these for one warp, at the least."""
        return max(self.instructions, 2 * self.count(lambda x: x.base in HALF_RATE))

    @property
    def widths(self) -> str:
        """Of the global loads, in bytes, with how many of each."""
        found = Counter(x.bytes for x in self.code if x.base in GLOBAL_LOADS)
        return " ".join(f"{count}x{width}" for width, count in sorted(found.items(), reverse=True))

    @property
    def kind(self) -> str:
        """What it does, in the order of its first such instructions, as ``load exp2 store``."""
        names = (
            ("LDG", "load"), ("LDS", "shared"), ("LD", "peer"), ("MUFU.EX2", "exp2"), ("MUFU.LG2", "log2"),
            ("MUFU.RCP", "rcp"), ("MUFU.SIN", "sin"), ("F2F", "f64"), ("HGMMA", "matrix"), ("HMMA", "matrix"),
            ("UTCHMMA", "matrix"), ("UTCQMMA", "matrix"), ("STS", "to shared"), ("STG", "store"), ("SHFL", "shuffle"),
        )  # fmt: skip
        found: dict[str, int] = {}
        for prefix, name in names:
            for at, x in enumerate(self.code):
                if x.base == prefix or ("." in prefix and x.opcode.startswith(prefix)):
                    found[name] = min(at, found.get(name, at))
                    break
        return " ".join(sorted(found, key=lambda name: found[name]))

    def elements(self, size: int = 4) -> int:
        """Of a trip: what is exponentiated, else written, else read."""
        return (
            self.count("MUFU.EX2")
            or self.scalars("STG", size=size)
            or self.scalars("STS", "ST")
            or self.scalars("LDG", "LDGSTS", size=size)
            or self.scalars("LDS", "LD")
            or 1
        )


def main_loops(code: list[Instruction], size: int = 4) -> list[Region]:
    """Of the loops that do the same only the one with the most elements a trip: not the remainders."""
    best: dict[tuple[str, int], Region] = {}
    for region in map(Region, loops(code)):
        elements = region.elements(size)
        key = region.kind, round(region.float32 / elements)
        waits = region.count("LD.E.STRONG")  # for other blocks
        if region.kind and not waits and (key not in best or elements > best[key].elements(size)):
            best[key] = region
    return list(best.values())
