"""The errors that reach a user as one sentence. :mod:`imc.cli` turns them into one line and an exit code."""

import re


class Error(Exception):
    """A failure that its message explains completely: no traceback is shown."""

    exit_code = 1


class UserError(Error):
    """A mistake in what was asked for; the message says what was wrong and what is accepted."""

    exit_code = 2


class StoppedError(Error):
    """The run was told to stop, and has left a checkpoint."""

    exit_code = 130  # 128 + SIGINT, what shells use


class RunError(Error):
    """What was asked for was valid, but the run failed, such as a loss that became NaN."""


def out_of_memory(error: Exception) -> str | None:
    """The sentence for an error by which Python, NumPy or torch says that memory was refused; None for another."""
    text = str(error)
    refused = ("out of memory", "allocate memory", "not enough memory")
    if not isinstance(error, MemoryError) and not any(words in text for words in refused):
        return None
    asked = re.search(r"allocate ([\d.,]+ ?\w+)", text)
    amount = f": it needs {asked[1]} more" if asked else ""
    return f"there is not enough memory{amount}; a smaller --batch-size or smaller images need less"
