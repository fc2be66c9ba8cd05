"""Cosine similarity of embeddings and prototypes (SwAV, arXiv 2006.09882, section 3.1)."""

from torch import Tensor
from torch.nn.functional import normalize


def prototype_scores(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
    """Embeddings [..., D] and prototypes [K, D] -> scores [..., K]."""
    if normalize_prototypes:
        prototypes = normalize(prototypes, dim=-1)
    return normalize(embeddings, dim=-1) @ prototypes.T
