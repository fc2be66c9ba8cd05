"""The processes that share one training run: those of torch.distributed, or of the environment that torchrun sets."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imc.errors import RunError
from imc.machine import launchers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank, world: its number and how many there are.
        group: what exchanges tensors on the device (NCCL, or gloo on the CPU); None for one process.
        host: what exchanges tensors on the host (gloo); None for one process.
    """

    rank: int = 0
    world: int = 1
    group: ProcessGroup | None = None
    host: ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes of values on the host."""
        if self.host is not None:
            dist.all_reduce(values, group=self.host)
            values /= self.world
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes of values on the host."""
        if self.host is not None:
            dist.all_reduce(values, group=self.host)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.host is None:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self.host)
        return values

    def share(self, value: Any) -> Any:
        """The first process's value."""
        values = [value]
        if self.host is not None:
            dist.broadcast_object_list(values, src=0, group=self.host)
        return values[0]


@contextlib.contextmanager
def ranks(device: torch.device, timeout: float) -> Iterator[Ranks]:
    """Join the processes of the run, if there are several: those of torch.distributed where it is initialised, else
    those that the environment says.

    Args:
        device: that of this process.
        timeout: seconds after which one that does not answer is given up.

    Raises:
        UserError: the environment is not one that a launcher sets.
        RunError: the others are not there, or no longer.
    """
    ours = not (dist.is_available() and dist.is_initialized())
    world = launchers.world_size() if ours else dist.get_world_size()
    if world == 1:
        yield Ranks()
        return
    limit = timedelta(seconds=timeout)
    if ours:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"the {world} ranks did not all meet within {timeout:g} s ({reason})") from None
    # The caller's group may have any backend.
    host = dist.group.WORLD if ours and device.type == "cpu" else dist.new_group(backend="gloo", timeout=limit)
    group = host if device.type == "cpu" else dist.group.WORLD
    try:
        yield Ranks(dist.get_rank(), world, group, host)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(
            f"rank {dist.get_rank()} of {world}: another rank ended or did not answer for {timeout:g} s; continue from "
            f"the last checkpoint with --resume ({reason})"
        ) from None
    finally:
        dist.destroy_process_group(None if ours else host)


@torch.no_grad()
def same_start(model: nn.Module, group: ProcessGroup | None) -> None:
    """Give the model of every process the first one's parameters and buffers."""
    if group is not None:
        for tensor in model.state_dict().values():
            contiguous = tensor.contiguous()
            dist.broadcast(contiguous, src=0, group=group)
            tensor.copy_(contiguous)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], group: ProcessGroup | None) -> None:
    """Replace the gradients by their mean over the processes, in one exchange."""
    if group is None:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= group.size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


class Agreement:
    """One integer a step on which all processes agree: the largest that any asked for.

    With several processes the answer is that of the step before, so that nobody waits for it.
    """

    def __init__(self, host: ProcessGroup | None) -> None:
        self.host = host
        self.pending: tuple[Any, Tensor] | None = None

    def ask(self, value: int) -> int:
        """What is agreed on. Every process must call this at every step."""
        if self.host is None:
            return value
        agreed = 0
        if self.pending is not None:
            work, tensor = self.pending
            work.wait()
            agreed = int(tensor)
        tensor = torch.tensor(value)
        self.pending = (dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.host, async_op=True), tensor)
        return agreed


class StopSignals:
    """SIGINT and SIGTERM as something to ask for. A second SIGINT interrupts at once.

    Args:
        speaks: whether this process says what it does at the first.
        listen: False: the signals stay the program's. So they do in other threads than the main one, which alone may
            take them, and where something else than Python handles them.
    """

    def __init__(self, speaks: bool = True, *, listen: bool = True) -> None:
        self.received = False
        self.speaks = speaks
        self._listen = listen and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM) if self._listen else ():
            if signal.getsignal(number) is not None:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.speaks and not self.received:
            more = "; a second Ctrl-C ends at once" if number == signal.SIGINT else ""
            # Not by way of Python's streams, in the middle of whose writing a signal may come.
            with contextlib.suppress(OSError):
                os.write(2, f"\nfinishing this step, then saving a checkpoint{more}\n".encode())
        self.received = True
