"""``imc <command>`` is ``python -m imc.<command>``: this module finds the command and reports its errors."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from imc.command_line.completion import COMPLETION, completion_script
from imc.command_line.interrupts import INTERRUPTED, second_interrupt_ends
from imc.command_line.terminal import say, show
from imc.errors import Error, RunError, UserError, out_of_memory
from imc.text import shell_word

COMMANDS = {
    "train": "cluster a data set: writes the clusters, their scores, figures and the model",
    "embed": "what a pretrained encoder sees in every image, as an .npy file of features",
    "evaluate": "score runs: accuracy of clusters and encoder, per class, with figures; mean over several",
    "predict": "the cluster of every image in a folder, as a CSV; embeddings; images sorted by cluster",
    "report": "a page of a run to look at, search and name: clusters, doubtful images, a map, the training",
    "label": "names for a run's clusters: labels.csv, sorted folders, files for other programs",
    "export": "a run's model as torch.export's .pt2 and as ONNX, each compared with the model",
    "seeds": "train with several seeds: mean and standard deviation of every score",
    "clusters-sweep": "train with several numbers of clusters, where the number is not known",
}
HELP = ("-h", "--help", "help")
OWN = ("imc", "imc_kernels")
STANDARD = sys.stdlib_module_names | {"__main__"}
VERSION = ("-V", "--version", "version")
UNREAD = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1  # what shells use


def usage() -> str:
    """The text of ``imc --help``."""
    commands = "\n".join(f"  {name:15} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: imc <command> [options]\n\n"
        "Cluster images without labels by mutual information across views.\n\n"
        f"commands:\n{commands}\n\n"
        "imc <command> --help lists a command's options; imc --version prints the version; imc --print-completion\n"
        "bash, zsh or fish prints a script by which that shell completes all of these."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: command and options; default: those of the process.

    Returns:
        The exit code: 0; 1 for a run that failed; 2 for a user's mistake; 130 for Ctrl-C; 141 where the output is a
        pipe that nobody reads any more.
    """
    with second_interrupt_ends():
        return _exit_code(list(sys.argv[1:] if argv is None else argv))


def _exit_code(arguments: list[str]) -> int:
    """Run a command, and say in one line what ended it before its end."""
    program = f"imc {arguments[0]}" if arguments and arguments[0] in COMMANDS else "imc"
    try:
        _run(arguments)
    except Error as error:
        say(f"{program}: {' '.join(str(error).split())}")
        return error.exit_code
    except BrokenPipeError:
        return UNREAD
    except (MemoryError, RuntimeError, OSError) as error:
        sentence = out_of_memory(error) or _of_the_system(error)
        if sentence is None:
            raise
        say(f"{program}: {sentence}")
        return RunError.exit_code
    except KeyboardInterrupt as interrupt:
        say(f"{program}: {str(interrupt) or 'interrupted'}")
        return INTERRUPTED
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments:
        raise UserError(f"no command given; accepted are {', '.join(COMMANDS)} (see imc --help)")
    command, *rest = arguments
    if command in HELP and rest and rest[0] in COMMANDS:
        command, rest = rest[0], ["--help"]
    if command in HELP:
        show(usage())
    elif command in VERSION:
        from imc_kernels.version import __version__

        show(f"imc {__version__}")
    elif command.split("=")[0] == COMPLETION:
        show(_completion(command.partition("=")[2] or " ".join(rest)))
    elif command in COMMANDS:
        module = _module(command)
        from imc_kernels.native import VariableError  # here, since it imports torch

        try:
            module.main(rest)
        except VariableError as error:
            raise UserError(str(error)) from None
    else:
        raise UserError(f"unknown command {command!r}; {_meant(command)} (see imc --help)")


def _module(command: str) -> ModuleType:
    return imported(f"imc.{command.replace('-', '_')}")


def _completion(shell: str) -> str:
    """The script by which a shell completes the commands and their options."""
    modules = {name: _module(name) for name in COMMANDS}
    options = {name: getattr(module, "FLAGS", None) or module.Options for name, module in modules.items()}
    return completion_script(shell, "imc", {name: (COMMANDS[name], options[name]) for name in COMMANDS})


def imported(name: str) -> ModuleType:
    """A module of this package.

    Raises:
        UserError: a library that it uses cannot be imported, such as over a variable of the environment or a file of
            settings that it reads.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [package for package in (name.split(".")[0] for name in names) if package not in STANDARD]
        if packages[-1] in OWN:
            raise
        raise UserError(
            f"{packages[-1]} cannot be imported: {type(error).__name__}: {error}; a variable of the environment or a "
            "file of settings that it reads may be wrong"
        ) from None


def _meant(command: str) -> str:
    """What somebody who typed this for a command may have wanted."""
    close = difflib.get_close_matches(command.lower().replace("_", "-"), [*COMMANDS, "help", COMPLETION], n=1)
    if close:
        return f"did you mean imc {close[0]}?"
    if command.startswith("-"):
        return f"the command comes first, such as imc train {command}; commands are {', '.join(COMMANDS)}"
    if len(command) < 1000 and os.path.exists(command):
        return f"to cluster the images in it: imc train --data {shell_word(command)}"
    return f"accepted are {', '.join(COMMANDS)}"


def _of_the_system(error: Exception) -> str | None:
    """The sentence for what the system refused, such as a file; None for another error."""
    if not isinstance(error, OSError) or not error.strerror:
        return None
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
