"""Every number of a training run: one field, changed here or by its flag.

The flags are derived from the fields (:mod:`imc.command_line.arguments`): ``batch_size`` is ``--batch-size``.
What depends on the method and the data set has the default None and its number in :mod:`imc.config.presets`.

The fields stand in parts, each in the ``options.py`` of the room that it configures. A function takes the part whose
fields it reads, so its type says which; a whole configuration is every part, and is passed for any. Parts that are
made of several name these in an order on which all of them agree, as Python wants it of classes with common bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from imc.command_line.options import check, flag, option, ordered, read
from imc.data.options import VIEWS, SampleInputOptions, SourceOptions
from imc.errors import UserError
from imc.features.options import AUGMENTED, ROW_VIEWS, ReadOptions, RowViewOptions
from imc.machine.options import BackendOptions
from imc.methods.options import METHODS
from imc.models.encoder_names import ACCEPTED, DEFAULT, is_named
from imc.models.options import ENCODERS
from imc.training.options import InitialOptions, LoopOptions, PlacementOptions, RankOptions

OF_FEATURES = ("neighbours", "mutual", "views", "scaling", "columns", "head_clusters")
OF_FURTHER = ("neighbours", "mutual", "scaling", "head_clusters")  # of those, what a further training has too
OF_FILES_OF_IMAGES = ("download", "image_size", "pixel_bits", "labels_from_folders", "encoder", "train_encoder")
OF_IMAGES = (
    *("init", "init_prefix", "freeze_encoder"),
    *("large_size", "large_area", "small_size", "small_area", "pixel_scale", "rotation", "shear", "gain", "flip"),
    *("jitter_probability", "brightness", "contrast", "saturation", "hue", "grayscale", "blur_probability"),
    *("blur_sigma", "normalize", "mean", "std", "channels", "side", "stem", "widths", "pool_after", "pooled_size"),
    *("sync_bn", "compile"),
)


@dataclass(frozen=True)
class RunOptions(SourceOptions):
    """Where a run writes, and how it begins."""

    name: str | None = option(None, "run", "name of the run; default: the data set's, with -2, -3, ... if taken")
    out: str | None = option(None, "run", "folder for what the run writes; default: runs/<name>", path=True)
    overwrite: bool = option(False, "run", "replace the result that the folder holds (without it, that is an error)")
    resume: bool = option(
        False, "run", "continue the run in --out, on the same images; where there is none, --data starts it"
    )
    print_config: bool = option(False, "run", "print the resolved configuration as JSON and end")


@dataclass(frozen=True)
class StartOptions(RunOptions, ReadOptions):
    """What a run begins with: a folder and images."""


@dataclass(frozen=True)
class Config(
    RowViewOptions,
    RankOptions,
    BackendOptions,
    InitialOptions,
    SampleInputOptions,
    LoopOptions,
    PlacementOptions,
    StartOptions,
):
    """The configuration of one run of ``imc train``.

    None stands for what the run resolves: by the preset of method and data set, or by the data and the machine. The
    types are those of a resolved configuration, which is what the run saves.
    """

    # Of --help: what people use first.
    FIRST: ClassVar = {
        "data": ("data", "features", "labels_from_folders", "image_size", "download"),
        "what is learned": ("method", "clusters", "encoder", "init", "augmentation"),
        "training": ("epochs", "batch_size", "lr", "seed"),
        "the run": ("out", "overwrite", "resume", "print_config"),
        "machine": ("device", "threads"),
    }
    # Of --help-all and config.json; a field that is not named comes last.
    # fmt: off
    ORDER: ClassVar = (
        "method", "data", "features", "files", "labels", "data_root", "download", "image_size", "pixel_bits",
        "labels_from_folders", "train_on", "name", "out", "overwrite", "resume", "print_config", "seed",
        "thread_independent", "backend", "epochs", "stop_after_epoch", "batch_size", "optimizer", "lr", "classifier_lr",
        "schedule", "lr_epochs", "lr_factor", "warmup_updates", "freeze_updates", "beta1", "beta2", "momentum",
        "weight_decay", "decay_matrices_only", "init", "init_prefix", "freeze_encoder", "augmentation", "neighbours",
        "mutual", "views", "scaling", "large_crops", "large_size", "large_area", "small_crops", "small_size",
        "small_area", "pixel_scale", "rotation", "shear", "gain", "noise", "flip", "jitter_probability", "brightness",
        "contrast", "saturation", "hue", "grayscale", "blur_probability", "blur_sigma", "normalize", "mean", "std",
        "clusters", "channels", "side", "columns", "encoder", "train_encoder", "weights", "weights_sha256", "stem",
        "widths", "pool_after", "pooled_size", "feature_dim", "bn", "bn_momentum", "projection_hidden", "embedding_dim",
        "projection_bias", "prototypes", "classifier_widths", "sub_heads", "head_hidden", "head_clusters",
        "temperature", "entropy_weight", "logit_limit", "sinkhorn_epsilon", "sinkhorn_iterations", "queue",
        "queue_start_epoch", "bank", "smoothing", "beta", "teacher_momentum", "contrast_weight", "device", "threads",
        "amp", "channels_last", "device_data", "compile", "cuda_graph", "sync_bn", "rank_timeout", "log_every",
        "tensorboard", "checkpoint_every", "checkpoint_minutes",
    )
    # fmt: on

    def validate(self) -> Config:
        """This configuration, if every value is accepted.

        Raises:
            UserError: the first value that is not, with what is accepted.
        """
        check(self)
        method = self.method or self.default_method
        for entry in fields(self):
            owner = entry.metadata["method"]
            if owner and method not in owner and getattr(self, entry.name) != entry.default:
                raise UserError(
                    f"{flag(entry.name)} belongs to --method {' or '.join(owner)}, this is --method {method}"
                )
        self._check_features()
        if self.head_clusters is not None and self.clusters is not None and self.head_clusters < self.clusters:
            raise UserError(f"--head-clusters must be at least {self.clusters}, --clusters, got {self.head_clusters}")
        if self.large_crops is not None and self.small_crops is not None and self.large_crops + self.small_crops < 2:
            raise UserError("--large-crops and --small-crops must be at least 2 together, got 1")
        if method == "crlc" and (self.large_crops not in (None, 2) or self.small_crops not in (None, 0)):
            raise UserError("--method crlc takes two views: --large-crops 2 --small-crops 0")
        if self.widths is not None and self.pool_after is not None and self.pool_after > len(self.widths):
            raise UserError(
                f"--pool-after must be at most {len(self.widths)}, the number of --widths, got {self.pool_after}"
            )
        if self.name is not None and (set(self.name) & set("/\\") or self.name in (".", "..")):
            raise UserError(f"--name must be the name of one folder, without separators, got {self.name!r}")
        if self.resume and self.out is None and self.name is None:
            raise UserError("--resume needs --out or --name, the run to continue")
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other")
        if self.freeze_encoder and self.init is None:
            raise UserError("--freeze-encoder needs --init, the encoder to keep")
        if self.init_prefix is not None and self.init is None:
            raise UserError("--init-prefix needs --init, the file to look into")
        return self

    @property
    def default_method(self) -> str:
        """The method where none is named."""
        return "crlc" if self.on_features else "imc-swav"

    @property
    def on_features(self) -> bool:
        """Whether the samples are rows of features, given or by an encoder that is kept."""
        return self.features is not None or self.encodes

    @property
    def is_for_pixels(self) -> bool:
        """Whether an encoder that is trained on the pixels was named, or an option that only such a run has."""
        named = any(getattr(self, name) not in (None, False) for name in ("encoder", "image_size", *OF_IMAGES))
        return named or self.augmentation in VIEWS or self.train_on != "train"

    def _check_features(self) -> None:
        """What is for features alone is not given without, and what is for images not with them."""
        if self.is_pretrained and not is_named(self.encoder):
            known = f"{', '.join(ENCODERS)}, {ACCEPTED}"
            raise UserError(f"--encoder {self.encoder!r} is not known; accepted are {known}")
        if self.features is None:
            for name in ("files", "labels"):
                if getattr(self, name) is not None:
                    raise UserError(f"{flag(name)} is for features: --features, and none are given")
        if self.views is not None and not (self.are_augmented and self.encodes):
            raise UserError(f"--views is for an --encoder that is kept with --augmentation {AUGMENTED}")
        if not self.is_pretrained and (self.weights is not None or self.weights_sha256 is not None):
            raise UserError("--weights is for a pretrained --encoder; --init takes those of one that is not")
        if self.train_encoder:
            self._check_further()
        if not self.on_features:
            kind = f"for features: --features, or --encoder {DEFAULT}"
            if self.method == "temi":
                raise UserError(f"--method temi is {kind}")
            for name in OF_FEATURES:
                if getattr(self, name) is not None and not (self.train_encoder and name in OF_FURTHER):
                    raise UserError(f"{flag(name)} is {kind}")
            if self.augmentation in ROW_VIEWS:
                raise UserError(f"--augmentation {self.augmentation} is for features; of images accepted are {VIEWS}")
            return
        on = f"--encoder {self.encoder}, which is kept" if self.features is None else "--features"
        for name in OF_IMAGES if self.features is None else (*OF_IMAGES, *OF_FILES_OF_IMAGES):
            if getattr(self, name) not in (None, False):
                raise UserError(f"{flag(name)} is for images, and the run is on {on}")
        if self.augmentation in VIEWS:
            raise UserError(f"--augmentation {self.augmentation} is for images; of features accepted are {ROW_VIEWS}")
        if self.train_on != "train":
            raise UserError(f"--train-on is for images, and the run is on {on}")

    def _check_further(self) -> None:
        """What does not go with a pretrained encoder that is trained."""
        if self.features is None and not self.is_pretrained:
            given = "none is given" if self.encoder is None else f"{self.encoder} is trained without it"
            raise UserError(f"--train-encoder needs a pretrained --encoder, {ACCEPTED}, and {given}")
        if self.freeze_encoder:
            raise UserError("--train-encoder and --freeze-encoder exclude each other")
        if self.init is not None and self.weights is not None:
            raise UserError("--weights and --init both say what the encoder's weights begin with; give one of them")
        if self.augmentation == "affine":
            raise UserError("--train-encoder takes --augmentation crops, got affine")
        if self.bank:
            raise UserError("--bank is for an encoder that is trained from nothing, and --train-encoder is given")
        for name in ("sync_bn", "thread_independent"):
            if getattr(self, name):
                raise UserError(f"{flag(name)} is for the encoders of this package, and --train-encoder trains another")

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {entry.name: getattr(self, entry.name) for entry in ordered(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration that :meth:`to_dict` gave, also after a passage through JSON.

        Raises:
            UserError: a name that is no field: another version wrote it.
        """
        return read(cls, values)

    def given(self) -> dict[str, Any]:
        """The fields that differ from their default, by name."""
        return {e.name: getattr(self, e.name) for e in fields(self) if getattr(self, e.name) != e.default}


__all__ = ["ENCODERS", "METHODS", "Config", "RunOptions", "StartOptions"]
