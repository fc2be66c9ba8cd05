"""``imc <command>`` is ``python -m imc.<command>``: this module finds the command and reports its errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from imc import __version__
from imc.errors import Error, RunError, UserError, out_of_memory

COMMANDS = {
    "train": "cluster a data set: writes the clusters, their scores, figures and the model",
    "evaluate": "score runs: accuracy of clusters and encoder, per class, with figures; mean over several",
    "predict": "the cluster of every image in a folder, as a CSV; embeddings; images sorted by cluster",
    "report": "one HTML page of a run: curves, clusters, confusion, embeddings, configuration",
    "export": "a run's model as torch.export's .pt2 and as ONNX, each compared with the model",
    "seeds": "train with several seeds: mean and standard deviation of every score",
    "clusters-sweep": "train with several numbers of clusters, where the number is not known",
}
HELP_FLAGS = ("-h", "--help")
INTERRUPTED = 130  # 128 + SIGINT, what shells use


def usage() -> str:
    """The text of ``imc --help``."""
    commands = "\n".join(f"  {name:15} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: imc <command> [options]\n\n"
        "Cluster images without labels by mutual information across views.\n\n"
        f"commands:\n{commands}\n\n"
        "imc <command> --help lists a command's options; imc --version prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: command and options; default: those of the process.

    Returns:
        The exit code: 0; 1 for a run that failed; 2 for a user's mistake; 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = f"imc {arguments[0]}" if arguments and arguments[0] in COMMANDS else "imc"
    try:
        _run(arguments)
    except Error as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        sentence = out_of_memory(error)
        if sentence is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt as interrupt:
        print(f"{program}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments:
        raise UserError(f"no command given; accepted are {', '.join(COMMANDS)} (see imc --help)")
    command, *rest = arguments
    if command in HELP_FLAGS:
        print(usage())
    elif command == "--version":
        print(f"imc {__version__}")
    elif command in COMMANDS:
        importlib.import_module(f"imc.{command.replace('-', '_')}").main(rest)
    else:
        raise UserError(f"unknown command {command!r}; accepted are {', '.join(COMMANDS)} (see imc --help)")
