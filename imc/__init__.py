"""Clustering images without labels by mutual information across views.

    python -m imc.train                                     # IMC-SwAV on scikit-learn's handwritten digits

From Python:

    from imc.config import Config
    from imc.train import train
    result = train(Config(seed=1))

or with the conventions of scikit-learn:

    from imc import ImageClusterer
    labels = ImageClusterer(n_clusters=10, random_state=1).fit_predict(images)

and of what a network has seen in them, [M, D]:

    from imc import EmbeddingClusterer
    labels = EmbeddingClusterer(n_clusters=10, random_state=1).fit_predict(features)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imc.embedding_clusterer import EmbeddingClusterer
    from imc.estimator import ImageClusterer
    from imc_kernels import __version__

__all__ = ["EmbeddingClusterer", "ImageClusterer", "__version__"]


def __getattr__(name: str) -> Any:
    # When asked for, since they import torch and the trainer: until then Ctrl-C would end `imc` with a traceback.
    if name == "__version__":
        from imc_kernels import __version__

        return __version__
    if name == "ImageClusterer":
        from imc.estimator import ImageClusterer

        return ImageClusterer
    if name == "EmbeddingClusterer":
        from imc.embedding_clusterer import EmbeddingClusterer

        return EmbeddingClusterer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
