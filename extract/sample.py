"""`python -m extract.sample DIR`: the demo's images, scikit-learn's 1,797 scanned digits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cache import console
from cache.console import print
from cache.errors import UserError, first_line

MARGIN = 2  # pixels of paper around each scan
ENLARGED = 8  # times


def write(directory: Path) -> int:
    """Writes the digits as PNG files, DIRECTORY/CLASS/NUMBER.png; returns how many. Those already there stay."""
    try:
        import numpy as np
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise UserError(f"the demo needs {missing.name}; pip install '.[demo]'") from None
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = directory / str(digit) / f"{number:04}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # The scans have 17 shades, with 0 for paper, and end at the ink. A network trained on photos knows things
            # that have a margin around them and are larger than 8 pixels.
            page = np.pad(255 - image * (255 / 16), MARGIN, constant_values=255)
            picture = Image.fromarray(page.round().astype("uint8"))
            large = picture.resize((len(page) * ENLARGED, len(page) * ENLARGED), Image.Resampling.BICUBIC)
            temporary = path.with_name(f".{path.name}")  # a killed run leaves no half picture under the name
            large.save(temporary)
            temporary.replace(path)
    return len(digits.target)


def main(arguments: list[str] | None = None) -> None:
    flags = console.Parser(prog="python -m extract.sample", description=__doc__)
    flags.add_argument("directory", type=console.path, default=argparse.SUPPRESS, help="where the images go")
    directory = Path(flags.parse_args(arguments).directory)
    try:
        count = write(directory)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {first_line(error)}; choose another folder") from None
    print(f"{count} images of handwritten digits in {directory}")


if __name__ == "__main__":
    sys.exit(console.run(main))
