"""A picture file shows a network what a person sees, whatever its format, depth, colours and turn, or says why not."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aap_hw.train.sources.picture import Unreadable, read_picture

# What Pillow says of damage; whoever reads a folder sees sentences of ours only.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Light at the top, dark at the bottom, a red stripe on the left: another picture after each turn. Blocks of 16 pixels,
# so that compression leaves them nearly as they are.
UPRIGHT = np.full((48, 32, 3), 30, np.uint8)
UPRIGHT[:16] = 220
UPRIGHT[:, :16] = (200, 40, 40)
# How pixels lie in a file whose EXIF data say so, by the names of the standard's rows and columns (TIFF 6.0, tag 274).
LYING = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def read(path, channels=3, size=(48, 32)):
    return read_picture(path, channels, size, None)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
def test_a_turned_picture_is_shown_upright(tmp_path, ending):
    for turn, pixels in LYING.items():
        file = tmp_path / f"{turn}.{ending}"
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, exif=exif, quality=95)
        assert np.abs(read(file).astype(int) - UPRIGHT).mean() < 6, turn


def test_a_large_turned_jpeg_is_turned_after_it_is_reduced(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.repeat(np.repeat(LYING[8], 20, 0), 20, 1)).save(tmp_path / "a.jpg", exif=exif)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - UPRIGHT).mean() < 6


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
def test_a_picture_with_damaged_exif_data_is_shown_as_it_lies(tmp_path, exif):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - UPRIGHT).mean() < 6


# In 8 bits 0 to 255, one after the other, and in 16 bits.
STEPS = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP = STEPS.astype(np.uint16) * 257


def tiff(values, **tags):
    """A TIFF file as its specification has it, of a kind that Pillow does not write."""
    entries = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 279: len(values), 339: 1}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items())]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4) + values


def twelve_bits(values):
    """Two numbers in three bytes."""
    one, other = values.reshape(-1, 2).astype(int).T
    return np.stack([one >> 4, (one & 15) << 4 | other >> 8, other & 255], 1).astype(np.uint8).tobytes()


def png(values, side=16):
    """A PNG file of colours in 16 bits, which Pillow does not write either."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


DEEP = {
    "a.png": lambda file: Image.fromarray(RAMP).save(file),
    "a.tif": lambda file: Image.fromarray(RAMP).save(file),
    "packed.tif": lambda file: Image.fromarray(RAMP).save(file, compression="tiff_lzw"),
    "big-endian.tiff": lambda file: Image.fromarray(RAMP.astype(">u2")).save(file),
    "a.pgm": lambda file: file.write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes()),
    "ten-bits.pgm": lambda file: file.write_bytes(b"P5 16 16 1020\n" + (STEPS * np.uint16(4)).astype(">u2").tobytes()),
    "white-is-zero.tif": lambda file: file.write_bytes(tiff((65535 - RAMP).tobytes(), t262=0)),
    "twelve-bits.tif": lambda file: file.write_bytes(tiff(twelve_bits(STEPS * (4095 / 255)), t258=12)),
    "floats.tif": lambda file: Image.fromarray((STEPS / 255).astype(np.float32)).save(file),
    "colours.png": lambda file: file.write_bytes(png(np.stack([RAMP] * 3, 2))),
    "colours.ppm": lambda file: file.write_bytes(b"P6 16 16 65535\n" + np.stack([RAMP] * 3, 2).astype(">u2").tobytes()),
}


@pytest.mark.parametrize("name", DEEP)
def test_the_whole_range_of_a_deep_picture_becomes_0_to_255(tmp_path, name):
    DEEP[name](tmp_path / name)
    for channels in (1, 3):
        pixels = read(tmp_path / name, channels, (16, 16))
        assert pixels.shape == (16, 16, channels)
        np.testing.assert_allclose(pixels, STEPS[..., None].repeat(channels, 2), atol=1)


RED = (200, 40, 40)


def of_mode(mode, palette=None):
    image = Image.new("RGB", (16, 16), RED)
    return image.convert(mode) if palette is None else image.convert(mode, palette=palette)


MODES = {
    "palette.png": lambda: of_mode("P", Image.Palette.ADAPTIVE),
    "palette.gif": lambda: of_mode("P", Image.Palette.ADAPTIVE),
    "inks.jpg": lambda: of_mode("CMYK"),
    "inks.tif": lambda: of_mode("CMYK"),
    "luma.tif": lambda: of_mode("YCbCr"),
    "a.bmp": lambda: of_mode("RGB"),
    "a.ppm": lambda: of_mode("RGB"),
    "opaque.png": lambda: of_mode("RGBA"),
}


@pytest.mark.parametrize("name", MODES)
def test_colours_are_the_same_however_they_are_kept(tmp_path, name):
    MODES[name]().save(tmp_path / name)
    np.testing.assert_allclose(read(tmp_path / name, 3, (16, 16)), np.broadcast_to(RED, (16, 16, 3)), atol=4)
    luma = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]
    np.testing.assert_allclose(read(tmp_path / name, 1, (16, 16)), luma, atol=4)


@pytest.mark.parametrize("name", ["one-bit.png", "one-bit.tif", "a.pbm", "grey.png", "grey.jpg", "alpha.png"])
def test_grey_pictures_are_shown_in_colour_too(tmp_path, name):
    half = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), [8, 8], 0).repeat(16, 1))
    half.convert({"o": "1", "a": "1", "g": "L"}[name[0]] if name != "alpha.png" else "LA").save(tmp_path / name)
    for channels in (1, 3):
        pixels = read(tmp_path / name, channels, (16, 16))
        assert pixels[:8].max() < 4
        assert pixels[8:].min() > 251


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "palette.png", "palette.gif", "grey.png", "marked.png"])
def test_what_is_transparent_is_white(tmp_path, name):
    """The colour under it is often black, and nobody has ever seen it."""
    seen = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    seen.paste((*RED, 255), (0, 0, 16, 8))
    how = {"lossless": True} if name.endswith("webp") else {}
    if name == "palette.png":
        seen = seen.quantize(4)
    if name == "grey.png":
        seen = seen.convert("LA")
    if name == "marked.png":
        seen, how = seen.convert("RGB"), {"transparency": (0, 0, 0)}
    seen.save(tmp_path / name, **how)
    pixels = read(tmp_path / name, 3, (16, 16))
    assert pixels[8:].min() == 255
    expected = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2] if name == "grey.png" else RED
    np.testing.assert_allclose(pixels[:8], np.broadcast_to(expected, (8, 16, 3)), atol=4)


def test_what_shines_through_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 100, 200, 51)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read(tmp_path / "a.png", 3, (8, 8))[0, 0], (204, 224, 244), atol=1)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif", "avif"])
def test_of_several_frames_the_first_is_shown(tmp_path, ending):
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
    np.testing.assert_allclose(read(tmp_path / f"a.{ending}", 3, (16, 16))[8, 8], RED, atol=4)


def test_the_content_and_not_the_ending_tells_the_format(tmp_path):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.JPG", "PNG")
    assert tuple(read(tmp_path / "a.JPG")[0, 0]) == RED


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (1, 1), (3, 2)])
@pytest.mark.parametrize(
    "crop", [None, np.full(4, 0.5), np.zeros(4), np.ones(4)], ids=["middle", "half", "least", "most"]
)
def test_any_shape_of_picture_is_brought_to_the_networks_size(tmp_path, size, crop):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    for wanted in ((8, 8), (96, 64)):
        pixels = read_picture(tmp_path / "a.png", 3, wanted, crop)
        assert pixels.shape == (*wanted, 3)
        assert (pixels == RED).all()


def cut(data):
    return data[: len(data) * 2 // 3]


def saved(array, ending):
    file = io.BytesIO()
    Image.fromarray(array).save(file, ending)
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
UNREADABLE = {
    "nothing.png": (b"", "it is empty"),
    "page.jpg": (b"<html><body>404</body></html>", "it is no picture of a kind that is read"),
    # Pillow would start Ghostscript for it.
    "postscript.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "it is no picture of a kind",
    ),
    "cut.jpg": (cut(saved(NOISE, "JPEG")), "it is damaged or cut short"),
    "cut.png": (cut(saved(NOISE, "PNG")), "it is damaged or cut short"),
    "cut.tif": (cut(saved(NOISE, "TIFF")), "it is damaged or cut short"),
    "cut.webp": (cut(saved(NOISE, "WEBP")), "it is damaged or cut short"),
    "cut.bmp": (cut(saved(NOISE, "BMP")), "it is damaged or cut short"),
    "no-end.gif": (saved(NOISE, "GIF")[:900], "it is damaged or cut short"),
    "long.tif": (saved(np.full((8, 8), 70000, np.int32), "TIFF"), "its pixels are signed whole numbers of 32 bits"),
    "short.tif": (tiff(RAMP.tobytes(), t339=2), "its pixels are signed whole numbers of 16 bits"),
    "bytes.tif": (tiff(STEPS.tobytes(), t258=8, t339=2), "its pixels are signed whole numbers of 8 bits"),
    "planes.tif": (tiff(RAMP.tobytes(), t284=2), "its colours lie in separate planes of 16 bits"),
    "deep.jpg": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "it is no picture of a kind that is read"),
    "dark.tif": (saved(np.full((8, 8), 255.0, np.float32), "TIFF"), "its pixels are floats from 255 to 255; only"),
    "below.tif": (saved(np.full((8, 8), -0.5, np.float32), "TIFF"), "its pixels are floats from -0.5"),
    "no-number.tif": (saved(np.full((8, 8), np.nan, np.float32), "TIFF"), "its pixels are floats from nan"),
    "bomb.png": (png(np.zeros((16, 16, 3)), side=1 << 15), "it has more than 178 million pixels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_use_says_why(tmp_path, name):
    content, reason = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as problem:
        read(tmp_path / name)
    assert str(problem.value).startswith(reason)


def test_a_link_to_nothing_says_so(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    with pytest.raises(Unreadable, match="no such file"):
        read(tmp_path / "a.png")


@given(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"]), st.data())
def test_a_damaged_file_is_shown_or_refused_and_nothing_else(tmp_path_factory, ending, data):
    file = tmp_path_factory.mktemp("damaged") / "a"
    content = bytearray(saved(NOISE[:16, :16], ending))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(Unreadable):
        assert read(file, 3, (8, 8)).shape == (8, 8, 3)
