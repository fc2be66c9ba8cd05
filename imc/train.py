"""Train IMC-SwAV or CRLC: cluster a data set without its labels.

    python -m imc.train                               # the digits; writes runs/digits/
    python -m imc.train --seed 1 --out my/run         # another seed, another folder
    python -m imc.train --data cifar10 --download     # the paper's settings for CIFAR-10
    python -m imc.train --data my/photos --clusters 20
    python -m imc.train --out my/run --resume         # continue after an interruption
    torchrun --nproc-per-node 8 -m imc.train --data cifar10 --batch-size 2048

Options whose line gives no default take that of the method and the data set: --print-config shows what a run would use.

The run folder holds

    config.json         the configuration, everything resolved
    metrics.jsonl       one line per epoch: loss terms, use of prototypes and clusters, learning rate at its end, speed
    checkpoint.pt       what --resume continues from
    model.safetensors   the trained model
    labels.csv          index, cluster, confidence and, where there are labels, label
    confusion.png       classes against clusters, where there are labels
    gallery.png         the most and least certain images of each cluster
    result.json         ACC, NMI, ARI beside those of k-means on the pixels, time, backend, seed, versions

From Python: ``train(Config(seed=1))`` returns what result.json holds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imc import arguments, cli, presets
from imc.arithmetic import arithmetic, change
from imc.checkpoint import read_checkpoint, require_fit, resumed_config
from imc.config import Config
from imc.data import Dataset, Images
from imc.data.views import unit_scale
from imc.distributed import Ranks, choose_device, ranks, same_start
from imc.errors import UserError
from imc.evaluation import outputs
from imc.loop import Loop, compile_encoder
from imc.methods import build_model, require_memory
from imc.methods.method import Method
from imc.models.batch_norm import synchronise
from imc.models.convolution import make_thread_independent
from imc.monitor import scarcity_warnings
from imc.pretrained import load_pretrained
from imc.results import table, write_results
from imc.run_data import clustered, require_apart, run_data
from imc.run_folder import MODEL, LoadedRun, open_run_folder, run_folder, save_model, write_json
from imc.run_places import CONFIG
from imc.terminal import say, show, warn
from imc.threads import require_thread_independent, set_threads
from imc.torch_state import seed_generators, turn
from imc_kernels import backends


def main(argv: Sequence[str]) -> None:
    """The command: flags in, a run folder and a table out."""
    config = arguments.parse(Config, argv, program="imc train", description=__doc__ or "").validate()
    if config.print_config:
        show(json.dumps(plan(config).to_dict(), indent=2))
        return
    result = train(config)
    if result is not None:
        show(table(result, Path(result["out"])))


@turn()
def plan(config: Config, data: Dataset | Images | None = None, encoder: nn.Module | None = None) -> Config:
    """The configuration that :func:`train` would run with on this machine, everything resolved."""
    return _resolve(config.validate(), run_data(config, data), encoder, choose_device(config.device))


def train(
    config: Config,
    data: Dataset | Images | None = None,
    encoder: nn.Module | None = None,
    *,
    report: bool = True,
    embedded: bool = False,
) -> dict[str, Any] | None:
    """Train, evaluate and write the run folder.

    What the caller has set in torch does not change the run, and is as before when it has ended: see
    :mod:`imc.torch_state`. While it lasts, torch's global generators and number of threads are the run's, so another
    thread's call waits. Under torchrun, and where torch.distributed is initialised, every process calls this.

    Args:
        config: what to run; what it leaves open, :mod:`imc.presets` fills in.
        data: the images to use instead of loading ``config.data``.
        encoder: a module from images [B, C, H, W] to features [B, F], instead of ``config.encoder``.
        report: False: end with the model, without evaluation and figures.
        embedded: True: as a part of the program that calls. It trains in this process alone, also in a distributed
            job, and the signals stay the program's.

    Returns:
        The content of result.json (nothing of it without ``report``), and ``out``, the run folder. None in all
        processes but the first.

    Raises:
        UserError: a value that is not accepted.
        RunError: a loss became NaN, or another process died.
        StoppedError: a signal, or ``config.stop_after_epoch``; there is a checkpoint to resume from.
    """
    config.validate()
    device = choose_device(config.device)
    with turn(device), contextlib.nullcontext(Ranks()) if embedded else ranks(device, config.rank_timeout) as processes:
        checkpoint = read_checkpoint(run_folder(config)) if config.resume else None
        if checkpoint is not None:
            config = resumed_config(config, checkpoint["config"]).validate()
        elif config.resume and processes.first:
            warn(f"{run_folder(config)} holds no checkpoint: the run starts anew")
        dataset = _load_in_turn(config, data, processes)
        overwrite = config.overwrite  # no part of what the run saves
        config = _resolve(config, dataset, encoder, device)
        if checkpoint is not None:
            require_fit(run_folder(config), config, encoder, checkpoint)
            difference = change(checkpoint.get("arithmetic"), arithmetic(device))
            if difference is not None and processes.first:
                warn(difference)
        require_memory(config, encoder)
        if data is None:
            require_apart(run_folder(config), config.data, dataset)
        folder = _folder(replace(config, overwrite=overwrite), resume=checkpoint is not None, processes=processes)
        if processes.first and dataset.note:
            say(dataset.note)
        config = replace(config, name=config.name or folder.name, out=str(folder))

        seed_generators(config.seed, device)
        model = build_model(config, encoder)
        if config.init is not None and checkpoint is None:
            matched = load_pretrained(model.encoder, Path(config.init), config.init_prefix, config)
            if processes.first:
                say(f"--init {config.init}: {matched}")
        config = replace(config, feature_dim=int(model.encoder.feature_dim))  # type: ignore[arg-type]
        if processes.first:
            write_json(folder / CONFIG, config.to_dict())
        _place(model, config, device, processes)
        # A form of an operation that the named backend lacks may fall back only if the choice was automatic.
        with backends.backend(None if config.backend == "auto" else config.backend):
            loop = Loop(model, _parts(config, dataset), config, folder, processes, signals=not embedded)
            if checkpoint is not None:
                loop.load(checkpoint)
            elif processes.first:
                for sentence in scarcity_warnings(loop.count, loop.config.clusters, loop.config.epochs, loop.steps):
                    warn(sentence)
            loop.run()
            if not processes.first:
                return None
            save_model(folder / MODEL, model)
            reported = replace(config, backend=_backend(config.backend, device))
            result = _report(model, reported, clustered(config, dataset), folder, loop.seconds) if report else {}
    return {**result, "out": str(folder)}


def _load_in_turn(config: Config, data: Dataset | Images | None, processes: Ranks) -> Dataset:
    """The data set; the first process alone may write to the disk."""
    dataset, failure = None, None
    if processes.first:
        try:
            dataset = run_data(config, data)
        except UserError as error:
            failure = str(error)
    failure = processes.share(failure)
    if failure is not None:
        raise UserError(failure)
    return run_data(config, data) if dataset is None else dataset


def _parts(config: Config, data: Dataset) -> list[Tensor]:
    """The images that are trained on, those that are clustered first."""
    parts = [data.train.images]
    if config.train_on == "train+test":
        if data.test is None:
            raise UserError(f"--train-on train+test: {data.name} has no test split")
        parts = [torch.cat([data.train.images, data.test.images])]
    if data.unlabeled is not None and config.bank:
        parts.append(data.unlabeled.images)
    return parts


def _resolve(config: Config, data: Dataset, encoder: nn.Module | None, device: torch.device) -> Config:
    """Replace what stands for "chosen by the run", and check what depends on the data and the machine."""
    if encoder is not None:
        config = replace(config, encoder="custom")
    images = data.train.images
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
    backend = _backend(config.backend, device)
    set_threads(config.threads)
    if config.pixel_scale is None:
        config = replace(config, pixel_scale=unit_scale(images) if config.augmentation == "affine" else 1 / 255)
    channels = images.shape[3]
    mean, std = (data.mean, data.std) if config.normalize else ((0.0,) * channels, (1.0,) * channels)
    amp = {"auto": "bf16" if device.type == "cuda" else "off"}.get(config.amp, config.amp)
    if config.thread_independent:
        require_thread_independent(replace(config, amp=amp), backend, device)
    return replace(
        config,
        mean=mean if config.mean is None else config.mean,
        std=std if config.std is None else config.std,
        pixel_bits=config.pixel_bits or data.train.pixel_bits,
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


def _folder(config: Config, *, resume: bool, processes: Ranks) -> Path:
    """The run folder, made by the first process."""
    made, failure = None, None
    if processes.first:
        try:
            made = run_folder(config) if resume else open_run_folder(config)
        except UserError as error:
            failure = str(error)
    made, failure = processes.share((None if made is None else str(made), failure))
    if failure is not None:
        raise UserError(failure)
    return Path(made)


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
        warn(f"{empty} of {result['clusters']} clusters are empty; a higher --entropy-weight evens them out")
    return result


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
