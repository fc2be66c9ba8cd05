"""The parts of a configuration about training."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data.options import AugmentationOptions, BankOptions, BatchOptions, LayoutOptions, SeedOptions
from imc.machine.options import ThreadOptions
from imc.methods.options import ModelOptions
from imc.models.options import EncoderOptions, KeptEncoderOptions, PretrainedOptions


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser and its learning rates."""

    epochs: int = option(None, "training", "passes over the data set", at_least=1)
    optimizer: str = option(None, "training", "the optimiser", choices=("adam", "sgd"))
    lr: float = option(None, "training", "peak learning rate", above=0)
    classifier_lr: float = option(None, "training", "the same for IMC-SwAV's classifier; default: --lr", above=0)
    schedule: str = option(None, "training", "learning rate after the warm-up", choices=("constant", "cosine", "steps"))
    lr_epochs: tuple[int, ...] = option(
        None, "training", "with --schedule steps: epochs after which the rate is multiplied by --lr-factor", at_least=1
    )
    lr_factor: float = option(None, "training", "see --lr-epochs", above=0, at_most=1)
    warmup_updates: int = option(None, "training", "updates of linear warm-up", at_least=0)
    freeze_updates: int = option(None, "training", "first updates, which leave the prototypes untrained", at_least=0)
    beta1: float = option(None, "training", "Adam's decay rate of the gradient's mean", at_least=0, below=1)
    beta2: float = option(None, "training", "Adam's decay rate of the gradient's square", at_least=0, below=1)
    momentum: float = option(None, "training", "momentum of SGD", at_least=0, below=1)
    weight_decay: float = option(None, "training", "L2 penalty, added to the gradient", at_least=0)
    decay_matrices_only: bool = option(None, "training", "penalise only tensors of more than one dimension")
    cuda_graph: bool | None = option(
        None, "speed", "replay the whole step as one CUDA graph; default: on NVIDIA's GPUs, where a graph can hold it"
    )


@dataclass(frozen=True)
class RankOptions:
    """The processes of a run."""

    rank_timeout: float = option(
        600.0, "speed", "seconds after which a rank that does not answer ends the run", above=0
    )


@dataclass(frozen=True)
class PlacementOptions(ThreadOptions, BankOptions, EncoderOptions, PretrainedOptions, LayoutOptions):
    """The form in which a model is trained."""

    bn: str = option(
        "per-view",
        "network",
        "statistics of the encoder's batch normalisation: of each view, or of all crops of a size (SwAV)",
        choices=("per-view", "per-size"),
    )
    amp: str = option(
        "auto",
        "speed",
        "bfloat16 autocast of the encoder; auto: on CUDA, and of ResNets on processors with instructions for it",
        choices=("auto", "bf16", "off"),
    )
    compile: bool = option(False, "speed", "torch.compile the encoder")
    sync_bn: bool = option(False, "speed", "batch normalisation over the views of all ranks, not of each")


@dataclass(frozen=True)
class InitialOptions(ModelOptions, KeptEncoderOptions, PretrainedOptions, SeedOptions):
    """The model before its first update."""


@dataclass(frozen=True)
class LoopOptions(OptimizerOptions, BatchOptions, AugmentationOptions):
    """The loop: what one step is, and what is written when."""

    stop_after_epoch: int | None = option(
        None, "training", "write a checkpoint after this epoch and end as if interrupted", at_least=1
    )
    log_every: int = option(50, "output", "updates between readings of the loss", at_least=1)
    tensorboard: bool = option(False, "output", "write TensorBoard's event files too")
    checkpoint_every: int = option(1, "output", "epochs between checkpoints; 0: only by time", at_least=0)
    checkpoint_minutes: float = option(10.0, "output", "minutes after which one is written within an epoch", above=0)
