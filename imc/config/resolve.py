"""From what was asked for to what a run reads, where no field is None: one pass, in which the first that speaks wins.

    given       the flags or fields that somebody set; a default that is not None counts as given
    recorded    of a run that goes on, what it was started with (:mod:`imc.runs.resume`, before its images are read)
    preset      the numbers of the method, the size of the images and the data set (:mod:`imc.config.filling`)
    data        channels, side, classes, scale and statistics of the pixels
    machine     device, threads, precision, order in memory
    encoder     its number of features; of one's own, :func:`imc.train.train` adds it when that is built; of a
                pretrained one that is trained, the size and the statistics of its images too

What stays None belongs to another method, augmentation or encoder, or stands for nothing, as no ``--init``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from imc.config.config import Config
from imc.config.filling import filled, require_fit
from imc.data import Dataset, absolute
from imc.data.outline import Outline, outline_of
from imc.data.views import unit_scale
from imc.errors import UserError
from imc.features.scaling import fitting_scaling
from imc.machine.backend import choose_backend
from imc.machine.threads import set_threads
from imc.models.encoders import number_of_features
from imc.models.further import architecture, statistics_for
from imc.training.placement import choose_amp, require_thread_independent


def resolve(config: Config, data: Dataset, device: torch.device, *, own_encoder: bool = False) -> Config:
    """The configuration of a run on these images and this device.

    Args:
        config: what was given, or of a run that goes on what it recorded.
        data: the images.
        device: where it runs; torch's number of threads is set for it.
        own_encoder: whether a module takes the place of the encoder that the configuration names.

    Raises:
        UserError: a value that the data, the machine or another value do not allow, or none can be found.
    """
    if own_encoder and not data.train.are_features:
        config = replace(config, encoder="custom")
    config = _on_machine(_of_data(_of_preset(config, data), data), device)
    return replace(
        config,
        feature_dim=number_of_features(config),
        data=absolute(config.data),
        print_config=False,
        resume=False,
        overwrite=False,
    )


def _of_preset(config: Config, data: Dataset) -> Config:
    outline = outline_for_presets(data, with_test=config.train_on == "train+test")
    if config.are_augmented and (data.train.views is None or data.train.views.shape[1] < 2):
        raise UserError(
            f"--augmentation {config.augmentation} takes stored views [rows, views, columns], at least 2 of each row, "
            f"as imc embed --views writes them; {data.name} has one"
        )
    return require_fit(filled(config, outline), outline)


def outline_for_presets(data: Dataset, *, with_test: bool) -> Outline:
    """What the presets go by: see :func:`imc.data.outline.outline_of`, and of rows the scaling that fits them."""
    outline, rows = outline_of(data, with_test=with_test), data.train
    # Of several files, and beside images, rows are taken for what networks gave.
    if rows.are_features and rows.pictures is None and len(rows.columns) < 2:
        return replace(outline, scaling=fitting_scaling(rows.images))
    return outline


def _of_data(config: Config, data: Dataset) -> Config:
    bits = config.pixel_bits or data.train.pixel_bits
    if data.train.are_features:
        return replace(config, pixel_bits=bits)
    images = data.train.images
    channels = images.shape[3]
    mean, std = (data.mean, data.std) if config.normalize else ((0.0,) * channels, (1.0,) * channels)
    if config.train_encoder:
        mean, std = statistics_for(architecture(config.encoder), channels)
    scale = config.pixel_scale
    if scale is None:
        scale = unit_scale(images) if config.augmentation == "affine" else 1 / 255
    return replace(
        config,
        pixel_scale=scale,
        mean=mean if config.mean is None else config.mean,
        std=std if config.std is None else config.std,
        pixel_bits=bits,
    )


def _on_machine(config: Config, device: torch.device) -> Config:
    backend = choose_backend(config.backend, device)
    set_threads(config.threads)
    config = replace(
        config,
        amp=choose_amp(config, device),
        channels_last="off" if config.channels_last == "off" else "on",
        device=str(device) if config.device != "auto" else device.type,
        threads=torch.get_num_threads(),
    )
    if config.thread_independent:
        require_thread_independent(config, backend, device)
    return config
