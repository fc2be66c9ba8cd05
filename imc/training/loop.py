"""The training loop: steps, metrics, checkpoints, and how a run ends before its last epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc.command_line.terminal import progress, warn
from imc.data.pixels import ResidentPixels, Source, open_pixels
from imc.data.views import Batch, CropViews, Views, epoch_order, make_views
from imc.errors import RunError, StoppedError, UserError
from imc.features.views import NeighbourCrops
from imc.files.json import append_json_line, keep_json_lines
from imc.files.run_places import METRICS
from imc.machine.arithmetic import arithmetic
from imc.methods.method import FROZEN, Method, Plan, Step
from imc.models.batch_norm import counted_together
from imc.text import counted, shell_word
from imc.training.checkpoint import random_state, restore_random_state, unfit, write_checkpoint
from imc.training.cuda_graph import GraphedStep, obstacle
from imc.training.events import EventFiles
from imc.training.monitor import EpochMonitor, collapse_warnings
from imc.training.optimizer import build_optimizer, load_optimizer, set_learning_rates
from imc.training.options import LoopOptions
from imc.training.pace import Pace
from imc.training.ranks import Agreement, Ranks, StopSignals, average_gradients

SAVE, STOP = 1, 2  # what ranks agree on after a step


class Record(NamedTuple):
    """Where a run's files go, and what a checkpoint says of how it was started.

    Attributes:
        folder: of the run.
        config: the whole configuration by name.
    """

    folder: Path
    config: dict[str, Any]


def _no_folder() -> Record:
    raise RuntimeError("a loop that runs needs a folder")


class Loop:
    """One run's training.

    Args:
        model: on its device.
        parts: the images, uint8 [M, H, W, C] each: the clustered split, then further ones; or rows [M, D].
        options: resolved.
        ranks: the processes of the run.
        begin: makes the run's folder. Called after the first update, so that a start that fails leaves no trace.
        source: where the batches come from and what their views are; None: images and their crops.
        signals: whether SIGINT and SIGTERM stop the run after a step, with a checkpoint.

    Attributes:
        tell: where set, told the seconds of an update once the first ones are made.
        record: of the run, once its folder is made.
        update: number of updates made.
        seconds: wall time of training, of earlier parts of a resumed run too.
    """

    def __init__(
        self,
        model: Method,
        parts: Sequence[Tensor],
        options: LoopOptions,
        ranks: Ranks,
        begin: Callable[[], Record] = _no_folder,
        source: tuple[Source, Views] | None = None,
        *,
        signals: bool = True,
    ) -> None:
        self.model, self.options, self.ranks = model, options, ranks
        self.begin = begin
        self.signals = signals
        self.tell: Callable[[float], None] | None = None
        self.device = next(model.parameters()).device
        self.count = sum(map(len, parts))
        self.labelled = len(parts[0])
        self.steps = self.count // options.batch_size
        if options.batch_size % ranks.world:
            raise UserError(f"--batch-size must be a multiple of {ranks.world}, the ranks, got {options.batch_size}")
        self.per_rank = options.batch_size // ranks.world
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if source is None:
            source = open_pixels(parts, self.device, options.device_data), make_views(options, self.device)
        self.pixels, self.views = source
        graphed = self._graphed()
        self.optimizer = build_optimizer(model, options, self.device, graphed)
        self.graph: GraphedStep | None = None
        if graphed:
            views, resident = self.views, isinstance(self.pixels, ResidentPixels)
            inside = views if resident and isinstance(views, CropViews) else None
            self.graph = GraphedStep(self.compute, views, self.optimizer, inside=inside, refuse=self._no_graph)
        self.update = 0
        self.seconds = 0.0
        self.monitor = self._new_monitor()

    def run(self) -> None:
        """Train to the last epoch.

        Raises:
            StoppedError: a signal, or ``stop_after_epoch``; there is a checkpoint.
            RunError: a loss term or a parameter is not finite; the last checkpoint stays.
        """
        total = self.options.epochs * self.steps
        self._clock = time.perf_counter()
        self._saved = time.monotonic()
        agreement = Agreement(self.ranks.host)
        events = EventFiles(self.ranks.first and self.options.tensorboard)
        start, begun = self.update, False
        pace = None if self.tell is None else Pace(self.device, self.tell)
        bar = progress(total, "train", "step", done=start, delay=0, shown=self.ranks.first)
        released = contextlib.nullcontext() if self.graph is None else self.graph
        with StopSignals(self.ranks.first, listen=self.signals) as signals, bar, events, released:
            if start == total:
                self._begin(events, start)
            while self.update < total:
                stop = False
                with contextlib.closing(self._rest_of_epoch()) as batches:
                    for batch, plan in batches:
                        self.train_step(batch, plan)
                        if not begun:
                            self._begin(events, start)
                            begun = True
                        bar.update()
                        if pace is not None:
                            pace.update()
                        agreed = agreement.ask(self._wish(signals))
                        if self.update % self.options.log_every == 0:
                            newest = self.monitor.read()
                            bar.set_postfix(loss=f"{newest['loss']:.3f}", refresh=False)
                            events.add(newest, self.update)
                        if agreed == STOP:
                            stop = True
                            break
                        if agreed == SAVE and self.update % self.steps:
                            self._save()
                ended = self.update // self.steps if self.update % self.steps == 0 else None
                if ended is not None:
                    self._end_epoch(ended, events)
                    stop = stop or (ended == self.options.stop_after_epoch and ended < self.options.epochs)
                if stop or (ended is not None and self._due(ended)):
                    self._save()
                if stop:
                    raise StoppedError(self._how_to_resume())
        self.seconds += time.perf_counter() - self._clock

    def seconds_of_update(self, updates: int) -> float:
        """Seconds of an update, by so many that are made for nothing else, after a first one: no file is written."""
        start = 0.0
        for number in range(updates + 1):
            with contextlib.closing(self._rest_of_epoch()) as batches:
                self.train_step(*next(batches))
            if number == 0:
                start = time.perf_counter()
        return (time.perf_counter() - start) / updates

    @property
    def folder(self) -> Path:
        """Where metrics and checkpoints go."""
        return self.record.folder

    def train_step(self, batch: Batch, plan: Plan) -> None:
        """One update. Does not wait for the device."""
        set_learning_rates(self.optimizer, self.update, self.options, self.steps)
        if self.graph is not None:
            step = self.graph(batch, self.update, plan)
        else:
            step = self.compute(self.views(batch, self.update), plan)
        self.monitor.update(step, self.update)
        self.update += 1

    def compute(self, crops: list[Tensor], plan: Plan | None = None) -> Step:
        """Loss, gradients and the optimiser's step on these crops. What changes from one update to the next is in the
        tensors and the plan alone."""
        with counted_together():
            step: Step = self.model(crops, plan)
        self.optimizer.zero_grad()
        step.loss.backward()
        if plan is not None and FROZEN in plan.form:
            self.model.freeze_prototypes()
        average_gradients(self.parameters, self.ranks.group)
        self.optimizer.step()
        return step

    def _graphed(self) -> bool:
        """Whether the step becomes a CUDA graph: as asked, else on a GPU where it can be."""
        asked = self.options.cuda_graph
        if asked is False:
            return False
        reason = obstacle(self.device, self.ranks.group, self.model.encoder)
        if reason is not None:
            self._no_graph(reason)
        return reason is None

    def _no_graph(self, reason: str) -> None:
        """Say why the step is none, or refuse to go on where one was asked for."""
        if self.options.cuda_graph:
            raise UserError(f"--cuda-graph {reason}")
        if self.device.type == "cuda" and self.ranks.first:
            warn(f"the step is no CUDA graph, which is faster: that {reason}")

    def _rest_of_epoch(self) -> Generator[tuple[Batch, Plan]]:
        """The batches of the epoch that are still to come, each to be trained on before the next is asked for. Closing
        it ends the thread that fetches them."""
        epoch, done = divmod(self.update, self.steps)
        if done == 0:
            self.model.begin_epoch(epoch)
            self.monitor = self._new_monitor()
        self._epoch_clock, self._epoch_update = time.perf_counter(), self.update
        whole = epoch_order(self.options, self.count, epoch)[: self.steps * self.options.batch_size]
        batches = whole.split(self.options.batch_size)[done:]
        start = self.ranks.rank * self.per_rank
        rows = [batch[start : start + self.per_rank] for batch in batches]
        if isinstance(self.views, NeighbourCrops):  # whose images are to be loaded too
            paired = self.views.with_neighbours
            rows = [paired(own, start, self.options.batch_size, self.update + i) for i, own in enumerate(rows)]
        with contextlib.closing(self.pixels.batches(rows, start, self.options.batch_size)) as loaded:
            for batch, all_samples in zip(loaded, batches, strict=True):
                yield batch, self._plan(all_samples)

    def _plan(self, samples: Tensor) -> Plan:
        """What the next step is to do, on a batch of these samples: int64 [B] on the host."""
        plan = self.model.prepare(samples < self.labelled)
        if self.update < self.options.freeze_updates:
            plan = plan._replace(form=plan.form | {FROZEN})
        return plan if plan.slots is None else plan._replace(slots=plan.slots.to(self.device, non_blocking=True))

    def _new_monitor(self) -> EpochMonitor:
        return EpochMonitor(self.model.num_prototypes, self.model.clusters, self.device, self.ranks)

    def _end_epoch(self, epoch: int, events: EventFiles) -> None:
        """Write the line of an epoch, counted from 1, and warn of a collapse."""
        summary = self.monitor.summary()
        seconds = time.perf_counter() - self._epoch_clock
        speed = (self.update - self._epoch_update) * self.options.batch_size / seconds
        line = {"epoch": epoch, **summary, "lr": float(self.optimizer.param_groups[0]["lr"])}
        if self.ranks.first:
            timing = {"images_per_second": round(speed, 1), "seconds": round(seconds, 4)}
            append_json_line(self.folder / METRICS, {**line, **timing})
            events.add({f"epoch/{name}": value for name, value in line.items()}, self.update)
            late = self.update > max(self.options.warmup_updates, self.options.freeze_updates)
            if late and epoch in (self.options.epochs // 2, self.options.epochs):
                for sentence in collapse_warnings(summary, self.model.num_prototypes):
                    warn(f"epoch {epoch}: {sentence}")

    def _wish(self, signals: StopSignals) -> int:
        if signals.received:
            return STOP
        late = time.monotonic() - self._saved > 60 * self.options.checkpoint_minutes
        return SAVE if self.ranks.first and late else 0

    def _due(self, epoch: int) -> bool:
        every = self.options.checkpoint_every
        return epoch == self.options.epochs or bool(every and epoch % every == 0)

    def _save(self) -> None:
        """Write a checkpoint. Every rank must call this."""
        monitor = self.monitor.state()
        random = self.ranks.gather(random_state())
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if self.ranks.first:
            self._require_finite()
            write_checkpoint(
                self.folder,
                {
                    "config": self.record.config,
                    "arithmetic": arithmetic(self.device, "bf16" if self.model.amp else "off"),
                    "update": self.update,
                    "seconds": self.seconds,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "training": self.model.training_state(),
                    "monitor": monitor,
                    "random": random,
                },
            )
        self._saved = time.monotonic()

    def _require_finite(self) -> None:
        """Keep a checkpoint from being replaced by one that no run could continue from."""
        floating = {name: x for name, x in self.model.state_dict().items() if x.is_floating_point()}
        finite = torch.stack([x.isfinite().all() for x in floating.values()]).cpu()
        if not finite.all():
            name = list(floating)[int(finite.int().argmin())]
            raise RunError(
                f"{name} became NaN or infinite before update {self.update}; "
                "a lower --lr or a longer --warmup-updates usually helps"
            )

    def load(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Continue from what the checkpoint in a run's folder holds.

        Raises:
            UserError: it is not that of this configuration.
        """
        try:
            self.model.load_state_dict(checkpoint["model"])
            load_optimizer(self.optimizer, checkpoint["optimizer"])
            self.model.load_training_state(checkpoint["training"])
            self.monitor.load(checkpoint["monitor"])
            self.update, self.seconds = int(checkpoint["update"]), float(checkpoint["seconds"])
            restore_random_state(checkpoint["random"], self.ranks.rank)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise unfit(folder, reason) from None
        made = -(-self.update // self.steps)
        if made > self.options.epochs:
            raise UserError(f"--epochs must be at least {made}, as {folder} has made, got {self.options.epochs}")
        if self.ranks.first and self.update == self.options.epochs * self.steps:
            done = f"{folder} has made {counted(made, 'epoch{s}')}, which is all"
            warn(f"{done}: its results are written again; --epochs takes more")

    def _begin(self, events: EventFiles, start: int) -> None:
        """Have the run's folder made; what is in it goes up to update ``start``."""
        self.record = self.begin()
        events.write_to(self.folder)
        if self.ranks.first and (self.folder / METRICS).exists():
            keep_json_lines(self.folder / METRICS, start // self.steps)
        if start == 0:  # a disk too small for a checkpoint is found at once
            self._save()

    def _how_to_resume(self) -> str:
        epoch, done = divmod(self.update, self.steps)
        where = f"after epoch {epoch}" + (f" and {done} of {counted(self.steps, 'update{s}')}" if done else "")
        return f"stopped {where}; continue with: imc train --out {shell_word(self.folder)} --resume"
