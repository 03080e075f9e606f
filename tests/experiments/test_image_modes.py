"""What each kind of image becomes, and which are refused."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data import pixels
from flatsparse.experiments.data.pixels import gathered

PILLOW = int(PIL.__version__.partition(".")[0])


def read(*images, kind="PNG", **options):
    """Images as they are read from files of a kind, and what is told of them."""
    files = []
    for place, image in enumerate(images):
        stream = io.BytesIO()
        if isinstance(image, bytes):
            stream.write(image)
        else:
            image.save(stream, kind, **options)
        files.append((f"{place}.file", stream.getvalue()))
    pixels, notes = gathered(files, len(files), "mine")
    return pixels.numpy(), " ".join(notes)


def grey16(*levels, dtype=np.uint16):
    return Image.fromarray(np.array([levels], dtype))


def colours16(*pixel):
    """A PNG of one pixel with 16 bits a channel, which Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, {2: 4, 3: 2, 4: 6}[len(pixel)], 0, 0, 0)
    content = zlib.compress(b"\0" + np.array(pixel, ">u2").tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def palette(transparency=None):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
KINDS = {
    "1": (Image.new("1", (1, 1), 1), "PNG", [[255]]),
    "L": (Image.new("L", (1, 1), 7), "PNG", [[7]]),
    "LA": (Image.new("LA", (1, 1), (7, 255)), "PNG", [[7]]),
    "LA, transparent": (Image.new("LA", (1, 1), (7, 0)), "PNG", [[255]]),
    "LA, half": (Image.new("LA", (1, 1), (0, 51)), "PNG", [[204]]),
    "P": (palette(), "PNG", [RED, BLUE]),
    "P, one transparent": (palette(0), "PNG", [WHITE, BLUE]),
    "P, by a table": (palette(bytes([255, 0])), "PNG", [RED, WHITE]),
    "PA": (Image.new("RGBA", (1, 1), (*BLUE, 0)).convert("PA"), "TIFF", [WHITE]),
    "RGB": (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", [(1, 2, 3)]),
    "RGBA": (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), "PNG", [(1, 2, 3)]),
    "RGBA, transparent": (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), "PNG", [WHITE]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", [RED]),
    # Pillow 12 does not read what it writes of this kind.
    **({} if PILLOW < 13 else {"YCbCr": (Image.new("YCbCr", (1, 1), (255, 128, 128)), "TIFF", [WHITE])}),
    "LAB": (Image.new("LAB", (1, 1), (0, 128, 128)), "TIFF", [(0, 0, 0)]),
    "16 bits, PNG": (grey16(0, 128, 129, 257, 32896, 65535), "PNG", [[0], [0], [1], [1], [128], [255]]),
    "16 bits, TIFF": (grey16(0, 257, 65535), "TIFF", [[0], [1], [255]]),
    "16 bits, big end first": (Image.new("I;16B", (1, 1), 257 * 3), "TIFF", [[3]]),
    "16 bits, PGM": (b"P5 2 1 65535\n" + np.array([257 * 9, 65535], ">u2").tobytes(), "", [[9], [255]]),
    "12 bits, PGM": (b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes(), "", [[0], [255]]),
    "16 bits of red, green, blue": (colours16(65535, 0x1234, 0), "", [(255, 0x12, 0)]),
    "16 bits and transparent": (colours16(65535, 0, 0, 0), "", [WHITE]),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_becomes_what_a_viewer_shows(name):
    image, kind, wanted = KINDS[name]
    pixels, _ = read(image, kind=kind)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].astype(int) == pytest.approx(np.array(wanted), abs=1 if name == "LAB" else 0)


@pytest.mark.parametrize(
    ("image", "kind", "options", "told"),
    [
        (Image.new("F", (2, 2), 0.5), "TIFF", {}, "floats"),
        (Image.new("I", (2, 2), 70000), "TIFF", {}, "32-bit whole numbers"),
        (Image.new("L", (2, 2)), "GIF", {"save_all": True, "append_images": [Image.new("L", (2, 2), 9)]}, "2 frames"),
        (Image.new("L", (2, 2)), "TIFF", {"save_all": True, "append_images": [Image.new("L", (2, 2), 9)]}, "2 frames"),
        (
            Image.new("RGB", (2, 2)),
            "PNG",
            {"save_all": True, "append_images": [Image.new("RGB", (2, 2), 9)]},
            "2 frames",
        ),
        (Image.new("RGB", (2, 2)), "ICO", {}, "format is not known"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "", {}, "format is not known"),
        (b"", "", {}, "not a whole image"),
        (colours16(1, 2, 3)[:50], "", {}, "not a whole image"),
    ],
)
def test_what_has_no_one_meaning_is_refused_by_name(image, kind, options, told):
    with pytest.raises(InputError, match=told) as caught:
        read(image, kind=kind, **options)
    assert "0.file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "object at" not in str(caught.value)


def test_a_telephones_photograph_with_its_preview_is_the_photograph():
    pixels, _ = read(
        Image.new("RGB", (8, 8), "white"), kind="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    assert pixels.shape == (1, 8, 8, 3)
    assert pixels.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photograph_is_turned_as_its_file_says(kind):
    image = Image.new("RGB", (16, 8))
    image.paste("white", (0, 0, 8, 8))  # the left half
    turned = image.getexif()
    turned[274] = 6  # to be shown after a quarter turn to the right
    pixels, _ = read(image, kind=kind, exif=turned)
    assert pixels.shape[1:] == (16, 8, 3)
    assert pixels[0, :8].min() > 200  # then white is above
    assert pixels[0, 8:].max() < 50


def test_a_sixteen_bit_tiff_may_begin_with_white():
    pixels, _ = read(grey16(0, 65535), kind="TIFF", tiffinfo={262: 0})
    assert pixels[0, 0].tolist() == [[255], [0]]


def test_transparency_and_dark_levels_are_told():
    assert read(Image.new("RGBA", (1, 1), (1, 2, 3, 255)))[1] == ""
    assert "1 images of 'mine' are laid over white" in read(Image.new("RGBA", (1, 1), (1, 2, 3, 9)))[1]
    assert "end at 4095 of 65535" in read(grey16(0, 4095))[1]
    assert read(grey16(0, 40000))[1] == ""


def test_a_bomb_is_refused_before_it_goes_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for side in (4, 9):  # of which Pillow warns, and which it refuses
        with pytest.raises(InputError, match=r"0\.file is not a whole image.*pixels"):
            read(Image.new("L", (side, side)))


def test_images_that_no_memory_holds_are_one_line(monkeypatch):
    monkeypatch.setattr(pixels, "free_memory", lambda device: 10)
    with pytest.raises(InputError, match="do not fit into memory"):
        read(Image.new("L", (4, 4)))
