"""``python -m imc`` is ``imc``."""

import sys

from imc.cli import main

if __name__ == "__main__":
    sys.exit(main())
