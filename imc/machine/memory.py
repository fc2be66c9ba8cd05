"""How much memory the machine has: what surely does not fit is refused before it is allocated."""

from __future__ import annotations

import os


def machine_memory() -> int:
    """Bytes of the machine's memory; 16 GiB where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 34
