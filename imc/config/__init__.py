"""The configuration of a run: its options, and the numbers of the methods and data sets."""

from imc.config.config import ENCODERS, METHODS, Config, RunOptions, StartOptions

__all__ = ["ENCODERS", "METHODS", "Config", "RunOptions", "StartOptions"]
