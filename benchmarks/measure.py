"""Timing of functions on whatever device there is, so that the numbers of several forms of one thing compare.

On a GPU, kernels of less than about 100 us are hidden by the time between launches, so a form is timed twice: launch by
launch with events around every call, and as replays of a CUDA graph, which leaves the device's time. Forms take turns
call by call, and medians are compared: what slows the machine slows all alike. Inputs rotate through copies that are
together larger than the last cache.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where `pytest --benchmark-only` measures


@dataclass
class Timing:
    """One form of a case; None where the device cannot tell, or where the form failed (then ``failure`` says how).

    Attributes:
        microseconds: median of single calls: between events on a GPU, of the clock on the CPU.
        graph_microseconds: a call as part of a replayed CUDA graph.
        host_microseconds: of the host, to issue a call.
        launches: kernels, copies and fills that a call puts on the device.
        peak_bytes: device memory above what the inputs hold.
    """

    microseconds: float | None = None
    graph_microseconds: float | None = None
    host_microseconds: float | None = None
    launches: int | None = None
    peak_bytes: int | None = None
    failure: str | None = None

    @property
    def best(self) -> float | None:
        """Device time of one call: by graph where it was captured."""
        return self.microseconds if self.graph_microseconds is None else self.graph_microseconds


def rotation(bytes_touched: int, device: torch.device, at_most: int = 64) -> int:
    """How many sets of inputs it takes so that a set has left the last cache before it is read again."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 32 << 20
    return min(at_most, 2 + 2 * cache // max(bytes_touched, 1))


def measure(
    forms: Mapping[str, Callable[..., Any]], rotating: Sequence[tuple[Tensor, ...]], *, seconds: float
) -> dict[str, Timing]:
    """Time every form; on a GPU also its host time, launches, peak memory and graph replay.

    Args:
        forms: name -> function of one set of inputs. One that raises gets the error's first line as its ``failure``.
        rotating: sets of inputs on one device, see :func:`rotation`.
        seconds: about how long the calls of all forms may take together.
    """
    device = rotating[0][0].device
    timings, working = {}, {}
    for name, form in forms.items():
        timings[name] = Timing()
        try:
            for _ in range(3):  # compiles, fills caches
                form(*rotating[0])
            finish(device)
            working[name] = form
        except Exception as error:  # a rival that cannot run is a row of the table, not the end of the report
            timings[name].failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
    for name, samples in in_turns(working, rotating, seconds=seconds).items():
        timings[name].microseconds = statistics.median(samples)
    if device.type == "cuda":
        for name, form in working.items():
            _details(timings[name], form, rotating, device)
    return timings


def in_turns(
    forms: Mapping[str, Callable[..., Any]],
    rotating: Sequence[tuple[Tensor, ...]],
    *,
    seconds: float,
    warming: int = 0,
) -> dict[str, list[float]]:
    """Microseconds of a call of each form, in turns, for about so long and at least 5 rounds.

    A turn is ``warming`` calls and one that is timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in forms}
    deadline, rounds = time.perf_counter() + seconds, 0
    while forms and (rounds < 5 or (time.perf_counter() < deadline and rounds < 1000)):
        inputs = rotating[rounds % len(rotating)]
        for name, form in forms.items():
            for _ in range(warming):
                form(*inputs)
            samples[name].append(_one(form, inputs, inputs[0].device if inputs else DEVICE))
        rounds += 1
    return samples


def finish(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _one(form: Callable[..., Any], inputs: tuple[Tensor, ...], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        form(*inputs)
        return (time.perf_counter() - start) * 1e6
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(200_000)  # about 0.1 ms of device time: the host has queued the call before it begins
    before.record()
    form(*inputs)
    after.record()
    after.synchronize()
    return before.elapsed_time(after) * 1e3


def _details(
    timing: Timing, form: Callable[..., Any], rotating: Sequence[tuple[Tensor, ...]], device: torch.device
) -> None:
    inputs = rotating[0]
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    form(*inputs)
    torch.cuda.synchronize(device)
    timing.peak_bytes = torch.cuda.max_memory_allocated(device) - held

    calls = 20
    start = time.perf_counter()
    for _ in range(calls):
        form(*inputs)
    timing.host_microseconds = (time.perf_counter() - start) / calls * 1e6
    torch.cuda.synchronize(device)

    timing.launches = launches(lambda: form(*inputs))
    timing.graph_microseconds = _graph_time(form, rotating, device)


class BrokenCaptureError(RuntimeError):
    """A capture failed on its way. torch 2.11's allocator then goes on as if it were capturing: what the process
    measures from here on would be wrong."""


def waits(step: Step) -> bool:
    """Whether a call waits for the device, which no capture allows. Found out without one."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def launches(step: Step) -> int:
    """How many kernels, copies and fills one call puts on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def _graph_time(
    form: Callable[..., Any], rotating: Sequence[tuple[Tensor, ...]], device: torch.device, calls: int = 20
) -> float | None:
    """Microseconds a call inside a replayed graph of several, or None where the form cannot be captured.

    Raises:
        BrokenCaptureError: a capture began and failed.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        capturable = not waits(lambda: form(*rotating[0]))
    torch.cuda.current_stream(device).wait_stream(side)
    if not capturable:
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in range(calls):
                form(*rotating[call % len(rotating)])
    except Exception as error:
        raise BrokenCaptureError(f"a form that does not wait for the device could not be captured: {error}") from error
    samples = []
    for _ in range(20):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        samples.append(before.elapsed_time(after) * 1e3 / calls)
    return statistics.median(samples)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written a second by a copy of ``size`` bytes within the device's memory."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a matrix product [size, size] x [size, size]."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: a @ b, device)


def _fastest(step: Step, device: torch.device, calls: int = 10) -> float:
    step()
    finish(device)
    return min(_one(lambda: step(), (), device) for _ in range(calls)) / 1e6


def machine(device: torch.device) -> dict[str, str]:
    """What decides the numbers: device, driver, versions and the commit measured."""

    def first_line(*command: str) -> str:
        try:
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return lines[0].strip() if lines else "unknown"

    facts = {"torch": torch.__version__, "commit": first_line("git", "describe", "--always", "--dirty")}
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["driver"] = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["cuda"] = str(torch.version.cuda)
        try:
            import triton

            facts["triton"] = triton.__version__
        except ImportError:
            facts["triton"] = "not installed"
    else:
        facts["device"] = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return facts
