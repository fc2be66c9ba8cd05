"""Clusters of a whole data set: by a trained model, and by k-means on its pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from imc.data.views import resize
from imc.methods.imc_swav import ImcSwav

BATCH = 1024  # bounds the memory of the activations; the result does not depend on it
KMEANS_RESTARTS = 10


@torch.inference_mode()
def assign(model: ImcSwav, images: Tensor, size: int, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The cluster of every image, from its un-augmented view and the running statistics of batch normalisation.

    Args:
        model: the trained model; its mode (train or eval) is left as found.
        images: uint8 [M, H, W, C].
        size: side to which the images are resized: the large crops'.
        scale: factor on the pixels, that of training.

    Returns:
        cluster int64 [M], and its probability float32 [M].
    """
    mode = model.training
    model.eval()
    logits = torch.cat([model.predict(resize(batch, size, scale)) for batch in images.split(BATCH)])
    model.train(mode)
    confidence, cluster = logits.softmax(dim=1).max(dim=1)
    return cluster.cpu().numpy(), confidence.cpu().numpy()


def kmeans_on_pixels(images: Tensor, clusters: int, seed: int) -> NDArray[np.int64]:
    """The cluster of every image by k-means (best of 10 starts) on its raw pixels: uint8 [M, H, W, C] -> int64 [M]."""
    pixels = images.flatten(1).cpu().numpy().astype(np.float32) / 255
    # Threads would add up the centres in an order that changes from run to run.
    with threadpool_limits(limits=1):
        labels = KMeans(clusters, n_init=KMEANS_RESTARTS, random_state=seed).fit(pixels).labels_
    return labels.astype(np.int64)
