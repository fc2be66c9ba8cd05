"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn import datasets

from imc.data.dataset import Dataset, Images
from imc.data.statistics import channel_statistics

LEVELS = 16  # the pixels are counts 0..16


def load_digits() -> Dataset:
    """The digits: images uint8 [1797, 8, 8, 1] stretched to 0..255, labels 0..9, no test split."""
    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / LEVELS)).astype(np.uint8)
    train = Images(
        name="digits",
        images=torch.from_numpy(pixels).unsqueeze(-1),
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        class_names=tuple(str(name) for name in digits.target_names),
    )
    mean, std = channel_statistics(train.images)
    note = f"digits: {len(pixels):,} grey images of 8x8 pixels from scikit-learn"
    return Dataset("digits", train, test=None, unlabeled=None, mean=mean, std=std, note=note)
