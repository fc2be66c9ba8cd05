"""A whole training step as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from imc.data.views import Batch, CropViews, Views
from imc.methods.method import Plan, Step
from imc.models.encoders import CustomEncoder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WARM_UP = 10  # ordinary steps first: libraries choose algorithms and allocate what they keep
FURTHER = 2  # those of each form, in a process that is warm: the optimiser begins new moments, a queue its rows
# What torch.cuda.set_sync_debug_mode has warned of; and what it warns of itself.
WAITS, PROTOTYPE = "synchronizing CUDA operation", "Synchronization debug mode"


class Recorded(NamedTuple):
    """A captured step: what starts it again, and its tensors, which each replay overwrites."""

    replay: Callable[[], None]
    step: Step


class GraphedStep:
    """A training step: the first ones of this process are ordinary, then one is captured and replayed from then on.

    Every form of the step (:class:`imc.methods.method.Plan`) is captured on its own: a new one begins with the update
    that first trains the prototypes, for one, or where a queue is filled. What else changes from one update to the next
    is in tensors, which are set before a replay: the samples and the number of the update, from which the crops' random
    numbers follow, or the crops themselves; where rows go in the bank; the learning rates.

    As a context it lets the graphs go when the run ends: a process group whose exchanges they hold waits for that
    before it is destroyed.

    Args:
        compute: the step to capture: loss, gradients and the optimiser's update on crops, as a plan says.
        views: what makes the crops.
        optimizer: that of the step.
        inside: the same where they can be made in the graph, as the images of all batches are one tensor on the device;
            else None.
        refuse: told why where the step turns out to wait for the device, which no graph can. Such a run stays ordinary.
    """

    def __init__(
        self,
        compute: Callable[[list[Tensor], Plan], Step],
        views: Views,
        optimizer: torch.optim.Optimizer,
        *,
        inside: CropViews | None,
        refuse: Callable[[str], None],
    ) -> None:
        self.compute, self.views, self.optimizer = compute, views, optimizer
        self.inside, self.refuse = inside, refuse
        self.refused = False
        self.made: Counter[frozenset[str]] = Counter()  # ordinary steps of each form, in this process
        self.ready: set[frozenset[str]] = set()  # forms that are to be captured at their next step
        self.graphs: dict[frozenset[str], Recorded] = {}
        self.pool: Any = None
        self.inputs: list[Tensor] = []  # what the graphs read

    def __call__(self, batch: Batch, update: int, plan: Plan) -> Step:
        """The update with this number; the tensors of a replayed step are overwritten by the next."""
        form = plan.form
        if form not in self.ready:
            return self._ordinary(batch, update, plan)
        self._set_inputs(batch, update, plan)
        if form not in self.graphs:
            self.optimizer.zero_grad()
            self.graphs[form] = self.record(form, lambda: self._on_inputs(batch, plan))
        graph = self.graphs[form]
        graph.replay()
        return graph.step

    def __enter__(self) -> GraphedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.graphs.clear()

    def _ordinary(self, batch: Batch, update: int, plan: Plan) -> Step:
        crops, form = self.views(batch, update), plan.form
        self.made[form] += 1
        if self.refused or self.made.total() < WARM_UP or self.made[form] < FURTHER:
            return self.compute(crops, plan)
        step, waited = watched(lambda: self.compute(crops, plan), crops[0].device)
        if waited:
            self.refused = True
            self.refuse("cannot hold a step that waits for the device, as this one does")
        else:
            self.ready.add(form)
        return step

    def _set_inputs(self, batch: Batch, update: int, plan: Plan) -> None:
        """Put what this step has of its own where the graphs read it."""
        own = self.views(batch, update) if self.inside is None else [batch.positions]
        own = own if plan.slots is None else [*own, plan.slots]
        if not self.inputs:
            self.inputs = [x.clone() for x in own]
            self.number = torch.full((), update, dtype=torch.int64, device=own[0].device)
        for kept, new in zip(self.inputs, own, strict=True):
            kept.copy_(new)
        self.number.fill_(update)

    def _on_inputs(self, batch: Batch, plan: Plan) -> Step:
        """The step as it is captured."""
        crops = self.inputs
        if plan.slots is not None:
            *crops, slots = self.inputs
            plan = plan._replace(slots=slots)
        if self.inside is not None:
            (positions,) = crops
            crops = self.inside(batch._replace(positions=positions, samples=positions), self.number)
        step = self.compute(crops, plan)
        return step._replace(loss=step.loss.detach())  # what led to it would stay, with the streams of the capture

    def record(self, form: frozenset[str], work: Callable[[], Step]) -> Recorded:
        """Capture a step of this form. The graphs of a run share their memory: none needs what another left there."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory, and ask after exchanges between ranks.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step = work()
        return Recorded(graph.replay, step)


def watched(work: Callable[[], Step], device: torch.device) -> tuple[Step, bool]:
    """What a step gives, and whether it waited for the device."""
    if device.type != "cuda":
        return work(), False
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step = work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if not any(words in str(warning.message) for words in (WAITS, PROTOTYPE)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return step, any(WAITS in str(warning.message) for warning in caught)


def obstacle(device: torch.device, group: ProcessGroup | None, encoder: nn.Module) -> str | None:
    """Why a run's step cannot be a CUDA graph, or None.

    Args:
        device: of the run.
        group: the ranks that share it; None for one.
        encoder: that it trains, or has.
    """
    if device.type != "cuda":
        return "needs a CUDA device, and this run is on the CPU"
    if isinstance(encoder, CustomEncoder):
        return "is not for an encoder of one's own, which may change what it does from step to step"
    if group is None:
        return None
    # A group may have one for each kind of device: "cpu:gloo,cuda:nccl".
    kinds = dict(entry.split(":") for entry in torch.distributed.get_backend_config(group).split(","))
    exchange = kinds.get("cuda", "nothing for a GPU")
    if exchange != "nccl":
        return f"holds what NCCL exchanges between ranks, and those of this run have {exchange}"
    if torch.version.hip is not None:
        return "works on one rank only on AMD's GPUs, where the thread that watches the ranks' exchanges ends a capture"
    return None
