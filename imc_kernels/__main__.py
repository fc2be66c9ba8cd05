"""``python -m imc_kernels``: what is built here and for which processors, what is missing, and how to get it."""

import torch

from imc_kernels import __version__, backends, native

print(f"imc_kernels {__version__}, torch {torch.__version__}")
print(backends.describe())
for name, built_for in (("_cpu", "instruction_set"), ("_cuda", "architectures")):
    reason = native.missing(name)
    if reason is None:
        print(f"{name:6} built, {built_for.replace('_', ' ')} {getattr(native.module(name), built_for)()}")
    else:
        print(f"{name:6} {reason}")
