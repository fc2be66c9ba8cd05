"""Every Triton kernel, compiled for every target by several versions of Triton, without a GPU: docs/triton-versions.md.

    python benchmarks/triton_versions.py              by the version that is installed
    python benchmarks/triton_versions.py t36 t39      by those in these folders too, and write the page; a folder is
                                                      made by pip install --no-deps --target t36 triton==3.6.0

The first compilation of each kernel, with --all every one: those of benchmarks/triton_kernels.py, whose signatures,
constants and alignments are of real calls. For AMD's GPUs without TF32 they are those for such a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from triton_groups import group_calls
from triton_kernels import TARGETS, WITHOUT_TF32, Target, variants

PAGE = Path(__file__).resolve().parents[1] / "docs" / "triton-versions.md"
EVERY = (*TARGETS, *WITHOUT_TF32)
INTRODUCTION = """# The Triton kernels under several versions of Triton

Written by `python benchmarks/triton_versions.py t36 t39`, folders of Triton 3.6.0 and 3.9.0. A cell says for how many
of the kernels the first compilation of [triton-kernels.md](triton-kernels.md), or of a call with a group, succeeds for
a target, and how many of them spill. `--all` makes every compilation. Nothing here ran on a GPU.
"""


def compile_for(name: str, first: bool) -> None:
    """Prints the version of Triton, and for each compilation, or for the first of each kernel, [kernel, call, bytes
    spilled or null, what failed]."""
    import triton

    print(json.dumps(triton.__version__), flush=True)
    target, made = Target(name), set()
    for call, launch in (variants(target, group_calls) | variants(target)).values():
        if first and launch.kernel in made:
            continue
        made.add(launch.kernel)
        spilled, wrong = None, ""
        try:
            spilled = target.compile(launch)[2]
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        print(json.dumps([launch.kernel.__name__, call, spilled, wrong]), flush=True)


def compiled(folder: str | None, name: str, first: bool) -> tuple[str, list[list[Any]]]:
    """The version in a folder, None for the installed one, and the rows of :func:`compile_for` by it."""
    paths = [*filter(None, [folder, os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, "--compile", name, *([] if first else ["--all"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder or 'the installed Triton'}, {name}: {done.stderr[-2000:]}")
    version, *rows = map(json.loads, done.stdout.splitlines())
    return version, rows


def table(folders: list[str | None], first: bool) -> tuple[str, bool]:
    """The table, and whether all compilations succeeded."""
    lines = [f"| Triton | {' | '.join(EVERY)} |", f"|{'---|' * (1 + len(EVERY))}"]
    remarks: list[str] = []
    good = True
    for folder in folders:
        cells, version = [], ""
        for name in EVERY:
            version, rows = compiled(folder, name, first)
            failed = [row for row in rows if row[2] is None]
            spilling = [row for row in rows if row[2]]
            good = good and not failed
            cells.append(f"{len(rows) - len(failed)} of {len(rows)}, {len(spilling)} spill")
            remarks += [f"- {version}, {name}: {row[0]} of `{row[1]}` does not compile: {row[3]}" for row in failed]
            remarks += [
                f"- {version}, {name}: {row[0]} of `{row[1]}` spills {row[2]} bytes a thread" for row in spilling
            ]
            print(f"{version} {name}: {cells[-1]}", file=sys.stderr, flush=True)
        lines.append(f"| {version} | {' | '.join(cells)} |")
    return "\n".join([*lines, *([""] if remarks else []), *remarks, ""]), good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders with other versions of Triton")
    parser.add_argument("--all", action="store_true", help="every compilation, not the first of each kernel")
    parser.add_argument("--compile", choices=EVERY, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.compile:
        compile_for(chosen.compile, not chosen.all)
    else:
        text, good = table([*chosen.folders[:1], None, *chosen.folders[1:]], not chosen.all)
        if chosen.folders:
            PAGE.write_text(f"{INTRODUCTION}\n{text}", encoding="utf-8")
        else:
            print(text)
        sys.exit(not good)
