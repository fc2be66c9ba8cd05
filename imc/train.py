"""Train IMC-SwAV or CRLC: cluster a data set without its labels.

    python -m imc.train                               # the digits; writes runs/digits/
    python -m imc.train --seed 1 --out my/run         # another seed, another folder
    python -m imc.train --data cifar10 --download     # the paper's settings for CIFAR-10
    python -m imc.train --data my/photos --clusters 20
    python -m imc.train --out my/run --resume         # continue after an interruption
    python -m imc.train --out my/run --resume --data moved/photos    # the same images, at another place
    torchrun --nproc-per-node 8 -m imc.train --data cifar10 --batch-size 2048

Options whose line gives no default take that of the method and the data set: --print-config shows what a run would use.

The run folder holds

    config.json         the configuration, everything resolved
    data.json           what tells whether the images are still the same
    metrics.jsonl       one line per epoch: loss terms, use of prototypes and clusters, learning rate at its end, speed
    checkpoint.pt       what --resume continues from
    model.safetensors   the trained model
    labels.csv          index, cluster, confidence and, where there are such, file and label
    confusion.png       classes against clusters, where there are labels
    gallery.png         the most and least certain images of each cluster
    result.json         ACC, NMI, ARI beside those of k-means on the pixels, time, backend, seed, versions

From Python: ``train(Config(seed=1))`` returns what result.json holds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import only
from imc.command_line.terminal import say, show, warn
from imc.config import Config, StartOptions
from imc.config.kept import kept_config
from imc.config.resolve import resolve
from imc.data import Dataset, Images
from imc.data.options import CropOptions
from imc.data.pixels import Source, open_pixels
from imc.data.views import Views
from imc.features.options import RowViewOptions
from imc.features.source import find_neighbours, row_source, stored_neighbours
from imc.features.views import NeighbourCrops
from imc.files.paths import user_path
from imc.files.run_places import MODEL
from imc.machine.arithmetic import arithmetic, change
from imc.machine.backend import choose_backend
from imc.machine.convolutions import fastest_convolutions
from imc.machine.device import choose_device
from imc.machine.torch_state import seed_generators, turn
from imc.methods import build_model, require_memory, take_over
from imc.methods.method import Method
from imc.models.further import FurtherEncoder, load_weights
from imc.models.pretrained import load_pretrained
from imc.models.standardise import Standardise
from imc.pages.results import table, write_results
from imc.runs.data import run_data, sourced
from imc.runs.model import LoadedRun, load_run, save_model
from imc.runs.plan import announced, teller
from imc.runs.preview import preview
from imc.runs.resume import Begun, begun
from imc.runs.smaller import smaller_recipe
from imc.runs.start import Trained, begin, choose_images, open_data, run_to_continue
from imc.scores.evaluation import evenly_spaced, outputs
from imc.text import inflected
from imc.training.checkpoint import require_fit
from imc.training.loop import Loop
from imc.training.monitor import scarcity_warnings
from imc.training.options import InitialOptions, LoopOptions, PlacementOptions
from imc.training.placement import place
from imc.training.ranks import Ranks, ranks, same_start
from imc_kernels import backends

FLAGS = Config  # the dataclass of the command's options, where it is not Options
CALIBRATED = 10_000  # samples that decide how sure the answers on features are


def main(argv: Sequence[str]) -> None:
    """The command: flags in, a run folder and a table out."""
    config, given = arguments.parse_given(Config, argv, program="imc train", description=__doc__ or "", here=preview)
    config = (config if config.resume else sourced(config)).validate()
    if config.print_config:
        show(json.dumps(plan(config, given=given).to_dict(), indent=2))
        return
    result = train(config, given=given)
    if result is not None:
        show(table(result, Path(result["out"])))


@turn()
def plan(
    config: Config,
    data: Dataset | Images | None = None,
    encoder: nn.Module | None = None,
    *,
    given: Collection[str] | None = None,
) -> Config:
    """The configuration that :func:`train` would run with on this machine, everything resolved."""
    config = (config if config.resume else sourced(config, data, own_encoder=encoder is not None)).validate()
    run = begun(config, given, has_data=data is not None) if config.resume else None
    config = config if run is None else run.config
    return resolve(config, run_data(config, data), choose_device(config.device), own_encoder=encoder is not None)


def train(
    config: Config,
    data: Dataset | Images | None = None,
    encoder: nn.Module | None = None,
    *,
    report: bool = True,
    embedded: bool = False,
    given: Collection[str] | None = None,
) -> dict[str, Any] | None:
    """Train, evaluate and write the run folder.

    What the caller has set in torch does not change the run, and is as before when it has ended: see
    :mod:`imc.machine.torch_state`. While it lasts, torch's global generators and number of threads are the run's, so
    another thread's call waits. Under torchrun, and where torch.distributed is initialised, every process calls this.

    Args:
        config: what to run; what it leaves open, :mod:`imc.config.presets` fills in.
        data: the images to use instead of loading ``config.data``.
        encoder: a module from images [B, C, H, W] to features [B, F], instead of ``config.encoder``.
        report: False: end with the model, without evaluation and figures.
        embedded: True: as a part of the program that calls. It trains in this process alone, also in a distributed
            job, and the signals stay the program's.
        given: the fields that were named, for ``resume``; None: those of ``config`` that differ from their default.

    Returns:
        The content of result.json (nothing of it without ``report``), and ``out``, the run folder. None in all
        processes but the first.

    Raises:
        UserError: a value that is not accepted.
        RunError: a loss became NaN, or another process died.
        StoppedError: a signal, or ``config.stop_after_epoch``; there is a checkpoint to resume from.
    """
    config = (config if config.resume else sourced(config, data, own_encoder=encoder is not None)).validate()
    device = choose_device(config.device)
    with turn(device), _joined(config.rank_timeout, device, embedded) as processes:
        run = run_to_continue(config, given, has_data=data is not None)
        asked = config if run is None else run.config
        opened = open_data(only(asked, StartOptions), data, run, processes)
        config = resolve(asked, opened.data, device, own_encoder=encoder is not None)
        images = choose_images(only(config, StartOptions), asked.data, opened, processes)
        model = _build(only(config, InitialOptions), encoder, images, run, device, processes, amp=config.amp)
        config = replace(config, feature_dim=int(model.encoder.feature_dim))  # type: ignore[arg-type]
        rows = only(config, RowViewOptions)
        neighbours = _neighbours(rows, images, model.encoder, run, device, processes)
        place(model, only(config, PlacementOptions), device, processes)
        with _kernels(config.backend, processes):
            further = config.train_encoder and config.neighbours is not None  # an earlier version's run has no such
            if further:
                neighbours = _kept_first(model, config, images, run, processes)
            record = partial(begin, config, asked.overwrite, run, images, neighbours, processes)
            crops = only(config, CropOptions) if further else None
            source = _source(rows, crops, images, neighbours, device)
            steps = only(config, LoopOptions)
            loop = Loop(model, images.parts, steps, processes, record, source, signals=not embedded)
            _go_on(loop, run)
            can_be_copied = data is None and encoder is None and run is None
            _announce(loop, config, opened.data, (asked, given) if can_be_copied else None)
            with fastest_convolutions(device):
                loop.run()
            return _finish(loop, images, device, report) if processes.first else None


def _joined(timeout: float, device: torch.device, embedded: bool) -> AbstractContextManager[Ranks]:
    return nullcontext(Ranks()) if embedded else ranks(device, timeout)


def _kernels(name: str, processes: Ranks) -> AbstractContextManager[None]:
    """The kernels of the backend with this name; where another runs an operation, that is said."""
    named = backends.requested() if name == "auto" else name

    def otherwise(operation: str, chosen: str) -> None:
        if processes.first:
            warn(f"backend {named} has no {operation}: {chosen} runs it")

    return backends.backend(named, otherwise=otherwise)


def _build(
    options: InitialOptions,
    encoder: nn.Module | None,
    images: Trained,
    run: Begun | None,
    device: torch.device,
    processes: Ranks,
    *,
    amp: str,
) -> Method:
    """The model as the first update finds it, or as a checkpoint is loaded into it."""
    checkpoint = None if run is None else run.checkpoint
    if run is not None and checkpoint is not None:
        require_fit(run.folder, options, encoder, checkpoint)
        difference = change(checkpoint.get("arithmetic"), arithmetic(device, amp))
        if difference is not None and processes.first:
            warn(difference)
    require_memory(options, encoder)
    if processes.first and images.note:
        say(images.note)
    seed_generators(options.seed, device)
    model = build_model(options, encoder)
    if isinstance(model.encoder, Standardise):
        model.encoder.fit(images.parts[0])
        if model.encoder.is_flat and processes.first:
            warn(f"all rows are the same by --scaling {options.scaling}, so nothing tells one cluster from another")
    if checkpoint is None:
        _load_weights(model.encoder, options, processes)
    return model


def _load_weights(encoder: nn.Module, options: InitialOptions, processes: Ranks) -> None:
    """Give an encoder the weights that a run begins with, where it comes with some."""
    if isinstance(encoder, FurtherEncoder) and options.init is None:
        load_weights(encoder, options.encoder, options.weights)
    if options.init is not None:
        matched = load_pretrained(encoder, user_path(options.init), options.init_prefix, options)
        if processes.first:
            say(f"--init {options.init}: {matched}")


def _neighbours(
    options: RowViewOptions,
    images: Trained,
    encoder: nn.Module,
    run: Begun | None,
    device: torch.device,
    processes: Ranks,
) -> Tensor | None:
    """The neighbours that are the views of a run on features, found by the first process."""
    if options.augmentation != "neighbours":
        return None
    found = None
    if processes.first:
        found = find_neighbours(
            images.parts[0],
            encoder,
            count=options.neighbours,
            mutual=options.mutual,
            seed=options.seed,
            device=device,
            folder=None if run is None else run.folder,
        )
    return processes.share(found)


def _kept_first(model: Method, config: Config, images: Trained, run: Begun | None, processes: Ranks) -> Tensor:
    """The neighbours of the images whose encoder is trained further, by what it saw before.

    A new run's heads are trained on that too, by the run that keeps the encoder, and its encoder scales what it sees
    as that one does. So the training further begins with the answer of the kept encoder, and not with heads that know
    nothing, whose gradients would undo what the encoder knows.
    """
    neighbours, pixels = None, images.parts[0]
    if processes.first:
        resumed = run is not None and run.checkpoint is not None
        if run is not None and resumed:
            neighbours = stored_neighbours(run.folder, len(pixels), config.neighbours)
        if neighbours is None:
            if resumed:  # what was damaged is found again; the checkpoint's weights are loaded after this
                _load_weights(model.encoder, only(config, InitialOptions), processes)
            say("first the heads are trained, on what the encoder sees before it is trained further")
            seen = outputs(LoadedRun(config, model), pixels, batch_size=config.batch_size).features
            with tempfile.TemporaryDirectory() as folder:
                kept = kept_config(config, str(Path(folder) / "run"))
                out = train(kept, Images(images.clustered.name, seen, None, ()), report=False, embedded=True)
                assert out is not None
                neighbours = stored_neighbours(Path(out["out"]), len(pixels), config.neighbours)
                take_over(model, load_run(out["out"]).model)
    same_start(model, processes.group)
    shared: Tensor = processes.share(neighbours)
    return shared


def _source(
    options: RowViewOptions,
    crops: CropOptions | None,
    images: Trained,
    neighbours: Tensor | None,
    device: torch.device,
) -> tuple[Source, Views] | None:
    """Where batches of rows come from, or with ``crops`` of images and neighbours; None: it is images alone."""
    if crops is not None and neighbours is not None:
        return open_pixels(images.parts, device, options.device_data), NeighbourCrops(crops, neighbours)
    if options.columns is None:
        return None
    return row_source(
        images.parts[0] if images.views is None else images.views,
        neighbours,
        views=(options.large_crops, options.small_crops),
        noise=options.noise,
        seed=options.seed,
        device=device,
        device_data=options.device_data,
    )


def _go_on(loop: Loop, run: Begun | None) -> None:
    """Bring a loop to the update from which its run goes on; of a new one say where its numbers are scarce."""
    if run is not None and run.checkpoint is not None:
        loop.load(run.checkpoint, run.folder)
    elif loop.ranks.first:
        if isinstance(loop.views, NeighbourCrops):  # said of the run that kept the encoder
            return
        for sentence in scarcity_warnings(loop.count, loop.model.clusters, loop.options.epochs, loop.steps):
            warn(sentence)


def _announce(loop: Loop, config: Config, data: Dataset, command: tuple[Config, Collection[str] | None] | None) -> None:
    """Say what is about to be done, and once the first updates are made how long it takes.

    Args:
        loop: at the update from which its run goes on.
        config: resolved.
        data: the data set.
        command: what was asked for, and the fields that were named, where a command can ask for something else.
    """
    if not loop.ranks.first:
        return
    say(announced(config, data, loop.count, loop.steps, loop.update))

    def smaller(seconds: float) -> str | None:
        if command is None or loop.device.type != "cpu" or loop.ranks.world > 1:
            return None
        asked, given = command
        return smaller_recipe(asked, asked.given() if given is None else given, config, data, loop.count, seconds)

    loop.tell = teller(lambda: config.epochs * loop.steps - loop.update, smaller)


def _finish(loop: Loop, images: Trained, device: torch.device, report: bool) -> dict[str, Any]:
    """Save the model and, with ``report``, what it says of the images."""
    folder, config = loop.record.folder, Config.from_dict(loop.record.config)
    loop.model.merge()
    if loop.model.calibrated:
        samples = images.clustered.images
        chosen = samples[evenly_spaced(len(samples), CALIBRATED)]
        loop.model.calibrate(outputs(LoadedRun(config, loop.model), chosen).features)
    save_model(folder / MODEL, loop.model)
    reported = replace(config, backend=choose_backend(config.backend, device))
    result = _report(loop.model, reported, images.clustered, folder, loop.seconds) if report else {}
    return {**result, "out": str(folder)}


def _report(model: Method, config: Config, data: Images, folder: Path, seconds: float) -> dict[str, Any]:
    # In float32 whatever the training computed in, as imc evaluate, report and predict do.
    final = outputs(LoadedRun(config, model), data.images)
    result = write_results(folder, config, data, final.clusters, final.confidence, seconds)
    empty = result["clusters"] - result["clusters_used"]
    if empty:
        found = f"{empty} of {result['clusters']} clusters {inflected(empty, '{is|are}')} empty"
        warn(f"{found}; a higher --entropy-weight evens them out")
    return result


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
