"""What figures take from matplotlib, imported whatever MPLBACKEND says: they open no window.

A notebook sets it to a module of its own installation, which that of a command need not have; matplotlib then cannot be
imported at all.
"""

import contextlib
import sys

from imc.command_line.environment import unset, variable

if "matplotlib" not in sys.modules:
    with unset("MPLBACKEND"):
        import matplotlib
    if backend := variable("MPLBACKEND"):
        with contextlib.suppress(ValueError):  # a valid one holds for the program that uses this package, as ever
            matplotlib.rcParams["backend"] = backend

from matplotlib import colormaps, rc_context, rcParamsDefault
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

__all__ = [
    "Figure",
    "FigureCanvasAgg",
    "MaxNLocator",
    "NullLocator",
    "PercentFormatter",
    "Text",
    "colormaps",
    "findfont",
    "fontManager",
    "get_font",
    "rcParamsDefault",
    "rc_context",
]
