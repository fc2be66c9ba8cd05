"""The parts of a configuration about the machine."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option

BACKENDS = ("auto", "cuda", "triton", "cpu", "eager")


@dataclass(frozen=True)
class DeviceOptions:
    """Where a run computes."""

    device: str = option(
        "auto", "speed", "where to run; auto: a GPU where there is one", choices=("auto", "cpu", "cuda")
    )


@dataclass(frozen=True)
class ThreadOptions:
    """The threads of the CPU."""

    thread_independent: bool = option(
        False,
        "run",
        "the same bits on any number of CPU threads: at most 1.3 times as long on 2 threads, 2.9 times on 8",
    )
    threads: int = option(0, "speed", "CPU threads; 0: as many as torch chooses", at_least=0)


@dataclass(frozen=True)
class BackendOptions:
    """Which kernels run."""

    backend: str = option(
        "auto", "run", "kernels: auto, cuda, triton, cpu or eager; auto: the first that is built", suggested=BACKENDS
    )
