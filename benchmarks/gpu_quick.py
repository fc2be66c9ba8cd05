"""What fifteen minutes of a GPU are for, in the order of its worth: build, report, epoch, tests, sanitizers.

    python benchmarks/gpu_quick.py                 # or make gpu-check-quick; about 8 minutes, docs/gpu.md has the sum
    python benchmarks/gpu_quick.py --estimate      # without a GPU
    python benchmarks/gpu_quick.py --budget 300    # what does not fit into so many seconds is left out, and says so

Everything is written under benchmarks/results/<gpu>/ while it happens, so that an end at any moment leaves what there
was: report.md and report.json case by case, cifar10_epoch.md form by form, and the output of every part, <part>.txt. A
part that fails or takes too long does not keep the next from running. The tests are those of tests/gpu without
torch.compile's compilers, and for the CUDA backend of tests/kernels/test_contract.py; the sanitizers see this package's
kernels only. --estimate compiles here what Triton would compile there, and says how long that takes one processor.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 480
SANITIZER = "compute-sanitizer"
NOT_COMPILED = "not compiles_into_one_graph and not two_to_the_31"


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        limit: seconds after which it is ended.
        environment: what it sees beside this process's environment.
        left_out: why it does not run here, or None.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None


def architecture() -> str:
    """The one that is there, as TORCH_CUDA_ARCH_LIST names it."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}" + ("a" if major >= 9 else "")


def sanitizers_refusal() -> str | None:
    """Why compute-sanitizer cannot run here, or None. Containers often forbid the debugger's interface."""
    if shutil.which(SANITIZER) is None:
        return f"{SANITIZER} is not installed"
    probe = [SANITIZER, "--error-exitcode", "9", sys.executable, "-c", "import torch; torch.ones(1, device='cuda') + 1"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return f"{SANITIZER} takes more than a minute to start"
    if done.returncode == 0:
        return None
    told = [line for line in done.stdout.splitlines() if line.startswith("=========")] or ["no reason given"]
    return f"{SANITIZER} does not work here: {' '.join(told[1:3] or told)}"


def parts(out: Path) -> list[Part]:
    """All, the most worth first; each writes under ``out``."""
    python, results = sys.executable, ["--out", str(out)]
    build = [python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "."]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    together = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    refusal = sanitizers_refusal()
    checked = [*pytest, "tests/gpu/test_agreement.py", "-k", "cuda and specification and not group", "-x"]
    return [
        Part("build", build, 240, {"IMC_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture()}),
        Part("report", [python, "benchmarks/gpu_report.py", "--no-compile", "--seconds", "0.3", *results], 180),
        Part(
            "epoch",
            [python, "benchmarks/cifar10_epoch.py", "--noise", "--only", "imc train", "--steps", "60", *results],
            60,
        ),
        Part("tests", [*pytest, *together, "tests/gpu", "-k", NOT_COMPILED], 180),
        Part("contract", [*pytest, *together, "tests/kernels/test_contract.py", "-k", "cuda"], 60),
        *(
            Part(
                tool,
                [SANITIZER, "--tool", tool, "--kernel-name", "kns=imc", "--error-exitcode", "9", *checked],
                90,
                left_out=refusal,
            )
            for tool in ("memcheck", "racecheck")
        ),
    ]


def run(part: Part, out: Path, seconds: float) -> str:
    """Run a part for at most so many seconds, its output into ``out``; how it ended."""
    if part.left_out is not None:
        return f"left out: {part.left_out}"
    if seconds < 1:
        return "left out: the budget is spent"
    start, limit = time.perf_counter(), min(part.limit, seconds)
    with (out / f"{part.name}.txt").open("w", encoding="utf-8") as file:
        print("$", *part.command, file=file, flush=True)
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**os.environ, **part.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            how = "done" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers and workers that it started
            process.wait()
            how = f"ended after {limit:.0f} s"
    return f"{how}, {time.perf_counter() - start:.0f} s"


def run_all(chosen: Sequence[Part], out: Path, budget: float) -> bool:
    """Run the parts one after the other and write quick.md as they end; whether none failed."""
    deadline, lines = time.monotonic() + budget, []
    for part in chosen:
        how = run(part, out, deadline - time.monotonic())
        lines.append(f"{part.name}: {how}")
        print(lines[-1], flush=True)
        (out / "quick.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return not any(" failed " in line or " ended " in line for line in lines)


def estimate() -> None:
    """Print how many kernels Triton compiles for sm_90 in the report and in tests/gpu, and the processor's seconds."""
    os.environ["TRITON_INTERPRET"] = "0"
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    sys.path.insert(0, str(ROOT / "tests"))
    from cases import cases
    from operations import OPERATIONS, Sizes
    from triton_kernels import Target, record

    from imc_kernels import backends

    target, known = Target("sm_90"), set()
    cpu = torch.device("cpu")

    def step(function: Callable[..., Any], inputs: Sequence[torch.Tensor], **options: Any) -> None:
        with backends.backend("triton", otherwise=lambda *_: None):
            result = function(*inputs, **options)
        if leaves := [x for x in inputs if x.requires_grad]:
            torch.autograd.grad(result, leaves, torch.full_like(result, 2))

    def calls(part: str) -> Iterator[Callable[[], None]]:
        if part == "report":
            yield from (partial(step, case.fused, case.inputs(0, cpu)) for case in cases())
        for operation in OPERATIONS if part == "tests" else ():
            inputs = operation.inputs(Sizes(4, 96, 200, 10, 64), torch.float32)
            needed = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
            yield partial(step, operation.function, needed, **operation.options)

    for part in ("report", "tests"):
        before = os.times()
        for call in calls(part):
            for launch in record(call):
                key = target.specialise(launch)[0]
                if key not in known:
                    known.add(key)
                    target.compile(launch)
        now = os.times()
        seconds = sum(now[:4]) - sum(before[:4])
        print(f"{part}: {len(known)} kernels so far, {seconds:.0f} s of one processor", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds of all parts (default: {BUDGET})")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/<gpu>)")
    parser.add_argument("--estimate", action="store_true", help="of the compilers' time, without a GPU")
    options = parser.parse_args()
    if options.estimate:
        estimate()
        return
    if not torch.cuda.is_available():
        sys.exit("this PyTorch sees no GPU; make test runs what the CPU can")
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = (options.out or ROOT / "benchmarks" / "results" / gpu).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not run_all(parts(out), out, options.budget):
        sys.exit(f"not everything ended well; {out} has the output of each part")


if __name__ == "__main__":
    main()
