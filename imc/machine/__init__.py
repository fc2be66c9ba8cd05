"""The machine and the process: its memory, threads and instructions, what torch is set to, what launched it."""
