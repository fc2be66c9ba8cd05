"""``python -m imc_kernels``: what is built here and for which processors, what is missing, and how to get it."""

import sys

import torch

from imc_kernels import __version__, backends, native


def main() -> None:
    """Print it."""
    print(f"imc_kernels {__version__}, torch {torch.__version__}")
    print(backends.describe())
    if (reason := native.missing("_cpu")) is None:
        cpu = native.module("_cpu")
        print(f"_cpu   built, instruction set {cpu.instruction_set()} of {', '.join(cpu.instruction_sets())}")
    else:
        print(f"_cpu   {reason}")
    if (reason := native.missing("_cuda")) is None:
        print(f"_cuda  built, architectures {native.module('_cuda').architectures()}")
    else:
        print(f"_cuda  {reason}")


try:
    main()
except native.VariableError as error:
    sys.exit(f"imc_kernels: {error}")
