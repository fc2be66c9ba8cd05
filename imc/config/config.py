"""Every number of a training run: one field, changed here or by its flag.

The flags are derived from the fields (:mod:`imc.command_line.arguments`): ``batch_size`` is ``--batch-size``.
What depends on the method and the data set has the default None here and its number in :mod:`imc.config.presets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_origin, get_type_hints

from imc.command_line.options import check, flag, option
from imc.errors import UserError
from imc.models.encoder_names import ACCEPTED, DEFAULT, is_named
from imc.models.standardise import SCALINGS

METHODS = ("imc-swav", "crlc", "temi")
ENCODERS = ("digits", "resnet18", "resnet34", "resnet50", "custom")
VIEWS = ("affine", "crops")  # of images
ROW_VIEWS = ("neighbours", "noise")  # of features
SWITCH = ("auto", "on", "off")
OF_FEATURES = ("neighbours", "mutual", "scaling", "columns")
OF_FILES_OF_IMAGES = ("download", "image_size", "pixel_bits", "labels_from_folders", "encoder")
OF_IMAGES = (
    *("init", "init_prefix", "freeze_encoder"),
    *("large_size", "large_area", "small_size", "small_area", "pixel_scale", "rotation", "shear", "gain", "flip"),
    *("jitter_probability", "brightness", "contrast", "saturation", "hue", "grayscale", "blur_probability"),
    *("blur_sigma", "normalize", "mean", "std", "channels", "side", "stem", "widths", "pool_after", "pooled_size"),
    *("sync_bn", "compile"),
)


@dataclass(frozen=True)
class Config:
    """The configuration of one run of ``imc train``.

    None stands for what the run resolves: by the preset of method and data set, or by the data and the machine. The
    types are those of a resolved configuration, which is what the run saves.
    """

    method: str = option(None, "run", "the method; default: imc-swav on images, crlc on features", choices=METHODS)
    data: str = option("digits", "run", "data set by name, or a path: a folder of images, an .npy or an .npz")
    features: tuple[str, ...] = option(
        None,
        "run",
        "instead of --data: .npy or .npz files of rows, one each sample; several lie side by side",
    )
    files: str | None = option(None, "run", "with --features: a text with the name of each row, one a line")
    labels: str | None = option(
        None, "run", "with --features: the classes of the rows, as .npy or one a line; read by the report at the end"
    )
    data_root: str | None = option(
        None, "run", "folder in which named data sets lie; default: that of IMC_DATA, or ~/.cache/imc"
    )
    download: bool = option(False, "run", "download a named data set that is not there")
    image_size: int | None = option(None, "run", "side to which the images of a folder are resized, pixels", at_least=4)
    pixel_bits: int | None = option(
        None,
        "run",
        "bits of the values of pixels stored in 16: 2^N - 1 becomes 255; default: those of the data's largest value",
        at_least=8,
        at_most=16,
    )
    labels_from_folders: bool = option(False, "run", "take the names of a folder's sub-folders as labels")
    train_on: str = option(
        "train", "run", "split that is clustered; the rivals of CRLC train on both", choices=("train", "train+test")
    )
    name: str | None = option(None, "run", "name of the run; default: the data set's, with -2, -3, ... if taken")
    out: str | None = option(None, "run", "folder for what the run writes; default: runs/<name>")
    overwrite: bool = option(False, "run", "replace the result that the folder holds (without it, that is an error)")
    resume: bool = option(
        False, "run", "continue the run in --out, on the same images; where there is none, --data starts it"
    )
    print_config: bool = option(False, "run", "print the resolved configuration as JSON and end")
    seed: int = option(
        0,
        "run",
        "on CPUs of one kind, with as many --threads, two runs with one seed are bitwise equal",
        at_least=0,
        below=2**32,
    )
    thread_independent: bool = option(
        False,
        "run",
        "the same bits on any number of CPU threads: at most 1.3 times as long on 2 threads, 2.9 times on 8",
    )
    backend: str = option("auto", "run", "kernels: auto, cuda, triton, cpu or eager; auto: the first that is built")

    epochs: int = option(None, "training", "passes over the data set", at_least=1)
    stop_after_epoch: int | None = option(
        None, "training", "write a checkpoint after this epoch and end as if interrupted", at_least=1
    )
    batch_size: int = option(
        None, "training", "images per update, over all ranks; the incomplete last batch is dropped", at_least=2
    )
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
    init: str | None = option(
        None, "training", "initialise the encoder: a run's folder, or another program's .pt, .pth, .safetensors, .npz"
    )
    init_prefix: str | None = option(
        None, "training", "which encoder of several in --init's file: what stands before its names, such as teacher"
    )
    freeze_encoder: bool = option(False, "training", "train the heads only, on --init's encoder")

    augmentation: str = option(
        None,
        "views",
        "affine: rotation, shear, gain, noise; crops: flip, resized crops, colour; of features neighbours: rows near "
        "to a sample; noise: a sample with noise",
        choices=VIEWS + ROW_VIEWS,
    )
    neighbours: int = option(None, "views", "features: nearest rows that are views of a sample", at_least=1)
    mutual: bool = option(None, "views", "features: only neighbours that have each other")
    scaling: str = option(
        None,
        "views",
        "features: of each row the length, of each column the deviation, or neither becomes 1",
        choices=SCALINGS,
    )
    large_crops: int = option(None, "views", "large crops per image: those that assign prototypes", at_least=1)
    large_size: int = option(None, "views", "side of a large crop, pixels", at_least=4, at_most=4096)
    large_area: tuple[float, float] = option(None, "views", "area of a large crop / image area", above=0)
    small_crops: int = option(None, "views", "small crops per image", at_least=0)
    small_size: int = option(None, "views", "side of a small crop, pixels", at_least=4, at_most=4096)
    small_area: tuple[float, float] = option(None, "views", "area of a small crop / image area", above=0)
    pixel_scale: float = option(
        None, "views", "affine: factor on the pixels 0..255; default: gives them a standard deviation of 1", above=0
    )
    rotation: float = option(None, "views", "affine: rotation up to +-this, degrees", at_least=0, at_most=180)
    shear: float = option(None, "views", "affine: shear up to +-this", at_least=0, at_most=1)
    gain: tuple[float, float] = option(None, "views", "affine: factor on the brightness", at_least=0)
    noise: float = option(
        None, "views", "affine: standard deviation of noise on the scaled pixels; features: / their size", at_least=0
    )
    flip: float = option(None, "views", "crops: probability of mirroring", at_least=0, at_most=1)
    jitter_probability: float = option(None, "views", "crops: probability of colour jitter", at_least=0, at_most=1)
    brightness: float = option(None, "views", "crops: brightness is multiplied by 1 +- this", at_least=0)
    contrast: float = option(None, "views", "crops: the same for contrast", at_least=0)
    saturation: float = option(None, "views", "crops: the same for saturation", at_least=0)
    hue: float = option(None, "views", "crops: hue is turned by up to +-this, in turns", at_least=0, at_most=0.5)
    grayscale: float = option(None, "views", "crops: probability of losing the colour", at_least=0, at_most=1)
    blur_probability: float = option(None, "views", "crops: probability of a Gaussian blur", at_least=0, at_most=1)
    blur_sigma: tuple[float, float] = option(None, "views", "crops: its standard deviation, pixels", above=0)
    normalize: bool = option(None, "views", "crops: subtract the mean and divide by the deviation of each channel")
    mean: tuple[float, ...] = option(None, "views", "crops: mean of each channel, 0..1; default: the data set's")
    std: tuple[float, ...] = option(None, "views", "crops: the same for the deviation", above=0)

    clusters: int = option(None, "network", "number of clusters; default: the data set's classes", at_least=2)
    channels: int = option(None, "network", "channels of the images; found in the data", at_least=1, at_most=3)
    side: int = option(None, "network", "short side of the images, pixels; found in the data", at_least=1)
    columns: tuple[int, ...] = option(None, "network", "features: columns of each file; found in the data", at_least=1)
    encoder: str = option(
        None,
        "network",
        f"one that is trained: {', '.join(ENCODERS)} (a module given from Python); or one that is kept, whose features "
        f"are clustered: {ACCEPTED}",
    )
    weights: str | None = option(
        None, "network", "of an encoder that is kept: a .pt, .pth, .safetensors or .npz instead of those of its name"
    )
    weights_sha256: str | None = option(None, "network", "of an encoder that is kept; found in it")
    stem: str = option(
        None,
        "network",
        "ResNets: cifar (3x3), cifar-pool (the same and a max-pool) or imagenet (7x7, stride 2)",
        choices=("cifar", "cifar-pool", "imagenet"),
    )
    widths: tuple[int, ...] = option(None, "network", "encoder digits: channels of the 3x3 convolutions", at_least=1)
    pool_after: int = option(
        None, "network", "encoder digits: convolution that the 2x2 max-pool follows, counted from 1", at_least=1
    )
    pooled_size: int = option(
        None, "network", "encoder digits: side of the map that average pooling leaves", at_least=1
    )
    feature_dim: int = option(None, "network", "encoder digits: features; else found in the encoder", at_least=1)
    bn: str = option(
        "per-view",
        "network",
        "statistics of the encoder's batch normalisation: of each view, or of all crops of a size (SwAV)",
        choices=("per-view", "per-size"),
    )
    bn_momentum: float = option(
        None, "network", "weight of each view in the running statistics of batch normalisation", above=0, at_most=1
    )
    projection_hidden: int = option(None, "network", "width between the projection's two layers", at_least=1)
    embedding_dim: int = option(None, "network", "dimension of embeddings and prototypes", at_least=2)
    projection_bias: bool = option(None, "network", "biases in the projection", method="imc-swav")
    prototypes: int = option(None, "network", "number of prototypes", at_least=2, method="imc-swav")
    classifier_widths: tuple[int, ...] = option(
        None, "network", "classifier's hidden layers", at_least=1, method="imc-swav"
    )
    sub_heads: int = option(None, "network", "number of cluster heads", at_least=1, method=("crlc", "temi"))
    head_hidden: int = option(
        None, "network", "width of a cluster head's hidden layer; 0: none", at_least=0, method=("crlc", "temi")
    )

    temperature: float = option(None, "loss", "divides prototype scores, or cosines of embeddings", above=0)
    entropy_weight: float = option(None, "loss", "weight of the entropy of the clusters", at_least=0)
    logit_limit: float = option(None, "loss", "logits beyond +-this are penalised", above=0)
    sinkhorn_epsilon: float = option(
        None, "loss", "entropy regularisation of Sinkhorn-Knopp", above=0, method="imc-swav"
    )
    sinkhorn_iterations: int = option(None, "loss", "iterations of Sinkhorn-Knopp", at_least=1, method="imc-swav")
    queue: int = option(
        0, "loss", "earlier embeddings per view that join Sinkhorn-Knopp (SwAV)", at_least=0, method="imc-swav"
    )
    queue_start_epoch: int = option(
        15, "loss", "epoch from which the queue is filled, from 0", at_least=0, method="imc-swav"
    )
    bank: bool = option(
        None, "loss", "the classifier sees labelled-split rows only, collected to a batch", method="imc-swav"
    )
    smoothing: float = option(None, "loss", "weight of the uniform distribution", at_least=0, below=1, method="crlc")
    beta: float = option(None, "loss", "exponent of the joint probabilities", above=0, method="temi")
    teacher_momentum: float = option(
        None, "loss", "share of the heads' moving averages that a step leaves", at_least=0, at_most=1, method="temi"
    )
    contrast_weight: float = option(None, "loss", "weight of the contrast of the embeddings", at_least=0, method="crlc")

    device: str = option(
        "auto", "speed", "where to run; auto: a GPU where there is one", choices=("auto", "cpu", "cuda")
    )
    threads: int = option(0, "speed", "CPU threads; 0: as many as torch chooses", at_least=0)
    amp: str = option(
        "auto", "speed", "bfloat16 autocast of the encoder; auto: on CUDA", choices=("auto", "bf16", "off")
    )
    channels_last: str = option("auto", "speed", "memory order of images and weights; auto: on", choices=SWITCH)
    device_data: str = option(
        "auto",
        "speed",
        "keep the data set on the device; auto: where it takes under half the free memory",
        choices=SWITCH,
    )
    compile: bool = option(False, "speed", "torch.compile the encoder")
    cuda_graph: bool = option(False, "speed", "capture the whole step as one CUDA graph")
    sync_bn: bool = option(False, "speed", "batch normalisation over the views of all ranks, not of each")
    rank_timeout: float = option(
        600.0, "speed", "seconds after which a rank that does not answer ends the run", above=0
    )

    log_every: int = option(50, "output", "updates between readings of the loss", at_least=1)
    tensorboard: bool = option(False, "output", "write TensorBoard's event files too")
    checkpoint_every: int = option(1, "output", "epochs between checkpoints; 0: only by time", at_least=0)
    checkpoint_minutes: float = option(10.0, "output", "minutes after which one is written within an epoch", above=0)

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
    def encodes(self) -> bool:
        """Whether an encoder that is kept makes the samples of images."""
        return self.encoder is not None and self.encoder not in ENCODERS

    def _check_features(self) -> None:
        """What is for features alone is not given without, and what is for images not with them."""
        if self.encodes and not is_named(self.encoder):
            known = f"{', '.join(ENCODERS)}, {ACCEPTED}"
            raise UserError(f"--encoder {self.encoder!r} is not known; accepted are {known}")
        if self.features is None:
            for name in ("files", "labels"):
                if getattr(self, name) is not None:
                    raise UserError(f"{flag(name)} is for features: --features, and none are given")
        if not self.encodes and (self.weights is not None or self.weights_sha256 is not None):
            raise UserError("--weights is for an --encoder that is kept; --init takes those of one that is trained")
        if not self.on_features:
            kind = f"for features: --features, or --encoder {DEFAULT}"
            if self.method == "temi":
                raise UserError(f"--method temi is {kind}")
            for name in OF_FEATURES:
                if getattr(self, name) is not None:
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

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration that :meth:`to_dict` gave, also after a passage through JSON.

        Raises:
            UserError: a name that is no field: another version wrote it.
        """
        hints = get_type_hints(cls)
        unknown = values.keys() - {entry.name for entry in fields(cls)}
        if unknown:
            raise UserError(f"the configuration has the field {min(unknown)!r}, which this version does not know")
        read: dict[str, Any] = {
            name: tuple(value) if get_origin(hints[name]) is tuple and isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**read)

    def given(self) -> dict[str, Any]:
        """The fields that differ from their default, by name."""
        return {e.name: getattr(self, e.name) for e in fields(self) if getattr(self, e.name) != e.default}


__all__ = ["ENCODERS", "METHODS", "Config", "flag"]
