"""``python -m imc_kernels``: what is built here, and what is missing."""

from imc_kernels import __version__, backends, native

print(f"imc_kernels {__version__}")
print(backends.describe())
if native.missing("_cpu") is None:
    print(f"_cpu: instruction set {native.module('_cpu').instruction_set()}")
if native.missing("_cuda") is None:
    print(f"_cuda: architectures {native.module('_cuda').architectures()}")
