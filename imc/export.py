"""Export a trained run to run without this package: torch.export's .pt2, and ONNX.

    imc export runs/birds                        # writes runs/birds/model.pt2 and runs/birds/model.onnx
    imc export runs/birds --format torch         # the first alone, which needs nothing beside PyTorch
    imc export runs/birds --out deploy           # into another folder
    imc export runs/birds --check new-photos     # compare with the model on these images

Input: ``images``, uint8 [B, S, S, C] for any B, decoded as imc predict does (S and C are printed); scaling and
normalisation are inside. Of a run on features ``images`` are rows of them, float32 [B, D]. Outputs: ``logits`` and
``probabilities``, float32 [B, clusters], and ``cluster``, int64 [B].
What is written is read again and compared with the model before it gets its name.

    program = torch.export.load("model.pt2").module()
    logits, probabilities, cluster = program(images)

    session = onnxruntime.InferenceSession("model.onnx")
    logits, probabilities, cluster = session.run(None, {"images": images})

Both describe themselves as JSON, under ``imc.json`` (torch.export's ``extra_files``) and ``imc`` (ONNX's metadata),
with the names of the clusters as ``classes`` where ``imc label`` gave some. A .pt2 runs on the CPU;
``torch.export.passes.move_to_device_pass(program, "cuda")`` moves it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import Stages, show
from imc.config import Config
from imc.data import NAMES, views
from imc.data.options import SampleOptions
from imc.data.resize import resized
from imc.errors import RunError, UserError
from imc.features.options import ReadOptions
from imc.files.paths import user_path
from imc.machine.torch_state import turn
from imc.runs.data import other_data
from imc.runs.model import LoadedRun, load_run
from imc.runs.names import Names, given_names
from imc.scores.evaluation import evenly_spaced
from imc.text import counted, visible
from imc_kernels.version import __version__

FORMATS = ("torch", "onnx", "both")
FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = ("logits", "probabilities", "cluster")
CHECKED = 64  # images
Program = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Options:
    """The options of ``imc export``."""

    run: str = argument("RUN", "folder of a trained run")
    out: str | None = option(None, "export", "folder for the files; default: RUN", path=True)
    format: str = option("both", "export", "what to write", choices=FORMATS)
    check: str | None = option(
        None,
        "export",
        "data set, or folder, to compare on; default: the run's where it is there, else drawn patterns",
        suggested=NAMES,
        path=True,
    )
    overwrite: bool = option(False, "export", "replace the files if they exist")


def main(argv: Sequence[str]) -> None:
    """The command: a run in, files out."""
    show(report(export(arguments.parse(Options, argv, program="imc export", description=__doc__ or ""))))


@turn()
def export(options: Options, encoder: nn.Module | None = None) -> dict[str, Any]:
    """Write a run's model as .pt2, ONNX or both, each compared with the model.

    Args:
        options: those of the command.
        encoder: the module given to :func:`imc.train.train`, for a run with one.

    Returns:
        ``files``: for each path the largest ``difference`` of a logit; ``images``: how many were compared; ``checked``:
        which; ``shape`` and ``dtype``: those of an image, or of a row of features.

    Raises:
        UserError: there is no trained run, a file is there already, or a package is missing.
        RunError: what was written gives an image another cluster than the model, or cannot be written.
    """
    check(options)
    formats = tuple(FILES) if options.format == "both" else (options.format,)
    if "onnx" in formats:
        _require_onnx()
    run = load_run(user_path(options.run), "cpu", encoder)
    out = user_path(options.run if options.out is None else options.out)
    for path in (out / FILES[name] for name in formats):
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UserError(f"{path} exists already; give another --out, or pass --overwrite to replace a file")
    description = _description(run.config, given_names(user_path(options.run), run.config.clusters))
    images, checked = _test_batch(user_path(options.run), run.config, options.check)
    model = ExportedModel(run).eval()
    with torch.no_grad():
        expected = model(images)
    files = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        parts = ("trace", *(f"write {FILES[name]} and compare it" for name in formats))
        with tempfile.TemporaryDirectory(dir=out) as temporary, _quiet(), Stages("export", parts) as stages:
            program = traced(model)
            for name in formats:
                stages.next()
                path = Path(temporary) / FILES[name]
                _WRITERS[name](path, program, description)
                files[str(out / FILES[name])] = _difference(name, _READERS[name](path), images, expected)
            for name in formats:
                os.replace(Path(temporary) / FILES[name], out / FILES[name])
    except OSError as error:
        raise RunError(f"cannot write {error.filename or out}: {error.strerror}") from None
    described = {"shape": _shape(run.config), "dtype": str(_dtype(run.config)).removeprefix("torch.")}
    return {"files": files, "images": len(images), "checked": checked, **described}


def report(result: dict[str, Any]) -> str:
    """What was exported, as text."""
    lines = [f"images: {result['dtype']} [B, {', '.join(map(str, result['shape']))}]"]
    count = result["images"]
    lines += [
        f"{visible(path)}: the same cluster as the model for {count} of {counted(count, 'image{s}')} of "
        f"{visible(result['checked'])}, logits within {difference:.1g}"
        for path, difference in result["files"].items()
    ]
    return "\n".join(lines)


class ExportedModel(nn.Module):
    """What is exported: uint8 images [B, H, W, C] to logits and probabilities [B, clusters], and clusters [B].

    Args:
        run: its model is in evaluation mode, in which batch normalisation is the plain one.
    """

    def __init__(self, run: LoadedRun) -> None:
        super().__init__()
        self.model = run.model
        self.config = run.config

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three outputs."""
        logits = self.model.predict(views.prepare(images, self.config))
        return logits, logits.softmax(dim=1), logits.argmax(dim=1)


def traced(model: ExportedModel) -> torch.export.ExportedProgram:
    """The model as a graph for any batch size."""
    # An example of one image would make the batch a constant.
    example = torch.zeros(2, *_shape(model.config), dtype=_dtype(model.config))
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _shape(options: SampleOptions) -> tuple[int, ...]:
    """That of a sample that the program takes."""
    return (options.side, options.side, options.channels) if options.columns is None else (sum(options.columns),)


def _dtype(options: SampleOptions) -> torch.dtype:
    return torch.uint8 if options.columns is None else torch.float32


def _require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}, not installed here; pip install {' '.join(missing)}, "
            "or give --format torch"
        )


def _test_batch(folder: Path, options: ReadOptions, source: str | None) -> tuple[Tensor, str]:
    """Images uint8 [B, side, side, C] to compare on, evenly spaced over a data set, and what they are of."""
    try:
        data = other_data(folder, replace(options, download=False), source, labels_from_folders=False)
    except UserError:
        if source is not None:
            raise
        return _patterns(options), "drawn patterns, as its data set is not here"
    images = data.train.images
    chosen = images[evenly_spaced(len(images), CHECKED)]
    if data.train.are_features:
        return chosen.float(), data.name
    side = options.side
    return (chosen if chosen.shape[1:3] == (side, side) else resized(chosen, side)), data.name


def _patterns(options: SampleOptions) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if options.columns is not None:
        return torch.randn(CHECKED, *_shape(options), generator=generator, dtype=torch.float32)
    coarse = torch.rand(CHECKED, options.channels, 4, 4, generator=generator, dtype=torch.float32)
    fine = functional.interpolate(coarse, (options.side, options.side), mode="bilinear")
    return (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _difference(name: str, program: Program, images: Tensor, expected: tuple[Tensor, ...]) -> float:
    """The largest difference of a logit, from the batch and from its first image alone."""
    difference = 0.0
    for count in (len(images), 1):
        logits, _, clusters = program(images[:count])
        difference = max(difference, float((logits - expected[0][:count]).abs().max()))
        wrong = int((clusters != expected[2][:count]).sum())
        if wrong:
            raise RunError(
                f"the {name} form gives {wrong} of {counted(count, 'image{s}')} another cluster than the model "
                f"(logits differ by up to {difference:.1g}), so it was not written"
            )
    return difference


def _write_torch(path: Path, program: torch.export.ExportedProgram, description: str) -> None:
    with path.open("wb") as file:  # a path that torch opened itself would have to be UTF-8
        torch.export.save(program, file, extra_files={"imc.json": description})


def _read_torch(path: Path) -> Program:
    with path.open("rb") as file:
        module: Program = torch.export.load(file).module()
    return torch.no_grad()(module)


def _write_onnx(path: Path, program: torch.export.ExportedProgram, description: str) -> None:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: "batch"},),
    )
    assert exported is not None
    exported.model.metadata_props["imc"] = description
    exported.save(str(path), external_data=False)  # type: ignore[arg-type]


def _read_onnx(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.asarray(x)) for x in session.run(OUTPUTS, {"images": images.numpy()}))

    return run


_WRITERS = {"torch": _write_torch, "onnx": _write_onnx}
_READERS = {"torch": _read_torch, "onnx": _read_onnx}


def _description(config: Config, names: Names | None) -> str:
    """What a file says about itself, as JSON; the names of the clusters, where they have some, None for no group."""
    shape = list(_shape(config))
    described = {name: getattr(config, name) for name in ("method", "data", "name", "encoder", "clusters")}
    classes = {} if names is None else {"classes": names.all}
    return json.dumps({"imc": __version__, **described, "image": shape, **classes})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about their own insides and about packages that are not needed here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


if __name__ == "__main__":
    sys.exit(cli.main(["export", *sys.argv[1:]]))
