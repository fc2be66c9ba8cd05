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
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imc import cli
from imc.command_line import arguments
from imc.command_line.terminal import say, show, warn
from imc.config import Config, presets
from imc.data import Dataset, Images, absolute
from imc.data.fingerprint import fingerprint
from imc.data.pixels import Source
from imc.data.views import Views, unit_scale
from imc.errors import UserError
from imc.features.source import find_neighbours, row_source, write_neighbours
from imc.files.json import write_json
from imc.files.paths import user_path
from imc.files.run_places import CONFIG, DATA, MODEL
from imc.machine.arithmetic import arithmetic, change
from imc.machine.device import choose_device
from imc.machine.threads import require_thread_independent, set_threads
from imc.machine.torch_state import seed_generators, turn
from imc.methods import build_model, require_memory
from imc.methods.method import Method
from imc.models.batch_norm import synchronise
from imc.models.convolution import make_thread_independent
from imc.models.pretrained import load_pretrained
from imc.models.standardise import Standardise
from imc.pages.results import table, write_results
from imc.runs.data import clustered, fingerprint_of, require_apart, run_data, sourced, trained_parts
from imc.runs.folder import open_run_folder, require_free, run_folder
from imc.runs.model import LoadedRun, save_model
from imc.runs.resume import Begun, begun
from imc.scores.evaluation import outputs
from imc.text import inflected
from imc.training.checkpoint import require_fit
from imc.training.loop import Loop, compile_encoder
from imc.training.monitor import scarcity_warnings
from imc.training.ranks import Ranks, ranks, same_start
from imc_kernels import backends


def main(argv: Sequence[str]) -> None:
    """The command: flags in, a run folder and a table out."""
    config, given = arguments.parse_given(Config, argv, program="imc train", description=__doc__ or "")
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
    config = (config if config.resume else sourced(config, data)).validate()
    run = begun(config, given, has_data=data is not None) if config.resume else None
    config = config if run is None else run.config
    return _resolve(config, run_data(config, data), encoder, choose_device(config.device))


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
    config = (config if config.resume else sourced(config, data)).validate()
    device = choose_device(config.device)
    with turn(device), nullcontext(Ranks()) if embedded else ranks(device, config.rank_timeout) as processes:
        run = begun(config, given, has_data=data is not None) if config.resume else None
        if run is not None:
            config = run.config
        else:
            require_free(config)
        dataset, images = _load_in_turn(config, data, run, processes)
        overwrite = config.overwrite  # no part of what the run saves
        config = replace(_resolve(config, dataset, encoder, device), data=absolute(config.data))
        require_apart(run_folder(config), config.data, dataset)
        parts = trained_parts(config, dataset)
        if images is None and processes.first:
            images = fingerprint(parts, clustered(config, dataset).labels)
        if run is not None and run.checkpoint is not None:
            require_fit(run.folder, config, encoder, run.checkpoint)
            difference = change(run.checkpoint.get("arithmetic"), arithmetic(device))
            if difference is not None and processes.first:
                warn(difference)
        require_memory(config, encoder)
        if processes.first and dataset.note:
            say(dataset.note)

        seed_generators(config.seed, device)
        model = build_model(config, encoder)
        if isinstance(model.encoder, Standardise):
            model.encoder.fit(parts[0])
        if config.init is not None and (run is None or run.checkpoint is None):
            matched = load_pretrained(model.encoder, user_path(config.init), config.init_prefix, config)
            if processes.first:
                say(f"--init {config.init}: {matched}")
        config = replace(config, feature_dim=int(model.encoder.feature_dim))  # type: ignore[arg-type]
        neighbours = _neighbours(config, parts[0], model.encoder, run, processes, device)
        _place(model, config, device, processes)

        def begin() -> Config:
            placed = _begin(replace(config, overwrite=overwrite), run, images, processes)
            if neighbours is not None and processes.first:
                write_neighbours(run_folder(placed), neighbours)
            return placed

        named = backends.requested() if config.backend == "auto" else config.backend

        def otherwise(operation: str, chosen: str) -> None:
            if processes.first:
                warn(f"backend {named} has no {operation}: {chosen} runs it")

        with backends.backend(named, otherwise=otherwise):
            source = None if config.columns is None else _source_of_rows(config, parts[0], neighbours, device)
            loop = Loop(model, parts, config, processes, begin, source, signals=not embedded)
            if run is not None and run.checkpoint is not None:
                loop.load(run.checkpoint)
            elif processes.first:
                for sentence in scarcity_warnings(loop.count, loop.config.clusters, loop.config.epochs, loop.steps):
                    warn(sentence)
            loop.run()
            if not processes.first:
                return None
            config = loop.config
            folder = run_folder(config)
            save_model(folder / MODEL, model)
            reported = replace(config, backend=_backend(config.backend, device))
            result = _report(model, reported, clustered(config, dataset), folder, loop.seconds) if report else {}
    return {**result, "out": str(folder)}


def _load_in_turn(
    config: Config, data: Dataset | Images | None, run: Begun | None, processes: Ranks
) -> tuple[Dataset, dict[str, Any] | None]:
    """The data set; the first process alone may write to the disk. Where a run goes on, the same images are required.

    Returns:
        The data set and, for a run that goes on, in the first process, the fingerprint of its images.
    """
    dataset, images, failure = None, None, None
    if processes.first:
        try:
            dataset = run_data(config, data)
            if run is not None:
                images = fingerprint_of(config, dataset)
                if remark := run.require_same_images(images):
                    warn(remark)
            elif config.resume:
                warn(f"{run_folder(config)} holds no run to continue: a new one starts")
        except UserError as error:
            failure = str(error)
    failure = processes.share(failure)
    if failure is not None:
        raise UserError(failure)
    return run_data(config, data) if dataset is None else dataset, images


def _resolve(config: Config, data: Dataset, encoder: nn.Module | None, device: torch.device) -> Config:
    """Replace what stands for "chosen by the run", and check what depends on the data and the machine."""
    images = data.train.images
    if data.train.are_features:
        columns = data.train.columns or (images.shape[1],)
        config = presets.resolve_on_features(
            config, name=data.name, columns=columns, count=len(images), classes=len(data.train.class_names)
        )
        return _resolve_machine(config, device)
    if encoder is not None:
        config = replace(config, encoder="custom")
    if min(images.shape[:3]) < 1:
        raise UserError(f"{data.name} holds no images")
    count = len(images) + (len(data.test.images) if config.train_on == "train+test" and data.test is not None else 0)
    config = presets.resolve(
        config,
        name=data.name,
        side=min(images.shape[1:3]),
        channels=images.shape[3],
        count=count,
        classes=len(data.train.class_names),
    )
    config = _resolve_machine(config, device)
    if config.pixel_scale is None:
        config = replace(config, pixel_scale=unit_scale(images) if config.augmentation == "affine" else 1 / 255)
    channels = images.shape[3]
    mean, std = (data.mean, data.std) if config.normalize else ((0.0,) * channels, (1.0,) * channels)
    return replace(
        config,
        mean=mean if config.mean is None else config.mean,
        std=std if config.std is None else config.std,
        pixel_bits=config.pixel_bits or data.train.pixel_bits,
    )


def _resolve_machine(config: Config, device: torch.device) -> Config:
    """Replace what stands for "chosen by the machine"; the number of threads is the run's from here on."""
    backend = _backend(config.backend, device)
    set_threads(config.threads)
    amp = {"auto": "bf16" if device.type == "cuda" else "off"}.get(config.amp, config.amp)
    if config.thread_independent:
        require_thread_independent(replace(config, amp=amp), backend, device)
    return replace(
        config,
        amp=amp,
        channels_last="off" if config.channels_last == "off" else "on",
        device=str(device) if config.device != "auto" else device.type,
        threads=torch.get_num_threads(),
        print_config=False,
        resume=False,
        overwrite=False,
    )


def _backend(name: str, device: torch.device) -> str:
    """The backend that a name stands for: "auto" for the one asked for otherwise, or the first that serves the device.

    Raises:
        UserError: it cannot run here.
    """
    try:
        chosen = backends.requested() if name == "auto" else name
        serving = backends.serving(device.type, torch.float32)
    except ValueError as error:
        raise UserError(str(error)) from None
    if chosen is None:
        return serving[0]
    if chosen not in backends.BACKENDS:
        raise UserError(f"--backend {chosen!r} is not known; accepted are auto, {', '.join(backends.BACKENDS)}")
    refusal = backends.BACKENDS[chosen].refusal(device.type, torch.float32)
    if refusal is not None:
        raise UserError(f"--backend {chosen} cannot run here: {refusal}")
    return chosen


def _begin(config: Config, run: Begun | None, images: dict[str, Any] | None, processes: Ranks) -> Config:
    """Make the run's folder and describe the run in it, by the first process.

    Returns:
        The configuration with the folder.
    """
    placed, failure = config, None
    if processes.first:
        try:
            with open_run_folder(config) if run is None else nullcontext(run.folder) as folder:
                placed = replace(config, name=config.name or folder.name, out=str(folder), overwrite=False)
                assert images is not None
                write_json(folder / DATA, images)
                write_json(folder / CONFIG, placed.to_dict())
        except UserError as error:
            failure = str(error)
    placed, failure = processes.share((placed, failure))
    if failure is not None:
        raise UserError(failure)
    return placed


def _neighbours(
    config: Config, rows: torch.Tensor, encoder: nn.Module, run: Begun | None, processes: Ranks, device: torch.device
) -> torch.Tensor | None:
    """The neighbours that are the views of a run on features, found by the first process."""
    if config.augmentation != "neighbours":
        return None
    found = None
    if processes.first:
        found = find_neighbours(
            rows,
            encoder,
            count=config.neighbours,
            mutual=config.mutual,
            seed=config.seed,
            device=device,
            folder=None if run is None else run.folder,
        )
    return processes.share(found)


def _source_of_rows(
    config: Config, rows: torch.Tensor, neighbours: torch.Tensor | None, device: torch.device
) -> tuple[Source, Views]:
    return row_source(
        rows,
        neighbours,
        views=(config.large_crops, config.small_crops),
        noise=config.noise,
        seed=config.seed,
        device=device,
        device_data=config.device_data,
    )


def _place(model: Method, config: Config, device: torch.device, processes: Ranks) -> None:
    """Put the model on its device, in the form in which this run trains it."""
    model.to(device)
    if config.channels_last == "on":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.amp, model.per_size = config.amp == "bf16", config.bn == "per-size"
    model.group = processes.group
    if config.freeze_encoder:
        model.frozen = True
        model.encoder.requires_grad_(False)
    if config.sync_bn:
        if config.encoder == "custom":
            raise UserError("--sync-bn is for the encoders of this package; convert yours before you pass it")
        # A bank's batch is whole in every process.
        synchronise(model.encoder if config.bank else model, processes.group)
    if config.thread_independent:
        make_thread_independent(model)
    same_start(model, processes.group)
    if config.compile:
        compile_encoder(model.encoder)
    model.train()


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
