"""What programs that start the processes of one run, such as torchrun, say in the environment."""

from __future__ import annotations

from collections.abc import Callable

from imc.command_line.environment import number, variable
from imc.errors import UserError
from imc.text import inflected

# Launchers whose processes are of no run of this package unless torchrun's variables are there too: what tells how many
# of them there are. Slurm's is that of srun alone; a batch script has other variables.
OTHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}
LARGEST_PORT = 65535


def world_size() -> int:
    """The number of processes of the run: 1 but for those that torchrun, or one who speaks as it does, started.

    Raises:
        UserError: the variables do not say where the processes meet, or another launcher started several.
    """
    local_rank()  # wrong, it is to be said before anything begins
    world = number("WORLD_SIZE", 1, at_least=1)
    if world == 1:
        if number("RANK", 0):
            raise UserError(
                f"the environment variable RANK is {variable('RANK')}, and WORLD_SIZE says that there is one process; "
                "unset RANK, or start the processes with torchrun, which sets both"
            )
        if variable("WORLD_SIZE") is None:
            _refuse_other_launchers()
        return 1
    checks: dict[str, Callable[[str], object]] = {
        "RANK": lambda name: number(name, 0, at_most=world - 1),
        "MASTER_ADDR": variable,
        "MASTER_PORT": lambda name: number(name, 0, at_most=LARGEST_PORT),
    }
    missing = [name for name in checks if variable(name) is None]
    if missing:
        lacking = f"{', '.join(missing)} {inflected(len(missing), '{is|are}')} not set"
        raise UserError(
            f"the environment variable WORLD_SIZE is {world}, and {lacking}; unset WORLD_SIZE for one process, or "
            "start several with torchrun, which sets them all"
        )
    for name, check in checks.items():
        check(name)
    return world


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return number("LOCAL_RANK", 0)


def _refuse_other_launchers() -> None:
    for name, program in OTHERS.items():
        if (count := variable(name)) is not None and count.isascii() and count.isdigit() and int(count) > 1:
            raise UserError(
                f"{program} started {count} processes ({name}), and each would train the whole run; start one, or "
                "several with torchrun (or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as it does)"
            )
