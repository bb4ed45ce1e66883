"""Makes the embedded data set: a balanced subset of Fashion-MNIST, as one small file in the package.

Reads the four files of Debian's package dataset-fashion-mnist (apt install dataset-fashion-mnist) and writes
the images, the licence and a note on their origin to aap_hw/data/. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aap_hw.errors import UserError
from aap_hw.files import sha256_of, write_atomic
from aap_hw.train.sources.fashion_mnist import read_idx

SEED = 2023
SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).resolve().parent.parent / "aap_hw" / "data"
SPLITS = {"train": ("train", 1000), "test": ("t10k", 200)}

LICENCE = """\
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.
"""

README = """\
# Embedded data

`fashion_mnist_12k.npz.xz`: 12,000 grey 28 x 28 images of ten kinds of clothing, a subset of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist, MIT, see `LICENSE.fashion-mnist`). 10,000 are from its
training file (1,000 a class), 2,000 from its test file (200 a class), drawn with seed {seed}, in class order.
It is a NumPy `.npz` of `train_images`, `train_labels`, `test_images`, `test_labels` (all uint8), packed with
xz; read it with `aap_hw.train.data.load_embedded()`.

Made by `scripts/make_embedded_data.py` from Debian's package `dataset-fashion-mnist`:

| file | sha256 |
|---|---|
{rows}
| the `.npz` that comes out, unpacked | {content} |

`resnet20_fashion_mnist.safetensors`: a CIFAR-style ResNet-20 trained on these images by
`scripts/train_embedded_resnet20.py`; settings, loss and accuracy by epoch are in
`resnet20_fashion_mnist.json`.
"""


def balanced(labels: npt.NDArray[np.uint8], per_class: int, seed: int) -> npt.NDArray[np.int64]:
    """Positions of `per_class` randomly drawn images of each class, in class and then file order."""
    random = np.random.default_rng(seed)
    drawn = [np.sort(random.permutation(np.flatnonzero(labels == c))[:per_class]) for c in range(10)]
    return np.concatenate(drawn)


def make(source: Path, out: Path) -> str:
    """Write the data set, its licence and its README to `out`; the sha256 of the unpacked content."""
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    rows = []
    for split, (prefix, per_class) in SPLITS.items():
        files = [source / f"{prefix}-images-idx3-ubyte.gz", source / f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = (read_idx(file) for file in files)
        chosen = balanced(labels, per_class, SEED)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
        rows += [f"| `{file.name}` | {sha256_of(file)} |" for file in files]
    unpacked = io.BytesIO()
    np.savez(unpacked, allow_pickle=False, **arrays)
    content = unpacked.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    # xz over the plain arrays: 3.7 MB for the training images, against 3.9 as one PNG and 4.3 deflated.
    write_atomic(out / "fashion_mnist_12k.npz.xz", lzma.compress(content, preset=6))
    write_atomic(out / "LICENSE.fashion-mnist", LICENCE)
    write_atomic(out / "README.md", README.format(seed=SEED, rows="\n".join(rows), content=digest))
    return digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=SOURCE, help="folder of the four .gz files (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        digest = make(arguments.source, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}/fashion_mnist_12k.npz.xz; sha256 of its content: {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
