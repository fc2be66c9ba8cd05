"""The errors that reach a user as one sentence. :mod:`imc.cli` turns them into one line and an exit code."""


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
