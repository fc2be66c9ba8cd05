"""Clustering images without labels by mutual information across views.

    python -m imc.train                                     # IMC-SwAV on scikit-learn's handwritten digits

From Python:

    from imc.config import Config
    from imc.train import train
    result = train(Config(seed=1))
"""

from imc_kernels import __version__

__all__ = ["__version__"]
