"""The numbers that depend on the method and the data set, each table with its source.

A flag or field that the user gave wins over all of them (:mod:`imc.config.filling`). :func:`numbers` looks, from the
most general to the most special, into METHODS (the method at its CIFAR-10 settings), SIZES (other image sizes) and DATA
(a data set).
"""

from __future__ import annotations

from typing import Any

from imc.data import NAMES

Numbers = dict[str, Any]

# IMC-SwAV, arXiv 2103.07368, section 4 and the authors' released code, which agree but where noted.
IMC_SWAV: Numbers = {
    "epochs": 500,
    "batch_size": 256,
    "optimizer": "adam",
    "lr": 5e-4,
    "schedule": "steps",
    "lr_epochs": (150, 300, 400),
    "lr_factor": 0.4,
    "warmup_updates": 500,  # the released code's help text says epochs; it counts updates
    "freeze_updates": 500,
    "beta1": 0.8,
    "beta2": 0.999,
    "momentum": 0.0,
    "weight_decay": 1e-5,
    "decay_matrices_only": False,
    "augmentation": "crops",
    "large_crops": 2,
    "large_size": 28,
    "large_area": (0.2, 1.0),
    "small_crops": 4,
    "small_size": 18,
    "small_area": (0.08, 0.4),
    "flip": 0.5,
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.25,
    "blur_probability": 0.0,
    "blur_sigma": (0.1, 2.0),
    "normalize": True,
    "encoder": "resnet18",
    "bn_momentum": 0.1,
    "projection_hidden": 512,
    "embedding_dim": 128,
    "projection_bias": True,
    "prototypes": 1000,
    "classifier_widths": (1024, 1024),
    "temperature": 0.1,
    "entropy_weight": 4.0,
    "logit_limit": 5.0,
    "sinkhorn_epsilon": 0.05,
    "sinkhorn_iterations": 3,
    "bank": False,
}

# CRLC, arXiv 2107.11635, and the CIFAR-10 run script of the authors' released code.
CRLC: Numbers = {
    "epochs": 2000,
    "batch_size": 512,
    "optimizer": "sgd",
    "lr": 0.1,
    "schedule": "constant",
    "lr_epochs": (2000,),
    "lr_factor": 1.0,
    "warmup_updates": 0,
    "freeze_updates": 0,
    "beta1": 0.9,
    "beta2": 0.999,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay_matrices_only": True,
    "augmentation": "crops",
    "large_crops": 2,
    "large_size": 32,
    "large_area": (0.2, 1.0),
    "small_crops": 0,
    "small_size": 32,
    "small_area": (0.2, 1.0),
    "flip": 0.5,
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur_probability": 0.0,
    "blur_sigma": (0.1, 2.0),
    "normalize": True,
    "encoder": "resnet34",
    "bn_momentum": 0.1,
    "projection_hidden": 512,
    "embedding_dim": 128,
    "sub_heads": 10,
    "head_hidden": 512,
    "temperature": 0.1,
    "entropy_weight": 2.0,  # the sum over both views of a mean over views; the paper is reported to weigh it by 1
    "logit_limit": 25.0,
    "smoothing": 0.01,
    "contrast_weight": 10.0,
}

METHODS: dict[str, Numbers] = {"imc-swav": IMC_SWAV, "crlc": CRLC}

# By the side of the images: the same sources, for Tiny-ImageNet (64) and STL-10 (96).
SIZES: dict[str, dict[int, Numbers]] = {
    "imc-swav": {
        32: {},
        64: {"large_size": 56, "small_size": 36, "batch_size": 512},
        96: {"large_size": 76, "small_size": 52},
    },
    "crlc": {32: {}, 64: {"large_size": 64}, 96: {"large_size": 96}},
}

# Ours, found on two cores for scikit-learn's digits: affine views, since a mirrored digit is another sign.
AFFINE: Numbers = {
    "augmentation": "affine",
    "rotation": 15.0,
    "shear": 0.15,
    "gain": (0.6, 1.4),
    "noise": 0.05,
    "large_area": (0.5, 1.1),
    "small_area": (0.25, 0.6),
}
DIGITS_ENCODER: Numbers = {
    "encoder": "digits",
    "widths": (32, 32, 64, 128),
    "pool_after": 2,
    "pooled_size": 2,
    "feature_dim": 128,
}
DIGITS_IMC_SWAV: Numbers = {
    **AFFINE,
    **DIGITS_ENCODER,
    "epochs": 40,
    "batch_size": 128,
    "lr": 6e-3,
    "classifier_lr": 1e-2,
    "schedule": "cosine",
    "warmup_updates": 50,
    "freeze_updates": 50,
    "beta1": 0.9,
    "weight_decay": 0.0,
    "large_size": 8,
    "small_size": 6,
    "projection_hidden": 128,
    "embedding_dim": 64,
    "projection_bias": False,
    "prototypes": 100,
    "classifier_widths": (256,),
}
# docs/crlc-digits.md says what was tried.
DIGITS_CRLC: Numbers = {
    **AFFINE,
    **DIGITS_ENCODER,
    "epochs": 60,
    "batch_size": 128,
    "optimizer": "adam",
    "lr": 3e-3,
    "schedule": "cosine",
    "warmup_updates": 50,
    "weight_decay": 0.0,
    "decay_matrices_only": False,
    "large_size": 8,
    "head_hidden": 128,
    "projection_hidden": 128,
    "embedding_dim": 64,
}
# Ours: the recipe of the digits at the size of these images, in a quarter of an hour on two cores.
MNIST: Numbers = {
    "widths": (16, 32, 64, 128),
    "pool_after": 1,
    "epochs": 8,
    "batch_size": 256,
    "lr": 3e-3,
    "classifier_lr": 5e-3,
    "large_size": 20,
    "small_size": 12,
}

DATA: dict[tuple[str, str], Numbers] = {
    ("imc-swav", "digits"): DIGITS_IMC_SWAV,
    ("imc-swav", "mnist"): {**DIGITS_IMC_SWAV, **MNIST},
    # Ours. A garment mirrored is the same garment, and all shoes point one way, so flips are right here. There is no
    # colour to jitter.
    ("imc-swav", "fashion-mnist"): {
        **DIGITS_IMC_SWAV,
        **MNIST,
        "augmentation": "crops",
        "large_area": (0.4, 1.0),
        "small_area": (0.15, 0.5),
    },
    ("imc-swav", "cifar100"): {"batch_size": 512},
    ("imc-swav", "stl10"): {"bank": True},
    ("crlc", "digits"): DIGITS_CRLC,
    ("crlc", "mnist"): {**DIGITS_CRLC, **MNIST},
    ("crlc", "fashion-mnist"): {**DIGITS_CRLC, **MNIST, "augmentation": "crops", "large_area": (0.4, 1.0)},
    ("crlc", "stl10"): {"blur_probability": 0.5, "normalize": False},
}

SMALL = 20  # pixels: smaller images get the recipe of the digits

# Ours, for fewer images of one's own than FEW. The papers' 500 updates of warm-up would be half of a run on some
# hundred images, and a ResNet needs a GPU.
FEW = 5000
# Of a set of one's own, however few images it has: with fewer the network has hardly learned (docs/usage.md).
LEAST_UPDATES = 300
FEW_IMAGES: dict[str, Numbers] = {
    "imc-swav": {
        **DIGITS_ENCODER,
        "epochs": 40,
        "batch_size": 64,
        "lr": 3e-3,
        "schedule": "cosine",
        "warmup_updates": 30,
        "freeze_updates": 30,
    },
    "crlc": {
        **{name: value for name, value in DIGITS_CRLC.items() if name not in AFFINE and name != "large_size"},
        "batch_size": 64,
        "warmup_updates": 30,
    },
}


# Ours, found on two cores for EfficientNet-Lite0's features of photographs; docs/embeddings.md says what was tried.
# Several starts and the lowest loss do most: of heads that start alike the mean is 5 to 10 points below the best.
FEATURES: Numbers = {
    "optimizer": "adam",
    "schedule": "cosine",
    "lr_epochs": (1,),
    "lr_factor": 1.0,
    "warmup_updates": 30,
    "freeze_updates": 0,
    "beta1": 0.9,
    "beta2": 0.999,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "decay_matrices_only": False,
    "augmentation": "neighbours",
    "mutual": False,
    "noise": 0.0,
    "large_crops": 2,
    "small_crops": 0,
    "bn_momentum": 0.1,
    "projection_hidden": 128,
    "embedding_dim": 64,
}
METHODS_ON_FEATURES: dict[str, Numbers] = {
    "crlc": {
        "lr": 3e-3,
        "sub_heads": 30,
        "head_hidden": 0,
        "contrast_weight": 0.0,  # of frozen features nothing is left to contrast
        "temperature": 0.1,
        "entropy_weight": 2.0,
        "logit_limit": 25.0,
        "smoothing": 0.01,
    },
    # arXiv 2303.17896 and its authors' code, with as many heads as for crlc.
    "temi": {
        "lr": 1e-2,
        "sub_heads": 30,
        "head_hidden": 0,
        "temperature": 0.1,
        "beta": 0.6,
        "teacher_momentum": 0.996,
    },
    "imc-swav": {
        "lr": 3e-3,
        "classifier_lr": 5e-3,
        "projection_bias": False,
        "prototypes": 100,
        "classifier_widths": (256,),
        "temperature": 0.1,
        "entropy_weight": 4.0,
        "logit_limit": 5.0,
        "sinkhorn_epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "bank": False,
    },
}
ROWS_OF_A_BATCH = 512
FEWEST_UPDATES, MOST_UPDATES, PASSES = 300, 3000, 30  # a run has PASSES epochs, within these bounds
# Of rows that no network gave, whose groups lie less apart: of the digits as 64 columns heads went on getting better.
FEWEST_OF_MEASUREMENTS = 1200
ON_MEASUREMENTS: dict[str, Numbers] = {"crlc": {"lr": 1e-2}}
NEIGHBOURS = 10


def numbers_on_features(method: str, count: int, scaling: str) -> Numbers:
    """What the presets say about a method on so many rows of features that are scaled so."""
    # Half of a small set, so that an epoch has two updates or more, and its batches differ.
    batch = max(2, min(ROWS_OF_A_BATCH, count // 2))
    steps = max(1, count // batch)
    measured = scaling != "length"
    fewest = FEWEST_OF_MEASUREMENTS if measured else FEWEST_UPDATES
    updates = min(max(PASSES * steps, fewest), MOST_UPDATES)
    sizes = {"batch_size": batch, "epochs": -(-updates // steps), "neighbours": max(1, min(NEIGHBOURS, count - 1))}
    own = ON_MEASUREMENTS.get(method, {}) if measured else {}
    return {**FEATURES, **METHODS_ON_FEATURES[method], **own, **sizes, "scaling": scaling}


# Ours, for a pretrained encoder that is trained further, behind heads that were trained on what it saw before. With a
# rate of 1e-4 for the encoder the answer was lost and found again; docs/embeddings.md says what was tried. Crops are as
# large as the network was trained on, and two of them are what a CPU can pay for.
FURTHER: Numbers = {
    "optimizer": "adam",
    "lr": 1e-5,
    "classifier_lr": 3e-4,
    "augmentation": "crops",
    "large_area": (0.4, 1.0),
    "normalize": True,
}
FURTHER_BATCH, FURTHER_PASSES = 64, 10


def numbers_further(method: str, side: int, count: int) -> Numbers:
    """What the presets say where a pretrained encoder is trained further, at images of this side, on so many."""
    heads = numbers_on_features(method, count, "length")
    sizes = {"batch_size": FURTHER_BATCH, "large_size": side, "small_size": max(4, side // 2)}
    return {**METHODS[method], **heads, **FURTHER, **sizes, "epochs": FURTHER_PASSES}


def numbers(method: str, data: str, side: int, count: int) -> Numbers:
    """What the presets say about a method, a data set (by name) and so many images of this side."""
    if (method, data) not in DATA and side < SMALL:
        return {**METHODS[method], **DATA[method, "digits"], **_scaled(DATA[method, "digits"], side / 8)}
    nearest = min(SIZES[method], key=lambda known: abs(known - side))
    sized = SIZES[method][nearest]
    if (method, data) not in DATA:
        sized = {**sized, **_scaled({**METHODS[method], **sized}, side / nearest)}
        if data not in NAMES and count < FEW:
            sized |= FEW_IMAGES[method]
    return {**METHODS[method], **sized, **DATA.get((method, data), {})}


def _scaled(preset: Numbers, factor: float) -> Numbers:
    sizes = {name: preset[name] for name in ("large_size", "small_size") if name in preset}
    return {name: max(4, round(size * factor)) for name, size in sizes.items()}
