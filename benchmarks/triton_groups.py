"""Compiles the Triton kernels of calls with a group, without a GPU.

python benchmarks/triton_groups.py sm_90          a line [kernel, bytes spilled by a thread] for each compilation
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
import triton_kernels
from triton_kernels import differentiated, tensor

import imc_kernels


def group_calls() -> list[triton_kernels.Call]:
    """The operations that take a group, in one of this process alone: the same kernels as in many."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    k, group = imc_kernels, dist.group.WORLD
    logits, scores = tensor(2, 256, 10, gradient=True), tensor(2, 256, 100, gradient=True)
    maps = tensor(512, 64, 4, 4, gradient=True), tensor(64, gradient=True), tensor(64, gradient=True)
    running = {"running_mean": torch.zeros(64), "running_var": torch.ones(64)}
    forms = (
        differentiated(k.per_view_batch_norm, *maps, views=2, relu=True, **running, group=group),
        differentiated(k.sinkhorn, tensor(2, 256, 1000, gradient=True), group=group),
        differentiated(k.mutual_information_loss, logits, scores, logit_limit=5.0, group=group),
        differentiated(k.log_dot_product_loss, tensor(10, 2, 512, 10, gradient=True), entropy_weight=2.0, group=group),
    )
    return [triton_kernels.Call("with a group", form, 0, counted=False) for form in forms]


def main(name: str) -> None:
    target = triton_kernels.Target(name)
    for _, launch in triton_kernels.variants(target, group_calls).values():
        print(json.dumps([launch.kernel.__name__, target.compile(launch)[2]]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
