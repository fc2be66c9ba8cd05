"""The values that a run would get, before its data are read: what ``imc train --help`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from imc.config import Config
from imc.config.filling import filled
from imc.config.resolve import outline_for_presets
from imc.data.outline import Outline, outline_of_source
from imc.runs.data import chosen, image_size, run_data
from imc.text import counted


def preview(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What a configuration with these fields would be filled with, and what that depends on, in words.

    A few images of a folder are looked at. Nothing is decoded, embedded, downloaded or written.

    Raises:
        UserError: a value that is not accepted, or data that are not there or cannot be read.
    """
    config = Config(**given)
    if config.resume:
        return {}, "A run that goes on keeps the values that it began with."
    config = chosen(config).validate()
    outline = _outline(config)
    config = filled(config, outline)
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    samples = counted(outline.count, "row{s}" if config.features is not None else "image{s}")
    size = "" if outline.columns is not None else f" of {outline.side} pixels"
    seen = f", seen by {config.encoder}" if config.encodes else ""
    data = f"{outline.name}, {samples}{size}{seen}"
    about = f'Values marked "here" are what this line would get: {config.method} on {data}.'
    return {name: value for name, value in values.items() if value not in (None, ())}, about


def _outline(config: Config) -> Outline:
    if config.features is not None:
        return outline_for_presets(run_data(config), with_test=False)
    found = outline_of_source(
        config.data,
        image_size=None if config.encodes else image_size(config),
        labels_from_folders=config.labels_from_folders,
        with_test=config.train_on == "train+test",
    )
    return replace(found, columns=()) if config.encodes else found
