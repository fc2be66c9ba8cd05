"""What more updates are worth on some hundred images: the first digits of scikit-learn, as a set of one's own.

    python benchmarks/few_images.py                          # docs/usage.md's table, some 15 minutes on two cores
    python benchmarks/few_images.py --images 100 --seeds 0 1
    python benchmarks/few_images.py --image-size 32          # by the recipe for pictures, which flips the digits

Of every number of images the accuracy after the epochs that the recipe names, and after those that make the updates
that it asks for at least (:data:`imc.config.presets.LEAST_UPDATES`); each by ``imc seeds``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from imc.config import Config, presets
from imc.data import load
from imc.seeds import Options, seeds
from imc.train import plan


def main() -> None:
    """Print a row for each number of images as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 200, 500])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--method", choices=presets.METHODS, default="imc-swav")
    parser.add_argument("--image-size", type=int)
    options = parser.parse_args()
    digits = load("digits").train
    assert digits.labels is not None
    print("| digits | epochs | updates | ACC | NMI | epochs | updates | ACC | NMI |\n|" + "---|" * 9)
    for count in options.images:
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / f"{count}-digits.npz"
            np.savez(source, images=digits.images[:count].numpy(), labels=digits.labels[:count].numpy())
            config = Config(method=options.method, data=str(source), image_size=options.image_size)
            planned = plan(config)
            named = presets.numbers(options.method, source.stem, planned.side, count)["epochs"]
            cells = []
            for epochs in (named, planned.epochs):
                result = seeds(
                    Options(str(source), tuple(options.seeds), str(Path(place) / f"{epochs}"), skip_probes=True),
                    Config(method=options.method, image_size=options.image_size, epochs=epochs),
                )
                scores = result["scores"]["train"]
                made = epochs * (count // planned.batch_size)
                cells += [f"{epochs}", f"{made}"]
                cells += [f"{scores[x]['mean']:.3f} +- {scores[x]['deviation']:.3f}" for x in ("acc", "nmi")]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
