"""A search by coverage for a file that a reader does not take as it should; needs atheris (pip install atheris).

    python tests/train/data/search_readers.py [reader ...] [--seconds 60]

Each reader is given this long, in a process of its own. The first file that breaks a promise of readers.attempt is
written to crash-<its hash>, and the search ends.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile

import atheris

LIMITS = ["-rss_limit_mb=4096", "-timeout=20", "-max_len=20000", "-print_final_stats=1"]


def search(name: str, seconds: int) -> None:
    """Does not return."""
    with atheris.instrument_imports(include=["imc.data", "imc.runs.files", "imc.config", "pickletools", "tarfile"]):
        import readers

        reader = readers.READERS[name]
    os.environ["IMC_CACHE"] = str(readers.ROOT / "decoded")
    valid = (reader.place() / reader.file).read_bytes()
    assert not readers.attempt(reader, valid)
    corpus = readers.ROOT / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(valid)
    # Where the valid file is longer than libFuzzer would make one, it may still be that long.
    limits = [*LIMITS, f"-max_len={max(20_000, len(valid))}", f"-max_total_time={seconds}"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], lambda content: readers.attempt(reader, content))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        search(given.readers[0], given.seconds)
    from readers import READERS

    for name in given.readers or READERS:
        command = [sys.executable, __file__, name, "--seconds", str(given.seconds), "--here"]
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TMPDIR": folder}
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        tried = re.findall(r"number_of_executed_units: *(\d+)", result.stderr)
        print(name, *tried, "ended with" if result.returncode else "", result.returncode or "", flush=True)
        if result.returncode:
            print(result.stdout, result.stderr, sep="\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
