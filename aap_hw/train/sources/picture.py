"""One picture file, of any depth, colours and rotation, as the bytes that a network is shown.

It is turned upright by its EXIF data, made opaque (transparent parts become white), brought to 8 bits a value, and to
grey or colour as the network takes it. Of an animation or a file of several pages, the first is used. Colour profiles
are ignored. Where the files lie is not covered.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from aap_hw.train.preparation import Preparation

# The formats that are tried, whatever the file is called, and the endings of files that are taken for pictures. No
# other ones: for some formats Pillow starts a program, and in JPEG 2000 it turns the white of deep colours black.
_NEEDS = {"WEBP": "webp", "AVIF": "avif"}
FORMATS = {
    name: endings
    for name, endings in {
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "PNG": (".png", ".apng"),
        "BMP": (".bmp", ".dib"),
        "GIF": (".gif",),
        "TIFF": (".tif", ".tiff"),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
        "WEBP": (".webp",),
        "AVIF": (".avif",),
    }.items()
    if name not in _NEEDS or features.check(_NEEDS[name])
}
SUFFIXES = frozenset(ending for endings in FORMATS.values() for ending in endings)
# What torchvision's recipes do: the shorter side becomes 256 where the network sees 224; a training crop covers 8 to
# 100 % of the area, with sides of 3:4 to 4:3.
SHORTER_SIDE = 256 / 224
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# Up to this size a network is shown the middle of a picture up to its edge.
SMALL_SIDE = 64
ORIENTATION = 0x0112  # in EXIF: how the stored pixels are to be turned
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF: bits a value, the meaning of 0, where colours lie, kind of number; and what they say.
BITS, MEANING, PLANES, KIND = 258, 262, 284, 339
WHITE_IS_ZERO, SEPARATE, SIGNED, FLOAT = 0, 2, 2, 3
# Pictures above so many pixels are decoded one at a time: each takes hundreds of megabytes meanwhile.
HUGE = 1 << 25
_one_at_a_time = threading.Lock()


class Unreadable(Exception):  # noqa: N818 - a circumstance of a file
    """A file cannot be used as a picture; the text is the reason, a clause that begins with "it" or "its"."""


def read_picture(
    file: Path,
    channels: int,
    size: tuple[int, int],
    crop: NDArray[np.float64] | None,
    how: Preparation | None = None,
) -> NDArray[np.uint8]:
    """A picture (height, width, channels) of this size: its middle, or the part chosen by four numbers from 0 to 1.

    With ``how`` its middle is what published weights were evaluated on, to the byte but for rounding.

    Raises
    ------
    Unreadable : it is no picture, damaged, or of a kind that is not read.
    """
    try:
        with Image.open(file, formats=tuple(FORMATS)) as image:
            _check_tags(getattr(image, "tag_v2", {}))
            if how is None or crop is not None:
                # Lets JPEG decode at a half or a quarter of its size where that is still large enough.
                least = round(max(size) * (SHORTER_SIDE if crop is None else 1.0))
                image.draft("RGB", (least, least))
            with _one_at_a_time if image.width * image.height > HUGE else contextlib.nullcontext():
                # TIFF is upright from here on by itself, and does not say any more that it was turned.
                image.load()
                return _fitted(_plain(_upright(image), channels), size, crop, how)
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Unreadable("it has more than 178 million pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("it is no picture of a kind that is read" if file.stat().st_size else "it is empty") from None
    except OSError as problem:
        raise Unreadable((problem.strerror or "it is damaged or cut short").lower()) from None
    except Exception:
        # Decoders may raise anything when they meet damaged data.
        raise Unreadable("it is damaged or cut short") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        # Damaged EXIF data in a sound picture; anything may be raised here, too.
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """In 8 bits, opaque, grey (ITU-R 601 luma) or in colour."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_whole(image) if image.mode.startswith("I") else _floats(image))
    elif image.mode == "LAB":
        raise Unreadable("its colours are CIELAB; save it in RGB")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _check_tags(tags: Mapping[int, Any]) -> None:
    """Refuse TIFF of kinds that Pillow reads, but not as what they mean."""
    bits, kind = _bits(tags), tags.get(KIND, (0,))[0]
    if kind == SIGNED or (bits > 16 and kind != FLOAT):
        signed = "signed " if kind == SIGNED else ""
        raise Unreadable(f"its pixels are {signed}whole numbers of {bits} bits; save it with 8 or 16 bits, unsigned")
    if tags.get(PLANES) == SEPARATE and bits > 8:
        raise Unreadable(f"its colours lie in separate planes of {bits} bits; save it with each pixel's together")


def _bits(tags: Mapping[int, Any]) -> int:
    """Bits a value; of other formats than TIFF only those of 16 come as more than bytes."""
    return int(tags.get(BITS, (16,))[0])


def _whole(image: Image.Image) -> NDArray[np.uint8]:
    """Bytes of a grey picture of more than 8 bits; the whole range of 12 or 16 bits becomes 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    most = (1 << _bits(tags)) - 1
    values: NDArray[np.float32] = np.asarray(image, np.float32)
    if tags.get(MEANING) == WHITE_IS_ZERO:
        values = most - values
    result: NDArray[np.uint8] = np.rint(values * (255 / most)).astype(np.uint8)
    return result


def _floats(image: Image.Image) -> NDArray[np.uint8]:
    values: NDArray[np.float32] = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if not (least >= 0 and most <= 1):
        raise Unreadable(f"its pixels are floats from {least:.4g} to {most:.4g}; only those from 0 to 1 are read")
    return np.rint(values * 255).astype(np.uint8)


def _fitted(
    image: Image.Image, size: tuple[int, int], crop: NDArray[np.float64] | None, how: Preparation | None
) -> NDArray[np.uint8]:
    height, width = size
    filtered = Image.Resampling.BILINEAR if how is None else Image.Resampling[how.interpolation.upper()]
    if crop is not None:
        box = _random_crop(image.size, crop)
    else:
        scaled, left, top = _middle(image.size, size, how)
        if how is not None and scaled[0] * scaled[1] <= HUGE:
            # As torchvision and timm do it: Pillow rounds in between, and in another order if it scales only a part.
            image, box = image.resize(scaled, filtered), (left, top, left + width, top + height)
        else:
            across, down = image.width / scaled[0], image.height / scaled[1]
            right, bottom = min(image.width, (left + width) * across), min(image.height, (top + height) * down)
            box = (left * across, top * down, right, bottom)
    return np.asarray(image.resize((width, height), filtered, box=box)).reshape(height, width, -1)


def _middle(
    size: tuple[int, int], wanted: tuple[int, int], how: Preparation | None
) -> tuple[tuple[int, int], int, int]:
    """What an image is scaled to, its shorter side being a little longer than wanted, and where its middle begins."""
    width, height = size
    rows, columns = wanted
    down, across = (_scaled(side, wanted, how) for side in wanted)
    if how is not None and how.squash:
        scaled = across, down
    elif width * down <= height * across:
        scaled = across, across * height // width
    else:
        scaled = down * width // height, down
    return scaled, round((scaled[0] - columns) / 2), round((scaled[1] - rows) / 2)


def _scaled(side: int, wanted: tuple[int, int], how: Preparation | None) -> int:
    if how is not None:
        return how.scaled(side)
    return round(side * SHORTER_SIDE) if max(wanted) > SMALL_SIDE else side


def _random_crop(size: tuple[int, int], uniform: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """A part of random area and shape at a random place, from four numbers between 0 and 1."""
    width, height = size
    area, shape, x, y = uniform
    least, most = CROP_AREA
    ratio = np.exp(np.log(CROP_RATIO[0]) + shape * (np.log(CROP_RATIO[1]) - np.log(CROP_RATIO[0])))
    pixels = width * height * (least + area * (most - least))
    across, down = min(width, np.sqrt(pixels * ratio)), min(height, np.sqrt(pixels / ratio))
    left, top = x * (width - across), y * (height - down)
    return left, top, left + across, top + down
