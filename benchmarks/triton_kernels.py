"""What the Triton kernels compile to, and the bytes they move, without a GPU: the tables of docs/triton-kernels.md.

    python benchmarks/triton_kernels.py          compile and count, and write the page

The calls below go through the public functions, whose launches are recorded instead of run: so the signatures, the
constants and the alignment of the arguments are those of real calls. Registers, shared memory and spills are those of
the machine code for each target. Bytes are counted from the masks of the kernels' own loads and stores, in Triton's
interpreter; a byte loaded twice counts twice.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import imc_kernels
from imc_kernels import backends
from imc_kernels.ops.crop_parameters import Column

PAGE = Path(__file__).resolve().parents[1] / "docs" / "triton-kernels.md"
TARGETS: dict[str, tuple[str, Any, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
WITHOUT_TF32 = {"gfx90a": ("hip", "gfx90a", 64), "gfx950": ("hip", "gfx950", 64)}
SECONDS = 600  # for one target
COUNTED = {"batch": 64, "pairs": 128}  # a quarter of the papers': in the interpreter these take a minute
INTRODUCTION = """# The Triton kernels without a GPU

Written by `python benchmarks/triton_kernels.py` and compared by `tests/build/test_triton_kernels.py`, for sm_90 wholly
and for the other targets by the first row of each kernel. Nothing here was measured on a GPU. A call is forward and
backward where its inputs require a gradient (the product of a loss's gradient with `grad_output`, and casts, operations
of torch, not counted). The floor is each input read once and each output written once. The calls whose bytes are
counted have a quarter of the papers' batch; half precision is left out where it runs the loads and stores of float32.
`linear_swapped_prediction_loss` is not in these tables yet; `benchmarks/triton_groups.py` compiles what `group=` adds.
"""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a public function at the size of a paper, and the bytes that any form of it must move."""

    name: str
    run: Callable[[], Any]
    floor: int
    counted: bool = True  # its bytes; False where the interpreter would take too long


def differentiated(function: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Callable[[], None]:
    def run() -> None:
        result = function(*inputs, **options, backend="triton")
        if leaves := [x for x in inputs if x.requires_grad]:
            torch.autograd.grad(result, leaves, torch.full_like(result, 2))

    return run


def tensor(*shape: int, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(dtype).requires_grad_(gradient)


def calls(batch: int = 256, pairs: int = 512) -> list[Call]:
    """IMC-SwAV's CIFAR-10 (V6 B256 K1000 C10 D128), CRLC's (H10 B512 C10 D128), and forms that compile differently."""
    k = imc_kernels
    made = []

    def add(
        function: Callable[..., Tensor], *inputs: Tensor, label: str = "", counted: bool = True, **options: Any
    ) -> None:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        written = sum(x.nbytes for x in inputs if x.requires_grad)
        if function is k.sinkhorn:
            written += inputs[0].nbytes * (2 if inputs[0].requires_grad else 1)  # the result, and its gradient, read
        if function.__name__ == "per_view_batch_norm":  # the same
            written += 2 * inputs[0].nbytes
        if function is k.prototype_scores:  # the result, and its gradient, read
            written += 2 * inputs[0][..., 0].numel() * len(inputs[1]) * inputs[0].itemsize
        name = " ".join(filter(None, (function.__name__, shapes, dtype, label)))
        run = differentiated(function, *inputs, **options)
        made.append(Call(name, run, sum(x.nbytes for x in inputs) + written, counted))

    for dtype in (torch.float32, torch.bfloat16):
        scores = tensor(6, batch, 1000, dtype=dtype, gradient=True)
        constant, targets = scores.detach(), tensor(2, batch, 1000, dtype=dtype)
        logits = tensor(6, batch, 10, dtype=dtype, gradient=True)
        heads = tensor(10, 2, pairs, 10, dtype=dtype, gradient=True)
        single = dtype == torch.float32
        add(k.sinkhorn, constant[:2], counted=single)
        add(k.swapped_prediction_loss, scores, targets, counted=single)
        add(k.mutual_information_loss, logits, constant, logit_limit=5.0, counted=single)
        add(k.log_dot_product_loss, heads, entropy_weight=2.0, logit_limit=25.0, counted=single)
        prior = tensor(10, 10, dtype=dtype)
        add(k.self_distillation_loss, heads, heads.detach(), prior=prior, label="with a prior", counted=single)
    teachers = tensor(10, 2, pairs, 10)
    add(k.self_distillation_loss, heads.detach().float().requires_grad_(), teachers, entropy_weight=2.0)
    add(k.sinkhorn, tensor(2, batch, 1000, gradient=True), label="with its gradient")
    add(k.sinkhorn, tensor(2, max(1, batch // 2), 100), label="on chip")
    add(k.sinkhorn, tensor(1, 16, 5000), label="in pieces")
    add(k.mutual_information_loss, tensor(2, batch, 10, gradient=True), tensor(2, batch, 100, gradient=True))
    both = tensor(2, batch, 10, gradient=True), tensor(2, batch, 10, gradient=True)
    add(k.mutual_information_loss, *both, symmetric=True, temperature=1.0, label="symmetric")
    for dtype in (torch.float32, torch.bfloat16):
        embeddings = tensor(6, batch, 128, dtype=dtype, gradient=True)
        single = dtype == torch.float32
        add(k.prototype_scores, embeddings, tensor(1000, 128, dtype=dtype, gradient=True), counted=single)
        add(k.info_nce_loss, tensor(2, max(1, pairs // 4), 128, dtype=dtype, gradient=True), normalise=True)
        large = tensor(2, 32768, 128, dtype=dtype, gradient=True)
        add(k.info_nce_loss, large, label="of many rows", counted=False)
        add(k.info_nce_loss, large, normalise=True, label="of many rows, normalised", counted=False)
        maps = tensor(2 * batch, 64, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
        affine = tensor(64, gradient=True), tensor(64, gradient=True)
        leaves = (maps.detach().requires_grad_(), *affine, maps.detach().requires_grad_())
        add(k.per_view_batch_norm, *leaves[:3], views=2, label="without ReLU", counted=single)
        add(k.per_view_batch_norm, *leaves[:3], views=2, relu=True, label="with ReLU", counted=single)
        add(per_view_batch_norm, *leaves, views=2, relu=True, label="with a residual and ReLU", counted=single)
    for size, channels in ((28, 3), (76, 3), (16, 1)):
        # A large crop is 9 tiles, twice, of about a second each in the interpreter.
        made.append(crops(1 if size > 32 else max(1, batch // 64), size, channels))
    return made


def per_view_batch_norm(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, **options: Any) -> Tensor:
    return imc_kernels.per_view_batch_norm(input, weight, bias, residual=residual, **options)


def crops(batch: int, size: int, channels: int) -> Call:
    """Two views of images of 32 or 96 pixels, every stage on in all of them; those of 28 draw their parameters."""
    side = 32 if size < 32 else 96
    images, indices = torch.zeros(batch, side, side, channels, dtype=torch.uint8), torch.arange(batch)
    always: dict[str, Any] = {"jitter_probability": 1.0, "blur_probability": 1.0}
    draw = imc_kernels.CropDraw(0, 0, indices, views=2, height=side, width=side, **always)
    parameters = draw.parameters()
    options: dict[str, Any] = {"size": size, "mean": [0.5] * channels, "std": [0.2] * channels, "dtype": torch.bfloat16}
    boxes = parameters[..., Column.HEIGHT] * parameters[..., Column.WIDTH]
    return Call(
        f"multi_crop {list(images.shape)} to [2, {batch}, {channels}, {size}, {size}] bfloat16",
        lambda: imc_kernels.multi_crop(
            images, indices, draw if size == 28 else parameters, **options, backend="triton"
        ),
        int(boxes.sum()) * channels + 2 * (2 * batch * channels * size * size) + parameters.nbytes,
    )


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Lets the public functions hand CPU tensors to the Triton launchers, on any machine."""
    entry = backends.BACKENDS["triton"]
    table: Any = backends.BACKENDS
    table["triton"] = dataclasses.replace(entry, missing=lambda: None, emulated=lambda: True)
    try:
        yield
    finally:
        table["triton"] = entry


@dataclasses.dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: Any
    constants: Any


def record(call: Callable[[], Any], execute: bool = False, tf32: bool = True) -> list[Launch]:
    """The launches of a call, on a device with TF32 or without, which run only in the interpreter."""
    from imc_kernels.triton import launch

    launches: list[Launch] = []
    original, has_tf32 = launch.execute, launch.has_tf32

    def recorder(kernel: Any, grid: Any, arguments: Any, constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))
        if execute:
            original(kernel, grid, arguments, constants)

    launch.execute, launch.has_tf32 = recorder, lambda device: tf32  # type: ignore[assignment]
    try:
        with emulated():
            call()
    finally:
        launch.execute, launch.has_tf32 = original, has_tf32
    return launches


class Target:
    """Triton's compiler for a device that need not be there."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend

        self.target = GPUTarget(*(TARGETS | WITHOUT_TF32)[name])
        self.backend = make_backend(self.target)
        self.has_tf32 = name not in WITHOUT_TF32

    def specialise(self, launch: Launch) -> tuple[str, Any]:
        """What Triton would look the compiled kernel up by, and what it would compile."""
        from triton.runtime.jit import create_function_from_signature

        kernel = launch.kernel
        binder = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialisation, options = binder(*launch.arguments, **launch.constants)
        return f"{kernel.__name__} {specialisation} {options}", kernel._pack_args(
            self.backend, launch.constants, bound, specialisation, options
        )

    def compile(self, launch: Launch) -> tuple[int, int, int]:
        """Registers of a thread, bytes of shared memory, bytes spilled by a thread."""
        return (_usage_amd if self.target.backend == "hip" else _usage_nvidia)(self._make(launch))

    def machine_code(self, launch: Launch) -> bytes:
        """An NVIDIA target's cubin."""
        return bytes(self._make(launch).asm["cubin"])

    def _make(self, launch: Launch) -> Any:
        import triton
        from triton.compiler import ASTSource

        options, signature, constants, attributes = self.specialise(launch)[1]
        source = ASTSource(launch.kernel, signature, constants, attributes)
        return triton.compile(source, target=self.target, options=options.__dict__)


def _usage_nvidia(made: Any) -> tuple[int, int, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return registers, made.metadata.shared, stack + local


def _usage_amd(made: Any) -> tuple[int, int, int]:
    numbers = [
        re.search(rf"\.{name}: +(\d+)", made.asm["amdgcn"]) for name in ("vgpr_count", "private_segment_fixed_size")
    ]
    registers, private = (int(number[1]) for number in numbers)  # type: ignore[index]
    return registers, made.metadata.shared, private


def variants(target: Target, calls: Callable[[], list[Call]] = calls) -> dict[str, tuple[str, Launch]]:
    """Each different compilation: what Triton looks it up by -> the first call that needs it, and the launch."""
    found: dict[str, tuple[str, Launch]] = {}
    for call in calls():
        for launch in record(call.run, tf32=target.has_tf32):
            found.setdefault(target.specialise(launch)[0], (call.name, launch))
    return found


def first_of(kernel: str, call: str) -> tuple[str, str]:
    """What the first compilation is the first of: a kernel in an operation."""
    return kernel, call.split()[0]


def resources(name: str, first: bool) -> None:
    """Prints a line [kernel, call, warps, registers, shared, spilled, seconds] for each compilation for a target, or
    for the first of each kernel in an operation."""
    target, made = Target(name), set()
    for call, launch in variants(target).values():
        if first and first_of(launch.kernel.__name__, call) in made:
            continue
        made.add(first_of(launch.kernel.__name__, call))
        start = time.perf_counter()
        usage = target.compile(launch)
        warps = launch.constants.get("num_warps", 4)
        print(json.dumps([launch.kernel.__name__, call, warps, *usage, time.perf_counter() - start]), flush=True)


def without_tf32(name: str) -> None:
    """Prints the name of each kernel that multiplies, compiled for a target without TF32 where others would use it."""
    target = Target(name)
    torch.set_float32_matmul_precision("high")
    for dtype in (torch.float16, torch.float32):
        z, w = tensor(64, 128, dtype=dtype, gradient=True), tensor(96, 128, dtype=dtype, gradient=True)
        pairs = tensor(2, 64, 128, dtype=dtype, gradient=True)
        for function, inputs in ((imc_kernels.prototype_scores, (z, w)), (imc_kernels.info_nce_loss, (pairs,))):
            for launch in record(differentiated(function, *inputs), tf32=False):
                if "precision" in launch.constants:
                    target.compile(launch)
                    print(json.dumps(launch.kernel.__name__), flush=True)


def count_bytes() -> None:
    """Prints a line [call, launches, bytes, floor] for each call. In the interpreter."""
    from triton.runtime.interpreter import InterpreterBuilder

    moved: Counter[str] = Counter()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        result = load(self, pointers, mask, *rest, **options)
        moved["bytes"] += int(mask.data.sum()) * result.data.itemsize
        return result

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        moved["bytes"] += int(mask.data.sum()) * value.data.itemsize
        return store(self, pointers, value, mask, *rest, **options)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counted_load, counted_store
    for call in calls(**COUNTED):
        if not call.counted:
            continue
        moved.clear()
        launches = record(call.run, execute=True)
        print(json.dumps([call.name, len(launches), moved["bytes"], call.floor]), flush=True)


def specialisations() -> None:
    """Prints how many compilations one batch size needs, and 20 of them: {kernel: [one, all]}."""
    target = Target("sm_90")
    one: dict[str, set[str]] = {}
    every: dict[str, set[str]] = {}
    for position, batch in enumerate([256, *range(199, 256, 3)]):
        for call in calls(batch, batch):
            for launch in record(call.run):
                key = target.specialise(launch)[0]
                every.setdefault(launch.kernel.__name__, set()).add(key)
                if position == 0:
                    one.setdefault(launch.kernel.__name__, set()).add(key)
    print(json.dumps({name: [len(one.get(name, ())), len(keys)] for name, keys in every.items()}))


def worker(*arguments: str, interpreted: bool = False, script: str = __file__) -> list[Any]:
    """The JSON lines that a script prints in a process of its own: compiled and interpreted kernels do not mix."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpreted))}
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        so_far = (error.stdout or b"").decode()
        raise RuntimeError(f"{arguments} took more than {SECONDS} s; done before that:\n{so_far}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{arguments} failed:\n{error.stderr[-4000:]}") from error
    return [json.loads(line) for line in done.stdout.splitlines()]


def resource_rows() -> list[str]:
    """A row for each compilation: registers / shared memory / spills for each target."""
    with ThreadPoolExecutor(2) as pool:
        by_target = list(pool.map(lambda name: worker("--resources", name), TARGETS))
    rows = []
    for lines in zip(*by_target, strict=True):
        kernel, call, warps = lines[0][:3]
        cells = (" / ".join(map(str, line[3:6])) for line in lines)
        rows.append(f"| {kernel} | {call} | {warps} | {' | '.join(cells)} |")
    return rows


def byte_rows() -> list[str]:
    return [
        f"| {name} | {launches} | {moved:,} | {floor:,} | {moved / floor:.2f} |"
        for name, launches, moved, floor in worker("--bytes", interpreted=True)
    ]


def page() -> str:
    import triton

    with ThreadPoolExecutor(1) as pool:
        moved = pool.submit(byte_rows)
        compiled = resource_rows()
    head = f"| kernel | first call that needs it | warps | {' | '.join(TARGETS)} |\n|{'---|' * (3 + len(TARGETS))}"
    return "\n".join(
        [
            INTRODUCTION,
            "## Bytes moved by a call\n",
            "| call | launches | bytes | floor | ratio |\n|---|---|---|---|---|",
            *moved.result(),
            f"\n## Registers / bytes of shared memory / bytes spilled, Triton {triton.__version__}\n",
            head,
            *compiled,
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--without-tf32", choices=WITHOUT_TF32, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--specialisations", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.resources:
        resources(chosen.resources, chosen.first)
    elif chosen.without_tf32:
        without_tf32(chosen.without_tf32)
    elif chosen.bytes:
        count_bytes()
    elif chosen.specialisations:
        specialisations()
    else:
        PAGE.write_text(page(), encoding="utf-8")
