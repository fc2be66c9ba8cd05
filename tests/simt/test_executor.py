"""The executor that runs CUDA kernels on the CPU does what CUDA does, and finds what is wrong with broken kernels."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "csrc" / "simt"
KERNELS = Path(__file__).parent / "kernels.cu"

GOOD = [
    "shuffles_and_votes",
    "static_shared",
    "dynamic_memory",
    "warps_pass_on",
    "grid_passes_on",
    "cluster_passes_on",
    "half_precision",
    "the_last_block_adds",
    "coarse_functions",
]
BROKEN = {
    "barrier_in_a_branch": "divergent barrier: thread 0 of block 0 waits at __syncthreads, thread 16",
    "shuffle_in_a_branch": "divergent barrier: thread 0 of block 0 waits at a shuffle or vote, thread 16",
    "barriers_of_two_kinds": "waits at __syncthreads, thread 64 of block 0 has come to grid.sync",
    "one_block_leaves_early": "waits at grid.sync, thread 0 of block 3 has come to its end",
    "part_of_a_warp": "names part of a warp in a mask",
    "grid_sync_of_independent_blocks": "grid.sync is not for this kind of launch",
    "a_grid_that_does_not_fit": "a cooperative grid of 1000 blocks",
    "too_much_shared_memory": "1048576 bytes of dynamic shared memory",
    "clusters_too_large": "clusters of 32 blocks",
}
BROKEN_ACCESSES = {
    "never_written": "thread 17 of block 0 reads shared memory that was never written",
    "read_without_a_barrier": "race: thread 1 of block 0 reads shared memory that thread 0 of block 0 wrote",
    "read_with_a_barrier_too_narrow": "race: thread 32 of block 0 reads shared memory that thread 0 of block 0 wrote",
    "written_twice": "race: thread 1 of block 0 writes shared memory that thread 0 of block 0 wrote",
    "overwritten_while_read": "race: thread 1 of block 0 writes shared memory that thread 0 of block 0 read",
    "blocks_race_in_global_memory": "race: thread 0 of block 1 writes global memory that thread 0 of block 0 wrote",
    "no_fence_before_the_count": "race: thread 0 of block 3 reads global memory that thread 0 of block 0 wrote",
    "no_fence_after_the_count": "race: thread 0 of block 3 reads global memory that thread 0 of block 0 wrote",
    "no_barrier_before_the_fence": "race: thread 1 of block 3 reads global memory that thread 1 of block 0 wrote",
    "written_after_the_fence": "race: thread 0 of block 3 reads global memory that thread 0 of block 0 wrote",
    "no_barrier_before_a_peer_is_read": "race: thread 0 of block 1 reads shared memory that thread 0 of block 0 wrote",
    "no_barrier_before_the_peer_ends": "thread 0 of block 1 uses shared memory of a block that has ended",
    "past_the_end_of_shared": "thread 127 of block 0 goes past the end of a shared variable",
}


def build(folder: Path, kernel_flags: list[str], executor_flags: list[str], link_flags: list[str]) -> Path:
    if platform.machine() != "x86_64" or not shutil.which("g++"):
        pytest.skip("the executor needs g++ on x86-64")
    common = ["g++", "-g", "-std=c++17", *(f"-I{ROOT / 'csrc' / path}" for path in ("", "include", "simt/include"))]
    objects = []
    for source in (KERNELS, *sorted(SIMT.glob("*.cpp"))):
        flags = ["-x", "c++", *kernel_flags] if source == KERNELS else executor_flags
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run([*common, *flags, "-c", str(source), "-o", objects[-1]], check=True)
    program = folder / "kernels"
    subprocess.run(["g++", *objects, *link_flags, "-ldl", "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checked"), ["-O1", "-fsanitize=thread"], ["-O1", "-DIMC_SIMT_CHECKS"], [])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build(tmp_path_factory.mktemp("sanitized"), flags, flags, flags)


def outcome(program: Path, kernel: str) -> str:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # a thread that failed is never resumed
    command = [str(program), kernel]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return run.stdout + run.stderr


@pytest.mark.parametrize("kernel", GOOD)
def test_a_right_kernel_computes_what_it_should(kernel: str, checked: Path, sanitized: Path) -> None:
    assert outcome(checked, kernel) == f"{kernel}: ok\n"
    assert outcome(sanitized, kernel) == f"{kernel}: ok\n"


@pytest.mark.parametrize("kernel", BROKEN)
def test_wrong_synchronisation_and_launches_are_found_in_either_build(
    kernel: str, checked: Path, sanitized: Path
) -> None:
    assert BROKEN[kernel] in outcome(checked, kernel)
    assert BROKEN[kernel] in outcome(sanitized, kernel)


@pytest.mark.parametrize("kernel", BROKEN_ACCESSES)
def test_races_and_reads_of_what_was_never_written_are_found(kernel: str, checked: Path) -> None:
    assert BROKEN_ACCESSES[kernel] in outcome(checked, kernel)


def test_addresssanitizer_sees_past_the_end_of_shared_memory(sanitized: Path) -> None:
    assert "heap-buffer-overflow" in outcome(sanitized, "past_the_end_of_shared")
