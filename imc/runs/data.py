"""The data set that a configuration names, and the images in it whose clusters the run reports."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imc.command_line.terminal import warn
from imc.config import Config
from imc.data import NAMES, Dataset, Images, absolute, is_folder, load
from imc.data.fingerprint import difference, fingerprint, read_record
from imc.data.model_images import bits_of_files, fit_for_model
from imc.data.options import TrainedOptions
from imc.data.statistics import channel_statistics
from imc.errors import UserError
from imc.features.encoded import encoded, frozen_encoder
from imc.features.files import holds_features, read_features
from imc.features.options import ReadOptions
from imc.features.photographs import ADVICE, are_photographs, installed_encoder
from imc.files.paths import user_path
from imc.machine.device import choose_device
from imc.models.encoder_names import DEFAULT
from imc.models.frozen import FrozenEncoder
from imc.models.further import architecture
from imc.text import counted

SIDE_WITHOUT_GPU = 32


def sourced(config: Config, data: Dataset | Images | None = None, *, own_encoder: bool = False) -> Config:
    """The configuration as :func:`chosen`, and the digest of the weights of an encoder that is kept.

    Raises:
        UserError: features and another data set are given, or the encoder cannot be loaded.
    """
    config = chosen(config, data, own_encoder=own_encoder)
    return _with_weights(config) if data is None and config.features is None and config.encodes else config


def chosen(config: Config, data: Dataset | Images | None = None, *, own_encoder: bool = False) -> Config:
    """The configuration with its features, where it is on some, by the paths that lead to them from anywhere.

    An array of rows that is given as the data set is features, also where it is given from Python as ``data``. A folder
    of photographs is shown to a pretrained encoder, where one is installed, unless a module is to be trained on it
    (``own_encoder``) or an option is for a run on pixels.

    Raises:
        UserError: features and another data set are given.
    """
    if data is not None:
        rows = (data if isinstance(data, Images) else data.train).are_features
        if config.encodes and config.weights_sha256 is None:
            return _with_weights(config)
        return replace(config, features=(config.data,)) if rows and not config.on_features else config
    if config.features is None and holds_features(config.data):
        config = replace(config, features=(config.data,))
    if config.train_encoder and config.features is None:
        weights = None if config.weights is None else absolute(config.weights)
        return replace(config, encoder=config.encoder or DEFAULT, weights=weights)
    if config.features is None:
        if (
            not (own_encoder or config.is_for_pixels)
            and (encoder := installed_encoder())
            and are_photographs(config.data)
        ):
            config = replace(config, encoder=encoder)
        return config
    features = tuple(map(absolute, config.features))
    if config.data not in (Config.data, *config.features, features[0]):
        raise UserError(f"--data {config.data} and --features exclude each other")
    files, labels = (None if path is None else absolute(path) for path in (config.files, config.labels))
    return replace(config, data=features[0], features=features, files=files, labels=labels)


def kept_encoder(options: ReadOptions) -> FrozenEncoder:
    """The encoder whose features a run is on.

    Raises:
        UserError: it cannot be loaded, or has other weights than the run began with.
    """
    encoder = frozen_encoder(options.encoder, options.weights, options.image_size, str(choose_device(options.device)))
    if options.weights_sha256 not in (None, encoder.weights_sha256):
        raise UserError(
            f"--encoder {options.encoder} has other weights here than those of the run: SHA-256 "
            f"{encoder.weights_sha256[:16]}..., and theirs was {options.weights_sha256[:16]}...; give --weights, where "
            "they are"
        )
    return encoder


def _with_weights(config: Config) -> Config:
    """The configuration with the digest of its encoder's weights, and a path to them from anywhere."""
    config = replace(config, weights=None if config.weights is None else absolute(config.weights))
    return replace(config, weights_sha256=kept_encoder(config).weights_sha256)


def run_data(options: ReadOptions, data: Dataset | Images | None = None) -> Dataset:
    """``data`` as a data set, or the one that the configuration names.

    Raises:
        UserError: it is not there, cannot be read, or has labels that are none of its classes.
    """
    if isinstance(data, Images):
        mean, std = ((), ()) if data.are_features else channel_statistics(data.images)
        data = Dataset(data.name, data, test=None, unlabeled=None, mean=mean, std=std, note="")
    if data is not None:
        test = None if data.test is None else _labelled(data.test)
        return replace(data, train=_labelled(data.train), test=test)
    if options.features is not None:
        return read_features(options.features, files=options.files, labels=options.labels, views=options.are_augmented)
    if options.encodes:
        return encoded(
            options.data,
            kept_encoder(options),
            root=None if options.data_root is None else user_path(options.data_root),
            labels_from_folders=options.labels_from_folders,
            download=options.download,
            pixel_bits=options.pixel_bits,
            views=options.embedded_views,
        )
    loaded = load(
        options.data,
        root=None if options.data_root is None else user_path(options.data_root),
        image_size=image_size(options),
        labels_from_folders=options.labels_from_folders,
        download=options.download,
        pixel_bits=options.pixel_bits,
    )
    open_choice = options.encoder is None and installed_encoder() is None
    return replace(loaded, note=f"{loaded.note}; {ADVICE}") if open_choice and are_photographs(options.data) else loaded


def _labelled(images: Images) -> Images:
    """Images given from Python: labels that are all below 0 are no labels."""
    labels, count = images.labels, len(images.class_names)
    if labels is None:
        return images
    if labels.dim() != 1 or len(labels) != len(images.images) or labels.is_floating_point():
        raise UserError(
            f"the labels of {images.name} must be whole numbers, one for each of its images, {len(images.images):,}"
        )
    highest = int(labels.max()) if len(labels) else -1
    if highest >= count:
        raise UserError(f"the labels of {images.name} go up to {highest}, and it names {counted(count, 'class{es}')}")
    return replace(images, labels=labels.long() if highest >= 0 else None)


def image_size(options: ReadOptions) -> int | None:
    """The side asked for. A folder of one's own is read small where there is no GPU: larger would take days."""
    if options.image_size is not None or not is_folder(options.data):
        return options.image_size
    if options.side is not None:  # of the run that goes on or is looked at, perhaps on another kind of device
        return options.side
    return side_of_files(options)


def side_of_files(options: ReadOptions) -> int | None:
    """The side at which images in files are read where nobody says it; None: by their own."""
    if options.train_encoder:
        return architecture(options.encoder).side
    return SIDE_WITHOUT_GPU if choose_device(options.device).type == "cpu" else None


def require_apart(out: Path, source: str, data: Dataset) -> None:
    """What a run writes does not come to lie among the images it reads, to be read with them the next time.

    Raises:
        UserError: the run's folder is that of the images, or holds some of them.
    """
    files = [name for split in (data.train, data.test) if split is not None for name in split.files or ()]
    root, own = user_path(source).resolve(), out.resolve()
    if files and own.is_relative_to(root) and any((root / name).is_relative_to(own) for name in files):
        raise UserError(f"--out {out} holds images of --data {source}; give another --out, such as {out / 'run'}")


def clustered(options: TrainedOptions, data: Dataset) -> Images:
    """The train split, or with ``train_on`` "train+test" both in one."""
    if options.train_on == "train" or data.test is None:
        return data.train
    labels = None
    if data.train.labels is not None and data.test.labels is not None:
        labels = torch.cat([data.train.labels, data.test.labels])
    files = None if data.train.files is None or data.test.files is None else data.train.files + data.test.files
    images = torch.cat([data.train.images, data.test.images])
    return Images(data.name, images, labels, data.train.class_names, files, data.train.pixel_bits)


def trained_parts(options: TrainedOptions, data: Dataset) -> list[Tensor]:
    """The images that are trained on, those that are clustered first.

    Raises:
        UserError: there is no test split to train on.
    """
    if options.train_on == "train+test" and data.test is None:
        raise UserError(f"--train-on train+test: {data.name} has no test split")
    parts = [clustered(options, data).images]
    if data.unlabeled is not None and options.bank:
        parts.append(data.unlabeled.images)
    return parts


def fingerprint_of(options: TrainedOptions, data: Dataset) -> dict[str, Any]:
    """What tells whether a run of this configuration sees these images; see :mod:`imc.data.fingerprint`."""
    shown, parts = clustered(options, data), trained_parts(options, data)
    return fingerprint(parts if shown.views is None else [shown.views], shown.labels)


def other_data(folder: Path, options: ReadOptions, source: str | None, labels_from_folders: bool) -> Dataset:
    """The data set to evaluate a trained run on, fit for its model.

    Args:
        folder: of the run.
        options: of the run, resolved.
        source: a data set by name or path; None: the run's own. Where it holds the run's images, moved, it is read as
            the run read them.
        labels_from_folders: take the sub-folders of a folder as labels, whatever the training did.

    Raises:
        UserError: it is not there, or its images are not of the kind that the model takes.
    """
    record, own = read_record(folder), source is None or absolute(source) == absolute(options.data)
    if options.features is not None and source is not None and not own:
        return fit_for_model(options, read_features([source], views=options.are_augmented))
    if source is None or own:
        require_there(options.data, folder)
        data = run_data(replace(options, labels_from_folders=options.labels_from_folders or labels_from_folders))
    else:
        other = replace(options, data=source, download=False, labels_from_folders=labels_from_folders)
        if is_folder(other.data):
            other = replace(other, pixel_bits=bits_of_files(options).chosen)
        data = run_data(other)
        labelled = options.labels_from_folders and not labels_from_folders and is_folder(other.data)
        if labelled and record is not None and not _difference(record, options, data):
            data = run_data(replace(other, labels_from_folders=True))
    if own and record is not None and (changed := _difference(record, options, data)):
        warn(f"the images of {options.data} have changed since the training: {changed}")
    return fit_for_model(options, data)


def _difference(record: dict[str, Any], options: TrainedOptions, data: Dataset) -> str:
    if options.train_on == "train+test" and data.test is None:
        return "there is no test split, on which it was trained too"
    return difference(record, fingerprint_of(options, data))


def require_there(source: str, folder: Path) -> None:
    """The images of a run are where it found them.

    Raises:
        UserError: they are not, with how to say where they are.
    """
    if source not in NAMES and not os.path.exists(user_path(source)):
        raise UserError(f"the images of the run in {folder} are no longer at {source!r}; give --data, where they are")
