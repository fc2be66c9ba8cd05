"""The version of both packages, in a module of its own: the build reads it without importing torch."""

__version__ = "0.1.0"
