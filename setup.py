"""Builds the compiled modules imc_kernels._cpu and, where nvcc is found, imc_kernels._cuda, with ninja.

Environment:
    IMC_BUILD_CUDA         auto (default: build _cuda where nvcc is found, and go on without it if that fails), 0 or 1,
                           or simt: build it without nvcc, on an emulator of CUDA that runs on the CPU (csrc/simt)
    TORCH_CUDA_ARCH_LIST   such as "8.0;9.0a;10.0+PTX" (the default, less what this nvcc does not know)
    CUDA_HOME, CXX         where nvcc lies, the C++17 compiler
    MAX_JOBS               compilers at one time (default: ninja's choice)
    IMC_BUILD_CPU          1 (default), or 0: leave _cpu out
    IMC_SANITIZE           such as "address,undefined": instruments _cpu (make sanitize), and _cuda where it is emulated

Neither torch nor a GPU is needed: one build serves every version of torch.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
DEFAULT_ARCHITECTURES = "8.0;9.0a;10.0+PTX"

COMMON_FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden"]
# Not -ffast-math: NaN and infinity must survive.
CPU_FLAGS = [*COMMON_FLAGS, "-fPIC", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {
    "v3": AVX2,
    "v4": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
# What AMX adds, for the kernels that are made of matrix products (csrc/cpu/gemm_amx.h); the others are v4's.
AMX = [*INSTRUCTION_SETS["v4"], "-mamx-tile", "-mamx-bf16"]
AMX_KERNELS = ("info_nce_loss", "linear_swapped_prediction_loss", "mutual_information_loss", "prototype_scores")
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
SANITIZE = [f"-fsanitize={names}"] if (names := os.environ.get("IMC_SANITIZE")) else []
if SANITIZE:
    CPU_FLAGS += [*SANITIZE, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
# Without symbols a wheel for three GPU architectures has 4.9 MB instead of 5.0; a sanitizer's reports need them.
STRIP = ["-s"] if sys.platform == "linux" and not SANITIZE else []
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


def fail(sentence: str) -> NoReturn:
    """Stop the build with one sentence and no traceback."""
    sys.exit(f"imc-kernels: {sentence}")


def find_compiler() -> str:
    """The C++ compiler command."""
    command = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), "")
    if not command or not shutil.which(shlex.split(command)[0]):
        fail("no C++17 compiler was found; install g++ or clang++, or set CXX to one")
    return command


def accepts(compiler: str, flags: list[str]) -> bool:
    """Whether the compiler knows the flags, for the processors that it compiles for."""
    command = [*shlex.split(compiler), *flags, "-x", "c++", "-E", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [f"{home}/bin/nvcc" for home in homes[:2] if home] + ["nvcc", f"{homes[2]}/bin/nvcc"]
    return next((path for candidate in candidates if (path := shutil.which(candidate))), None)


def wanted_nvcc() -> str | None:
    """nvcc where _cuda is to be built, by IMC_BUILD_CUDA."""
    choice = os.environ.get("IMC_BUILD_CUDA", "auto")
    if choice not in ("auto", "0", "1", "simt"):
        fail(f"IMC_BUILD_CUDA must be auto, 0, 1 or simt, got {choice!r}")
    if choice == "simt" and not IS_X86:
        fail(f"IMC_BUILD_CUDA=simt runs on x86-64 processors only, this is {platform.machine()}")
    nvcc = find_nvcc() if choice in ("auto", "1") else None
    if choice == "1" and nvcc is None:
        fail("IMC_BUILD_CUDA=1, but nvcc was found neither in CUDA_HOME nor on the PATH; install the CUDA toolkit")
    return nvcc


def architecture_flags(nvcc: str) -> tuple[list[str], str]:
    """nvcc's -gencode flags, and the architectures' names."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    flags, names = [], []
    for entry in (listed or DEFAULT_ARCHITECTURES).replace(";", " ").split():
        number = entry.removesuffix("+PTX").replace(".", "")
        if not listed and f"sm_{number.rstrip('a')}" not in known:  # nvcc does not list the variants, as sm_90a
            continue
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if entry.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
        names.append(entry)
    return flags, " ".join(names)


class NinjaFile:
    """The rules and steps of one module's build."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.3"]
        self.objects: list[str] = []

    @staticmethod
    def escape(text: str) -> str:
        return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")

    def rule(self, name: str, command: str, depfile: bool = False) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile(self, rule: str, source: Path, flags: list[str], tag: str) -> None:
        target = f"{source.stem}.{tag}.o"
        self.lines += [f"build {target}: {rule} {self.escape(str(source))}", f"  flags = {shlex.join(flags)}"]
        self.objects.append(target)

    def link(self, rule: str, target: Path) -> None:
        self.lines.append(f"build {self.escape(str(target))}: {rule} {' '.join(self.objects)}")

    def run(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([find_ninja(), *jobs], cwd=folder, check=True)


def find_ninja() -> str:
    """The ninja executable, of the build requirement or of the system."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        return shutil.which("ninja") or fail("ninja was not found; pip install ninja")
    return os.path.join(BIN_DIR, "ninja")


def include_flags() -> list[str]:
    import pybind11

    folders = [CSRC / "include", CSRC, pybind11.get_include(), sysconfig.get_paths()["include"]]
    return [f"-I{folder}" for folder in folders]


def compile_module(build: NinjaFile, source: str, flags: list[str]) -> None:
    """What Python sees of a module, and how its arguments are read."""
    for path in (CSRC / source, *sorted((CSRC / "python").glob("*.cpp"))):
        build.compile("cxx", path, flags, "module")


def cpu_build(target: Path) -> NinjaFile:
    """imc_kernels._cpu: every kernel once per instruction set, and the module that chooses among them."""
    build, compiler = NinjaFile(), find_compiler()
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    build.rule("cxx", f"{compiler} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
    build.rule("link", f"{compiler} -shared {shlex.join([*OPENMP, *SANITIZE, *STRIP, *undefined])} $in -o $out")
    flags = [*CPU_FLAGS, *OPENMP, f"-I{CSRC / 'include'}"]
    has_amx = sys.platform == "linux" and accepts(compiler, AMX)
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        build.compile("cxx", source, [*flags, "-DIMC_ISA=baseline"], "baseline")
        for name, extra in INSTRUCTION_SETS.items() if IS_X86 else ():
            build.compile("cxx", source, [*flags, *extra, f"-DIMC_ISA={name}"], name)
        if has_amx and source.stem in AMX_KERNELS:
            build.compile("cxx", source, [*flags, *AMX, "-DIMC_ISA=amx"], "amx")
    defined = [f"-D{name}" for name, there in (("IMC_X86", IS_X86), ("IMC_AMX", has_amx)) if there]
    module_flags = [*CPU_FLAGS, *include_flags(), *defined]
    compile_module(build, "cpu_module.cpp", module_flags)
    build.link("link", target)
    return build


def cuda_build(target: Path, nvcc: str) -> NinjaFile:
    """imc_kernels._cuda, with the CUDA runtime linked in, so that it imports where no driver is."""
    build, compiler = NinjaFile(), find_compiler()
    architectures, names = architecture_flags(nvcc)
    build.rule("cxx", f"{compiler} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
    build.rule("nvcc", f"{shlex.quote(nvcc)} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
    link_flags = [*architectures, *(f"-Xlinker={flag}" for flag in STRIP)]
    build.rule("link", f"{shlex.quote(nvcc)} -shared -cudart static {shlex.join(link_flags)} $in -o $out")
    nvcc_flags = ["-O3", "-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        build.compile("nvcc", source, [*nvcc_flags, *architectures, f"-I{CSRC / 'include'}"], "cuda")
    module_flags = [*CPU_FLAGS, *include_flags(), f'-DIMC_CUDA_ARCHITECTURES="{names}"']
    compile_module(build, "cuda_module.cpp", [*module_flags, f"-I{Path(nvcc).parent.parent / 'include'}"])
    build.link("link", target)
    return build


def simt_flags() -> tuple[list[str], list[str]]:
    """What compiles kernels (*.cu) and the executor's own sources, where CUDA is emulated on the CPU."""
    flags = [*CPU_FLAGS, "-Wno-unknown-pragmas", f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-I{CSRC / 'simt' / 'include'}"]
    if any("address" in names for names in SANITIZE):
        return flags, flags
    # -fsanitize=thread here means that checks.cpp is told of every access; no library of a sanitizer is linked.
    return [*flags, "-O1", "-g", "-fsanitize=thread"], [*flags, "-DIMC_SIMT_CHECKS"]


def simt_build(target: Path) -> NinjaFile:
    """imc_kernels._cuda on the executor of csrc/simt, for tests."""
    build, compiler = NinjaFile(), find_compiler()
    kernel_flags, executor_flags = simt_flags()
    build.rule("cxx", f"{compiler} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
    build.rule("cu", f"{compiler} -MMD -MF $out.d $flags -c -x c++ $in -o $out", depfile=True)
    build.rule("link", f"{compiler} -shared {shlex.join(SANITIZE)} $in -ldl -o $out")
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        build.compile("cu", source, kernel_flags, "simt")
    for source in sorted((CSRC / "simt").glob("*.cpp")):
        build.compile("cxx", source, executor_flags, "simt")
    module_flags = [*CPU_FLAGS, *include_flags(), "-DIMC_SIMT", '-DIMC_CUDA_ARCHITECTURES="none, emulated"']
    compile_module(build, "cuda_module.cpp", module_flags)
    build.link("link", target)
    return build


class BuildNative(build_ext):
    """Builds each compiled module in a folder of its own."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if ext.name == CPU_MODULE:
            build = cpu_build(target)
        else:
            build = cuda_build(target, nvcc) if nvcc else simt_build(target)
        try:
            build.run(Path(self.build_temp).resolve() / ext.name)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"{ext.name} could not be built; the compiler's messages are above") from error


CPU_MODULE, CUDA_MODULE = "imc_kernels._cpu", "imc_kernels._cuda"
nvcc = wanted_nvcc()
modules = [] if os.environ.get("IMC_BUILD_CPU") == "0" else [Extension(CPU_MODULE, sources=[])]
if nvcc or os.environ.get("IMC_BUILD_CUDA") == "simt":
    # Optional: where nvcc was merely found, a failed CUDA build is a warning and the CPU module stands.
    found = os.environ.get("IMC_BUILD_CUDA", "auto") == "auto"
    modules.append(Extension(CUDA_MODULE, sources=[], optional=found))
setup(ext_modules=modules, cmdclass={"build_ext": BuildNative})
