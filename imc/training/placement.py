"""The form in which a model is trained: its device, order in memory, precision and batch normalisation."""

from __future__ import annotations

import torch

from imc.errors import UserError
from imc.machine.precision import multiplies_bfloat16
from imc.machine.threads import products_depend_on_threads
from imc.methods.method import Method
from imc.models.batch_norm import synchronise
from imc.models.convolution import make_thread_independent
from imc.models.resnet import BLOCKS
from imc.training.options import PlacementOptions
from imc.training.ranks import Ranks, same_start


def place(model: Method, options: PlacementOptions, device: torch.device, processes: Ranks) -> None:
    """Put the model on its device, in the form in which this run trains it.

    Raises:
        UserError: batch normalisation over all ranks was asked for in an encoder of one's own.
    """
    model.to(device)
    if options.channels_last == "on":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.amp, model.per_size = options.amp == "bf16", options.bn == "per-size"
    model.group = processes.group
    if options.freeze_encoder:
        model.frozen = True
        model.encoder.requires_grad_(False)
    if options.sync_bn:
        if options.encoder == "custom":
            raise UserError("--sync-bn is for the encoders of this package; convert yours before you pass it")
        # A bank's batch is whole in every process.
        synchronise(model.encoder if options.bank else model, processes.group)
    if options.thread_independent:
        make_thread_independent(model)
    same_start(model, processes.group)
    if options.compile:
        model.encoder.compile(dynamic=False)  # one graph for each size of crops; parameters keep their names
    model.train()


def choose_amp(options: PlacementOptions, device: torch.device) -> str:
    """What ``--amp`` stands for, "bf16" or "off".

    On a CPU with instructions for it bfloat16 is the default of the ResNets, whose convolutions gain by it:
    ``benchmarks/encoder_precision.py`` measures each encoder in both.
    """
    if options.amp != "auto":
        return options.amp
    if device.type == "cpu" and (options.encoder not in BLOCKS or options.thread_independent):
        return "off"
    return "bf16" if device.type != "cpu" or multiplies_bfloat16(device) else "off"


def require_thread_independent(options: PlacementOptions, backend: str, device: torch.device) -> None:
    """The bits of this run can be kept from depending on the number of threads. To be asked after ``set_threads``.

    Args:
        options: of the run, resolved.
        backend: that runs the kernels.
        device: of the run.

    Raises:
        UserError: they cannot.
    """
    if device.type != "cpu":
        raise UserError(f"--thread-independent is about the threads of a CPU, this run is on {device.type}")
    if backend != "cpu":
        raise UserError(f"--thread-independent needs the kernels of --backend cpu, this run has {backend}")
    for given, name in (
        (options.amp == "bf16", "--amp bf16"),
        (options.compile, "--compile"),
        (options.sync_bn, "--sync-bn"),
        (options.encoder == "custom", "an encoder of your own"),
    ):
        if given:
            raise UserError(f"--thread-independent cannot be kept with {name}, whose sums torch splits by the threads")
    if products_depend_on_threads():
        raise UserError(
            "--thread-independent needs Intel MKL in its strict mode, which it enters at a process's first product: "
            "this torch has another library, or matrices were multiplied before imc set MKL_CBWR"
        )
