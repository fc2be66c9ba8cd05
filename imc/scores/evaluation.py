"""What a trained model says about images: features, clusters, and the plane; beside them, k-means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from imc.command_line.terminal import progress
from imc.errors import RunError
from imc.machine.precision import multiplies_bfloat16
from imc.models.recalibration import recalibrate_batch_norm
from imc.models.standardise import Standardise
from imc.runs.model import LoadedRun

BATCH = 1024  # bounds the memory of the activations; the result does not depend on it
RECALIBRATION_BATCH = 256
# The form of a model by which labels.csv, result.json, a report, predictions and exports are made, in words.
AS_TRAINED = "batch normalisation as training left it"
# Of the photographs in docs/embeddings.md, those less sure than this were wrong in four of ten cases, the others in one
# of fifty.
UNSURE = 0.7
KMEANS_RESTARTS = 10
KMEANS_IMAGES = 10_000
PLANE_COMPONENTS = 50  # of PCA before t-SNE
# Of 2,000 images of CIFAR-10, 97.5% of the ten nearest on the plane were near before (scikit-learn's trustworthiness);
# twice the steps, and twice the time, made it 97.7%.
PLANE_STEPS = 500
PLANE_IMAGES = 2000  # t-SNE of more takes minutes and shows no more


class Outputs(NamedTuple):
    """What the model gives for M images, on the CPU.

    Attributes:
        features: float32 [M, F], of the encoder.
        probabilities: float32 [M, C], of the clusters.
        by_head: int64 [M, H], the most probable cluster by each cluster head, of which ``probabilities`` are those of
            one; [M, 0] for a method with a single classifier.
    """

    features: Tensor
    probabilities: Tensor
    by_head: Tensor

    @property
    def clusters(self) -> NDArray[np.int64]:
        """The most probable cluster [M]."""
        return self.probabilities.argmax(dim=1).numpy()

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Its probability [M]."""
        return self.probabilities.max(dim=1).values.numpy()


@torch.inference_mode()
def outputs_of_batches(run: LoadedRun, batches: Iterable[Tensor], *, amp: str = "auto") -> Iterator[Outputs]:
    """The outputs for one batch after another, by the running statistics of batch normalisation.

    Args:
        run: the model and what its images look like; the model's mode (train or eval) is left as found.
        batches: uint8 [B, H, W, C], on any device.
        amp: "bf16" to compute the encoder in bfloat16 where autocast does, "off", or "auto": as the run was trained, if
            the device has instructions for it.

    Raises:
        RunError: an output is not finite.
    """
    model, device = run.model, run.device
    mode, training_amp = model.training, model.amp
    model.eval()
    model.amp = amp == "bf16" or (amp == "auto" and run.config.amp == "bf16" and multiplies_bfloat16(device))
    try:
        for batch in batches:
            features = model.features(run.prepare(batch.to(device)))
            logits, by_head = model.classify(features)
            heads = logits.new_empty(len(logits), 0).long() if by_head is None else by_head.argmax(dim=2).T
            features, probabilities = features.float().cpu(), logits.float().softmax(dim=1).cpu()
            if not (features.isfinite().all() and probabilities.isfinite().all()):
                raise RunError(
                    "the model gives NaN or infinite numbers for an image; are its parameters finite, and are "
                    "pixel_scale, mean and std of its configuration those it was trained with?"
                )
            yield Outputs(features, probabilities, heads.cpu())
    finally:
        model.amp = training_amp
        model.train(mode)


def outputs(run: LoadedRun, images: Tensor, *, batch_size: int = BATCH, amp: str = "auto") -> Outputs:
    """The outputs for images uint8 [M, H, W, C], each unaugmented; see :func:`outputs_of_batches`."""
    found: Outputs | None = None
    done = 0
    # What is one batch belongs to a command that shows its own progress.
    with progress(len(images), "apply the model", "image", shown=len(images) > batch_size) as bar:
        for part in outputs_of_batches(run, images.split(batch_size), amp=amp):
            # Made whole at first: parts kept between the activations of batches would scatter what these leave free.
            found = found or Outputs(*(column.new_empty(len(images), *column.shape[1:]) for column in part))
            for whole, column in zip(found, part, strict=True):
                whole[done : done + len(column)] = column
            done += len(part.features)
            bar.update(len(part.features))
    assert found is not None, "there are no images"
    return found


@torch.inference_mode()
def embeddings(run: LoadedRun, images: Tensor, *, batch_size: int = BATCH) -> Iterator[Tensor]:
    """The points [B, D] that the representation loss sees, batch after batch, for images uint8 [M, H, W, C]."""
    mode = run.model.training
    run.model.eval()
    try:
        for batch in images.split(batch_size):
            yield run.model.embed(run.prepare(batch.to(run.device)))
    finally:
        run.model.train(mode)


def recalibrate(run: LoadedRun, images: Tensor, *, batch_size: int = RECALIBRATION_BATCH) -> int:
    """Estimate the statistics of batch normalisation on images uint8 [M, H, W, C] as evaluation sees them.

    Their order is shuffled with a fixed seed, since files often lie class by class.

    Returns:
        The number of images used.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0), device="cpu")
    with progress(len(images), "recalibrate", "image") as bar:

        def batches() -> Iterator[Tensor]:
            for indices in order.split(batch_size):
                yield run.prepare(images[indices].to(run.device))
                bar.update(len(indices))

        return recalibrate_batch_norm(run.model, batches())


def kmeans_on_pixels(images: Tensor, clusters: int, seed: int) -> NDArray[np.int64]:
    """The cluster of every image by k-means (best of 10 starts) on its raw pixels: uint8 [M, H, W, C] -> int64 [M].

    Of more than 10,000 images, 10,000 evenly spaced ones decide the centres.
    """
    return _kmeans(images, _pixels, clusters, seed, "k-means on pixels")


def kmeans_on_features(
    rows: Tensor, clusters: int, seed: int, columns: Sequence[int], scaling: str
) -> NDArray[np.int64]:
    """The same on rows of features [M, D], scaled as for the heads; see :class:`imc.models.standardise.Standardise`."""
    scaled = Standardise(columns, scaling)
    scaled.fit(rows)
    return _kmeans(rows, lambda some: scaled(some).numpy(), clusters, seed, "k-means on features")


def _kmeans(
    samples: Tensor, numbers: Callable[[Tensor], NDArray[np.float32]], clusters: int, seed: int, title: str
) -> NDArray[np.int64]:
    count = len(samples)
    sample = evenly_spaced(count, KMEANS_IMAGES)
    points, random = numbers(samples[sample]), np.random.RandomState(seed)
    # Threads would add up the centres in an order that changes from run to run.
    with threadpool_limits(limits=1), progress(KMEANS_RESTARTS, title, "start") as bar:
        # The starts that n_init=KMEANS_RESTARTS would make, one by one, since they may take minutes.
        fits = []
        for _ in range(KMEANS_RESTARTS):
            fits.append(KMeans(clusters, n_init=1, random_state=random).fit(points))
            bar.update()
        kmeans = min(fits, key=lambda fit: fit.inertia_)
        labels = [kmeans.predict(numbers(batch)) for batch in samples.split(KMEANS_IMAGES)]
    return np.concatenate(labels).astype(np.int64)


def evenly_spaced(count: int, most: int) -> Tensor:
    """Indices of ``most`` of ``count`` images, or of all where they are fewer: int64, from the first to the last."""
    indices = torch.linspace(0, count - 1, min(count, most), dtype=torch.float32, device="cpu").long()
    return indices.clamp_(max=count - 1)  # float32 rounds the last of more than 2^24


def _pixels(images: Tensor) -> NDArray[np.float32]:
    return images.flatten(1).cpu().numpy().astype(np.float32) / np.float32(255)


def plane(features: Tensor, seed: int) -> NDArray[np.float32]:
    """Features [M, F] laid out in the plane [M, 2] so that neighbours stay neighbours: t-SNE (scikit-learn's) on the
    first 50 principal components of the normalised features. Fewer than 10 images: the first two components.
    """
    rows = torch.nn.functional.normalize(features.float(), dim=1).numpy()
    if len(rows) < 2:
        return np.zeros((len(rows), 2), np.float32)
    components = min(PLANE_COMPONENTS, *rows.shape)
    reduced = PCA(components, random_state=seed).fit_transform(rows)
    if len(rows) < 10:
        return np.pad(reduced[:, :2], ((0, 0), (0, 2 - min(2, components)))).astype(np.float32)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # Threads wait for each other in each of its 1,000 small steps: on a busy machine two took 15 times as long as one.
    with threadpool_limits(limits=1):
        settings = {"perplexity": perplexity, "max_iter": PLANE_STEPS, "init": "pca", "random_state": seed}
        points = TSNE(2, **settings).fit_transform(reduced)
    return np.asarray(points, dtype=np.float32)
