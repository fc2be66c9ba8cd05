"""What the estimators share: a run of ``imc train`` with the conventions of scikit-learn."""

from __future__ import annotations

import contextlib
import copy
import difflib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from imc.command_line.terminal import silence
from imc.config import Config
from imc.data import Images
from imc.errors import StoppedError, UserError
from imc.features.options import ReadOptions
from imc.files.json import write_json
from imc.files.run_places import CONFIG, MODEL
from imc.machine.device import choose_device
from imc.machine.torch_state import as_in_a_new_process
from imc.runs.model import LoadedRun, load_run, save_model
from imc.scores.evaluation import Outputs, outputs
from imc.train import train

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE = "<array>"  # stands in a configuration where the name of a data set would
# Fields of a configuration that say where a run's data and files lie, and when it ends early.
OF_COMMANDS = {
    *("name", "overwrite", "resume", "stop_after_epoch", "print_config", "tensorboard"),
    *("data_root", "download", "image_size", "labels_from_folders", "train_on"),
}


class Seen(NamedTuple):
    """What the model of a run takes of the samples that a user gave.

    Attributes:
        samples: images uint8 [M, H, W, C], or rows [M, D].
        files: [M] their names, where they were given as files; some may be left out.
        pixel_bits: of those, the bits of the pixels of over 8, where there were such.
    """

    samples: Tensor
    files: tuple[str, ...] | None = None
    pixel_bits: int | None = None


class Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """A run whose samples are given. Subclasses have the parameters that :meth:`_config` reads, and ``_samples``."""

    n_clusters: int
    method: str | None
    epochs: int | None
    batch_size: int | None
    options: Mapping[str, Any] | None
    random_state: int | np.random.RandomState | None
    device: str
    verbose: bool

    def _samples(self, X: ArrayLike, *, reset: bool) -> Any:  # noqa: N803
        """The samples that training takes, of what a user gave; with ``reset`` their kind is learned from it."""
        raise NotImplementedError

    def _seen(self, samples: Any, options: ReadOptions, *, reset: bool) -> Seen:
        """What the model of a run takes, of :meth:`_samples`; with ``reset`` the options are not resolved."""
        return Seen(samples)

    def _module(self) -> nn.Module | None:
        """The encoder, where it is a module."""
        return None

    def _own(self) -> dict[str, Any]:
        """Further fields of the configuration."""
        return {}

    def fit(self, X: ArrayLike, y: object = None) -> Self:  # noqa: N803
        """Train, and cluster the samples; ``y`` is ignored.

        Trains in this process, also where that is one of a distributed job, and in any state of torch
        (:mod:`imc.machine.torch_state`); fits of several threads take turns. What fails leaves the estimator as it was.
        """
        before = dict(self.__dict__)
        try:
            warned = self._fit(X)
        except BaseException:
            self.__dict__ = before
            raise
        for sentence in warned:
            warnings.warn(sentence, ConvergenceWarning, stacklevel=2)
        return self

    def _fit(self, X: ArrayLike) -> list[str]:  # noqa: N803
        """Train, and set the fitted attributes; what the run warned of, where it was not shown."""
        with _as_value_error():
            samples = self._samples(X, reset=True)
        if not isinstance(self.n_clusters, (int, np.integer)) or self.n_clusters < 2:
            raise ValueError(f"n_clusters must be an integer of at least 2, got {self.n_clusters!r}")
        if len(samples) < self.n_clusters:
            raise ValueError(f"n_samples={len(samples)} should be >= n_clusters={self.n_clusters}")
        module = self._module()
        with tempfile.TemporaryDirectory() as folder, _as_value_error(), as_in_a_new_process():
            config = self._config(Path(folder) / "run")
            said: AbstractContextManager[list[str]] = contextlib.nullcontext([]) if self.verbose else silence()
            with said as warned:
                seen = self._seen(samples, config, reset=True)
                config = replace(config, pixel_bits=config.pixel_bits or seen.pixel_bits)
                data = Images(SOURCE, seen.samples, None, ())
                out = train(config, data, copy.deepcopy(module), report=False, embedded=True)
            assert out is not None
            run = load_run(out["out"], "cpu", copy.deepcopy(module))
        self.config_, self.model_ = run.config, run.model
        self.labels_ = self._outputs(seen.samples).clusters
        self.__dict__.pop("files_", None)
        if seen.files is not None:
            self.files_ = seen.files
        return warned

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """The cluster of each sample [M]."""
        return self._outputs(self._new(X)).clusters

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """The probability of each cluster for each sample [M, n_clusters]."""
        return self._outputs(self._new(X)).probabilities.numpy()

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """What the model's heads see of each sample [M, F]."""
        return self._outputs(self._new(X)).features.numpy()

    def save(self, folder: str | Path) -> None:
        """Write the model and its configuration as a run, for ``imc predict`` and ``imc export``.

        Raises:
            ValueError: the folder holds a run already.
        """
        check_is_fitted(self)
        folder = Path(folder)
        if (folder / CONFIG).exists():
            raise ValueError(f"{folder} holds a run already")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, self.config_.to_dict())
        save_model(folder / MODEL, self.model_)

    @property
    def _n_features_out(self) -> int:
        return int(self.config_.feature_dim)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 whatever comes in
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "model_" in state:  # a pickle that needs no GPU
            state = {**state, "model_": copy.deepcopy(state["model_"]).cpu()}
        return state

    def _config(self, folder: Path) -> Config:
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        own: dict[str, Any] = {
            "data": SOURCE,
            "out": str(folder),
            "clusters": int(self.n_clusters),
            "method": self.method,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": int(seed),
            "device": self.device,
            "checkpoint_every": 0,
            **self._own(),
        }
        if not isinstance(self.options, Mapping | None):
            raise ValueError(f"options must be a mapping from names of imc.config.Config, got {self.options!r}")
        taken = (own.keys() | OF_COMMANDS) & (self.options or {}).keys()
        if taken:
            raise ValueError(f"options must not set {min(taken)!r}, which has a parameter or is the estimator's own")
        known = [entry.name for entry in fields(Config)]
        for name in self.options or {}:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"options has {name!r}, which is no field of imc.config.Config{hint}")
        given = {**own, **(self.options or {})}
        return Config.from_dict({name: _plain(value) for name, value in given.items()}).validate()

    def _new(self, X: ArrayLike) -> Tensor:  # noqa: N803
        check_is_fitted(self)
        with _as_value_error(), silence():
            samples = self._samples(X, reset=False)
            return self._seen(samples, replace(self.config_, device=self.device), reset=False).samples

    def _outputs(self, samples: Tensor) -> Outputs:
        with as_in_a_new_process():
            return outputs(LoadedRun(self.config_, self.model_.to(choose_device(self.device))), samples)


def as_array(given: Any) -> Any:
    """What a user gave, a tensor as an array of a dtype that NumPy has.

    Raises:
        ValueError: values are masked, which scikit-learn would take as they lie there.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        return (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        raise ValueError("X has masked values, and a missing value is not accepted; fill them, or leave their rows out")
    return given


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """The errors of a run by the names that scikit-learn's users expect."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None
    except StoppedError:
        raise KeyboardInterrupt from None


def _plain(value: Any) -> Any:
    """A value with numbers as Python has them, instead of NumPy's, which a search over parameters draws."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
