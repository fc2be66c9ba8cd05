"""Every number of a training run: one field, one default, changed here.

The command-line flags are derived from the fields (:mod:`imc.arguments`): ``batch_size`` is ``--batch-size``.
"""

from __future__ import annotations

from dataclasses import dataclass

from imc.errors import UserError
from imc.options import check, option


@dataclass(frozen=True)
class Config:
    """The configuration of one run of ``imc train``; the defaults are the recipe for the digits.

    ``None`` (and the backend "auto", and 0 threads) stand for what the run resolves; the resolved values are saved.
    """

    data: str = option("digits", "run", "data set: digits (1,797 handwritten digits of 8x8 pixels, from scikit-learn)")
    name: str | None = option(None, "run", "name of the run; default: the data set's, with -2, -3, ... if taken")
    out: str | None = option(None, "run", "folder for what the run writes; default: runs/<name>")
    overwrite: bool = option(False, "run", "replace the result that the folder holds (without it, that is an error)")
    seed: int = option(0, "run", "two runs with one seed and thread count are bitwise equal", at_least=0, below=2**32)
    backend: str = option("auto", "run", "kernels: auto, cpu, eager, ...; auto takes the first that is built")
    threads: int = option(0, "run", "CPU threads; 0: as many as torch chooses", at_least=0)

    epochs: int = option(40, "training", "passes over the data set", at_least=1)
    batch_size: int = option(128, "training", "images per update; the incomplete last batch is dropped", at_least=2)
    lr: float = option(6e-3, "training", "peak learning rate of Adam; decays to 0 as a half cosine", above=0)
    classifier_lr: float = option(1e-2, "training", "the same for the classifier", above=0)
    warmup_updates: int = option(
        50, "training", "updates of linear warm-up, during which the prototypes are not trained", at_least=0
    )
    beta1: float = option(0.9, "training", "Adam's decay rate of the gradient's mean", at_least=0, below=1)
    beta2: float = option(0.999, "training", "Adam's decay rate of the gradient's square", at_least=0, below=1)
    weight_decay: float = option(0.0, "training", "L2 penalty, added to the gradient", at_least=0)

    pixel_scale: float | None = option(
        None, "views", "factor on the pixels 0..255; default: gives the images a standard deviation of 1", above=0
    )
    large_crops: int = option(2, "views", "large crops per image: those that assign prototypes", at_least=1)
    large_size: int = option(8, "views", "side of a large crop, pixels", at_least=4)
    large_area: tuple[float, float] = option((0.5, 1.1), "views", "area of a large crop / image area", above=0)
    small_crops: int = option(4, "views", "small crops per image", at_least=0)
    small_size: int = option(6, "views", "side of a small crop, pixels", at_least=4)
    small_area: tuple[float, float] = option((0.25, 0.6), "views", "area of a small crop / image area", above=0)
    rotation: float = option(15.0, "views", "rotation up to +-this, degrees", at_least=0, at_most=180)
    shear: float = option(0.15, "views", "shear up to +-this", at_least=0, at_most=1)
    gain: tuple[float, float] = option((0.6, 1.4), "views", "factor on the brightness", at_least=0)
    noise: float = option(0.05, "views", "standard deviation of the noise on the scaled pixels", at_least=0)

    clusters: int | None = option(None, "network", "number of clusters; default: the data set's classes", at_least=2)
    widths: tuple[int, ...] = option((32, 32, 64, 128), "network", "channels of the 3x3 convolutions", at_least=1)
    pool_after: int = option(2, "network", "convolution that the 2x2 max-pool follows, counted from 1", at_least=1)
    pooled_size: int = option(2, "network", "side of the map that average pooling leaves", at_least=1)
    feature_dim: int = option(128, "network", "features of the encoder", at_least=1)
    projection_hidden: int = option(128, "network", "width between the projection's two layers", at_least=1)
    embedding_dim: int = option(64, "network", "dimension of embeddings and prototypes", at_least=2)
    projection_bias: bool = option(False, "network", "biases in the projection, as in the paper")
    prototypes: int = option(100, "network", "number of prototypes", at_least=2)
    classifier_widths: tuple[int, ...] = option((256,), "network", "classifier's hidden layers", at_least=1)
    bn_momentum: float = option(
        0.1, "network", "weight of each view in the running statistics of batch normalisation", above=0, at_most=1
    )

    sinkhorn_epsilon: float = option(0.05, "loss", "entropy regularisation of Sinkhorn-Knopp", above=0)
    sinkhorn_iterations: int = option(3, "loss", "iterations of Sinkhorn-Knopp", at_least=1)
    temperature: float = option(0.1, "loss", "divides the prototype scores", above=0)
    entropy_weight: float = option(4.0, "loss", "weight of the clusters' entropy in the mutual information", at_least=0)
    logit_limit: float = option(5.0, "loss", "logits beyond +-this are penalised", above=0)

    def validate(self) -> Config:
        """This configuration, if every value is accepted.

        Raises:
            UserError: the first value that is not, with what is accepted.
        """
        check(self)
        if self.large_crops + self.small_crops < 2:
            raise UserError("--large-crops and --small-crops must be at least 2 together, got 1")
        if self.pool_after > len(self.widths):
            raise UserError(
                f"--pool-after must be at most {len(self.widths)}, the number of --widths, got {self.pool_after}"
            )
        if self.name is not None and (not self.name or set(self.name) & set("/\\") or self.name in (".", "..")):
            raise UserError(f"--name must be the name of one folder, without separators, got {self.name!r}")
        if self.out == "":
            raise UserError("--out must be a folder, got an empty text")
        return self
