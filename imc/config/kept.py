"""The run that keeps an encoder, as a part of the run that trains it further."""

from __future__ import annotations

from dataclasses import fields

from imc.config.config import Config
from imc.data.options import BankOptions, BatchOptions, LargeCropOptions
from imc.methods.options import CrlcOptions, ImcSwavOptions
from imc.models.options import AnyEncoderOptions

SAME = ("method", "seed", "neighbours", "mutual", "scaling", "bn_momentum", "device", "threads", "backend")


def kept_config(config: Config, out: str) -> Config:
    """The configuration of the run on what the encoder sees before it is trained further, with the same heads.

    Args:
        config: of the run that trains it further, resolved.
        out: folder of the other.
    """
    parts = (AnyEncoderOptions, BankOptions, BatchOptions, LargeCropOptions)  # of a method's parts no heads
    others = {entry.name for part in parts for entry in fields(part)}
    heads = {entry.name for part in (CrlcOptions, ImcSwavOptions) for entry in fields(part)} - others - {"queue"}
    same = {name: getattr(config, name) for name in (*SAME, *sorted(heads))}
    return Config(data=config.data, features=(config.data,), out=out, checkpoint_every=0, **same)
