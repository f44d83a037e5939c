"""Tests of the way from an image's bytes to pixels: formats, damage, the square, augmentation."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin
from synthetic import draw, encode

from data import images
from data.images import (
    FILL,
    PHOTO_FORMATS,
    PLAIN,
    BadImageError,
    View,
    check_photo,
    decode_image,
    decode_whole,
    draw_view,
    make_thumbnail,
    shrink_image,
)
from recipes import Data

LEFT, RIGHT = (200, 40, 30), (30, 50, 210)  # colours of the two halves of the test picture


def two_halves(width=32, height=32):
    """A picture whose left half has one colour and its right half another."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width, height):
    """A PNG of a few bytes that claims to be so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def view_of(seed, **settings):
    """Draws the view that a recipe of these settings gives with a seed."""
    data = Data(**({"augment": False} | settings))
    return draw_view(data, np.random.default_rng(seed))


# ------------------------------------------------------------------------- images that are read

PICTURE = two_halves()
GRAY = PICTURE.convert("L")
GRAY_LEFT, GRAY_RIGHT = (GRAY.getpixel((0, 0)),) * 3, (GRAY.getpixel((31, 0)),) * 3
SIXTEEN_BITS = Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 256 + 99)
PALETTE = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
TRANSPARENT = PICTURE.convert("RGBA")
TRANSPARENT.putalpha(128)

READABLE = {
    "JPEG": (encode(PICTURE, quality=95), LEFT, RIGHT),
    "progressive JPEG": (encode(PICTURE, quality=95, progressive=True), LEFT, RIGHT),
    "JPEG with bytes after its end": (encode(PICTURE, quality=95) + b"\0" * 99, LEFT, RIGHT),
    "large JPEG, decoded at an eighth": (encode(two_halves(2000, 1600), quality=95), LEFT, RIGHT),
    "PNG": (encode(PICTURE, "PNG"), LEFT, RIGHT),
    "lossless WebP": (encode(PICTURE, "WEBP", lossless=True), LEFT, RIGHT),
    "GIF": (encode(PICTURE, "GIF"), LEFT, RIGHT),
    "animated GIF, its first frame": (
        encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
        LEFT,
        RIGHT,
    ),
    "gray JPEG": (encode(GRAY, quality=95), GRAY_LEFT, GRAY_RIGHT),
    "gray PNG with transparency": (encode(GRAY.convert("LA"), "PNG"), GRAY_LEFT, GRAY_RIGHT),
    "gray PNG of 16 bits": (encode(SIXTEEN_BITS, "PNG"), GRAY_LEFT, GRAY_RIGHT),
    "PNG of 1 bit": (encode(GRAY.point(lambda v: 255 * (v > 80)).convert("1"), "PNG"), None, None),
    "CMYK JPEG": (encode(PICTURE.convert("CMYK"), quality=95), LEFT, RIGHT),
    "PNG with transparency": (encode(TRANSPARENT, "PNG"), LEFT, RIGHT),
    "PNG of a palette": (encode(PALETTE, "PNG"), LEFT, RIGHT),
    "PNG of a palette with transparency": (
        encode(PALETTE, "PNG", transparency=b"\x80\x10"),
        LEFT,
        RIGHT,
    ),
    "JPEG of one pixel": (encode(Image.new("RGB", (1, 1), LEFT), quality=95), LEFT, LEFT),
    "JPEG of 1x20000 pixels": (encode(Image.new("RGB", (1, 20000), LEFT)), LEFT, LEFT),
    "JPEG of 20000x1 pixels": (encode(two_halves(20000, 1), quality=95), LEFT, RIGHT),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("augments", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("keeps_aspect", [False, True], ids=["squashed", "fitted"])
@pytest.mark.parametrize(("data", "left", "right"), READABLE.values(), ids=READABLE)
def test_every_format_found_under_the_name_jpg_is_decoded_in_its_colours(
    data, left, right, keeps_aspect, augments
):
    view = view_of(1, augment=True, geometry=1, erase=1) if augments else PLAIN
    pixels = decode_image(data, 24, keeps_aspect, view)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    if left is not None and not augments and not keeps_aspect:
        np.testing.assert_allclose(pixels[:, 1].mean(axis=0), left, atol=6)
        np.testing.assert_allclose(pixels[:, -2].mean(axis=0), right, atol=6)


def test_a_gray_picture_of_16_bits_keeps_its_high_byte():
    values = np.array([[0x0000, 0x00FF], [0x8000, 0xFFFF]], np.uint16)
    pixels = decode_image(encode(Image.fromarray(values), "PNG"), 2)
    assert pixels[..., 0].tolist() == [[0, 0], [128, 255]]


# What EXIF's orientation 1..8 says must be done to the stored pixels to see them upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize(("orientation", "turn"), UPRIGHT.items())
def test_the_pixels_are_turned_as_exif_says(orientation, turn):
    stored = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, 16), turn(stored))


def test_a_jpeg_of_a_turned_camera_is_decoded_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored left side is the top
    pixels = decode_image(encode(two_halves(320, 240), quality=95, exif=exif), 24)
    np.testing.assert_allclose(pixels[1].mean(axis=0), LEFT, atol=6)
    np.testing.assert_allclose(pixels[-2].mean(axis=0), RIGHT, atol=6)


def damaged_exif(damage):
    """A good JPEG whose EXIF asks for a half turn and has one more tag, which is damaged."""
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x0100] = 77  # image width
    data = encode(PICTURE, quality=95, exif=exif)
    tag = data.index(bytes([0x01, 0x00, 0x00, 0x04]))
    return data[:tag] + damage + data[tag + len(damage) :]


@pytest.mark.parametrize(
    "damage",
    [b"\x01\x00\x00\x02", b"\x01\x1a\x00\x02"],
    ids=["a number given as text", "a ratio given as text"],
)
def test_a_damaged_exif_does_not_cost_the_picture(damage):
    pixels = decode_image(damaged_exif(damage), 24)
    np.testing.assert_allclose(pixels[:, 1].mean(axis=0), RIGHT, atol=6)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("length", [1, 7, 30])
def test_an_exif_that_is_cut_off_does_not_cost_the_picture(length):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encode(PICTURE, quality=95, exif=exif.tobytes()[:length])
    np.testing.assert_allclose(decode_image(data, 24)[:, 1].mean(axis=0), LEFT, atol=6)


NO_EXIF = {
    "text": b"Exif\0\0no TIFF at all",
    "cut within its first number": b"Exif\0\0MM\0*\0\0",
    "another kind of data": b"http://ns.adobe.com/xap/1.0/",
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("exif", NO_EXIF.values(), ids=NO_EXIF)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_exif_that_is_none_does_not_cost_the_picture(image_format, exif):
    data = encode(PICTURE, image_format, exif=exif)
    assert decode_image(data, 24).shape == (24, 24, 3)


def test_decoding_equals_a_plain_decode_and_resize_by_pillow():
    data = encode(draw(17, np.random.default_rng(3)), quality=90)  # 48x36: nothing to skip
    with Image.open(io.BytesIO(data)) as image:
        plain = image.convert("RGB").resize((32, 32), Image.Resampling.HAMMING)
    np.testing.assert_array_equal(decode_image(data, 32), np.asarray(plain))


def test_decoding_at_a_fraction_of_the_size_looks_like_decoding_in_full():
    small = draw(17, np.random.default_rng(3))
    data = encode(small.resize((48 * 32, 36 * 32), Image.Resampling.BICUBIC), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        plain = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.HAMMING))
    difference = decode_image(data, 64).astype(int) - plain
    assert np.abs(difference).mean() < 2


# --------------------------------------------------------------------- images that are not read

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
JPEG = encode(draw(17, np.random.default_rng(0)), quality=95)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"

UNREADABLE = {
    "empty": (b"", "empty"),
    "a page of HTML": (HTML, "not an image"),
    "zero bytes": (b"\0" * 5000, "not an image"),
    "a TIFF": (encode(PICTURE, "TIFF"), "not an image"),
    "a JPEG cut within its header": (JPEG[:20], "not an image|truncated|cannot|broken"),
    "a JPEG cut within its pixels": (JPEG[: len(JPEG) // 2], "truncated"),
    "a JPEG without its last bytes": (JPEG[:-40], "truncated"),
    "a PNG cut within its pixels": (encode(NOISE, "PNG")[:1000], "."),
    "a WebP cut within its pixels": (encode(NOISE, "WEBP", lossless=True)[:1000], "."),
    "a GIF cut within its pixels": (encode(NOISE, "GIF")[:1000], "."),
    "a PNG with a damaged chunk": (
        encode(PICTURE, "PNG").replace(b"IDAT", b"IDAX"),
        "broken|cannot|not an image",
    ),
    "a PNG that claims 81 million pixels": (png_of_size(9000, 9000), "9000x9000 pixels"),
    "a PNG that claims 10 billion pixels": (png_of_size(100_000, 100_000), "too many pixels"),
    "a GIF that claims 4 billion pixels": (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + b"\0" * 40,
        "too many pixels",
    ),
    "a PNG of no width": (png_of_size(0, 10), "."),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("data", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_every_unreadable_image_is_refused_with_a_reason_of_one_line(data, reason):
    with pytest.raises(BadImageError, match=reason) as caught:
        decode_image(data, 24)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)  # no Python object


@pytest.mark.parametrize("error", [AttributeError, TypeError, IndexError, ZeroDivisionError])
def test_whatever_a_reader_of_pillow_raises_the_image_is_bad(monkeypatch, error):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: raise_(error("of a\nplugin")))
    with pytest.raises(BadImageError, match="^of a plugin$"):
        decode_image(encode(PICTURE, "PNG"), 24)


def raise_(error):
    raise error


@pytest.mark.parametrize("image_format", ["EPS", "PDF", "DDS"])
def test_a_photo_is_of_a_format_that_starts_no_other_program(image_format):
    with pytest.raises(BadImageError, match="not an image"):
        decode_image(encode(PICTURE, image_format), 24, formats=PHOTO_FORMATS)


def test_a_heic_is_known_by_its_content():
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
    with pytest.raises(BadImageError, match="HEIC, which takes pip install pillow-heif"):
        check_photo(data)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def with_raw_profile(picture):
    """Encodes a PNG with EXIF as ImageMagick writes it: hexadecimal text."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n")
    return encode(picture, "PNG", pnginfo=info)


@pytest.mark.parametrize(
    "turned",
    [with_raw_profile, lambda picture: encode(picture, "JPEG", xmp=XMP, quality=95)],
    ids=["raw profile of a PNG", "XMP of a JPEG"],
)
def test_the_orientation_is_read_wherever_it_is(turned):
    upright = Image.new("RGB", (40, 40), "white")
    upright.paste("black", (0, 0, 40, 20))  # dark above
    pixels = decode_image(turned(upright.transpose(Image.Transpose.ROTATE_90)), 40)
    assert pixels[:18].max() < 60 and pixels[22:].min() > 200


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-7, 1_000_000]], np.int32), [0, 255]),
        (np.array([[0.0, 1.0]], np.float32), [0, 255]),
        (np.array([[0.25, 0.5]], np.float32), [64, 128]),
        (np.array([[51.0, 204.0]], np.float32), [51, 204]),
        (np.array([[np.nan, 1.0]], np.float32), [0, 255]),
        (np.array([[9e5, 9e5]], np.float32), [0, 0]),
        (np.array([[257, 65535]], np.uint16), [1, 255]),
        (np.array([[0, 257]], np.uint16), [0, 1]),  # a dark one stays dark
    ],
)
def test_gray_values_of_more_than_8_bits_are_seen_by_their_range(values, seen):
    data = encode(Image.fromarray(values.repeat(8, 0).repeat(8, 1)), "TIFF")
    pixels = decode_image(data, 16, formats=PHOTO_FORMATS)
    assert [pixels[8, 2, 0], pixels[8, 13, 0]] == seen


def test_gray_values_that_are_all_one_beyond_every_range_are_seen_without_a_warning(recwarn):
    data = encode(Image.fromarray(np.full((8, 8), 100_000, np.int32)), "TIFF")
    assert not decode_image(data, 8, formats=PHOTO_FORMATS).any()
    assert not recwarn.list


def test_a_jpeg_whose_shorter_side_is_small_enough_stays_byte_for_byte():
    data = encode(two_halves(48, 32))
    assert shrink_image(data, 32, 85) == data
    assert shrink_image(data, 31, 85) != data


def test_a_picture_smaller_than_its_thumbnail_is_decoded_at_once():
    data = encode(two_halves(64, 64))
    assert make_thumbnail(data, 256).size == (64, 64)
    with pytest.raises(BadImageError):
        make_thumbnail(data[:-40], 256)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_or_damaged_anywhere_is_an_image_or_refused(image_format):
    data = encode(draw(17, np.random.default_rng(0)), image_format)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        damaged = bytes(damaged[: rng.integers(1, len(data) + 1)])
        with contextlib.suppress(BadImageError):
            assert decode_image(damaged, 16).shape == (16, 16, 3)


# ---------------------------------------------------------------------------- fitted or squashed


def fitted(width, height, image_size=24, view=PLAIN):
    """Fits a picture of one colour into the square; gives where its colour is, as a bool array."""
    data = encode(Image.new("RGB", (width, height), LEFT), "PNG")
    pixels = decode_image(data, image_size, True, view)
    is_picture = (pixels == LEFT).all(axis=2)
    assert (pixels[~is_picture] == FILL).all()
    return is_picture


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [
        (64, 32, (6, 18), (0, 24)),  # 24x12
        (32, 64, (0, 24), (6, 18)),  # 12x24
        (8, 4, (6, 18), (0, 24)),  # enlarged
        (80, 70, (1, 22), (0, 24)),  # 24x21: the odd row is below
        (50, 50, (0, 24), (0, 24)),
        (9000, 1, (11, 12), (0, 24)),  # never nothing
    ],
)
def test_a_fitted_picture_keeps_its_aspect_ratio_between_two_bars(width, height, rows, columns):
    expected = np.zeros((24, 24), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(fitted(width, height), expected)


def test_the_cropped_part_is_what_keeps_its_aspect_ratio():
    half = View(crop=(0.5, 0.0, 1.0, 1.0))  # 32x32 of 64x32
    assert fitted(64, 32, view=half).all()
    upright = View(crop=(0.25, 0.0, 0.5, 1.0))  # 16x32
    assert fitted(64, 32, view=upright)[0].tolist() == [False] * 6 + [True] * 12 + [False] * 6


def test_a_picture_turned_by_exif_is_fitted_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_image(encode(Image.new("RGB", (64, 32), LEFT), "PNG", exif=exif), 24, True)
    assert (pixels[:, :6] == FILL).all() and (pixels[:, 6:18] == LEFT).all()


def test_a_fitted_picture_equals_a_plain_resize_by_pillow():
    picture = draw(17, np.random.default_rng(3))  # 48x36
    pixels = decode_image(encode(picture, "PNG"), 32, True)
    plain = picture.resize((32, 24), Image.Resampling.HAMMING)
    np.testing.assert_array_equal(pixels[4:28], np.asarray(plain))


# ----------------------------------------------------------------------------------- augmentation

PHOTO = encode(draw(17, np.random.default_rng(3)), "PNG")  # 48x36


def test_no_augmentation_draws_nothing():
    rng = np.random.default_rng(0)
    assert draw_view(Data(augment=False), rng) == PLAIN
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("others", [{}, {"geometry": 1, "erase": 1}], ids=["alone", "among others"])
def test_crop_and_mirror_are_the_first_five_numbers_of_the_seed(others):
    with Image.open(io.BytesIO(PHOTO)) as image:
        image.load()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (width, height), (x, y) = rng.uniform(0.85, 1, 2), rng.uniform(size=2)
        left, top = x * (1 - width), y * (1 - height)
        box = (48 * left, 36 * top, 48 * (left + width), 36 * (top + height))
        view = image.resize((32, 32), Image.Resampling.HAMMING, box)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        drawn = view_of(seed, augment=True, **others)
        drawn = View(drawn.crop, drawn.is_mirrored)
        np.testing.assert_array_equal(decode_image(PHOTO, 32, view=drawn), np.asarray(view))


def test_a_crop_keeps_most_of_the_picture_and_half_of_them_are_mirrored(monkeypatch):
    data = encode(PICTURE, "PNG")
    plain = decode_image(data, 32)
    views = [decode_image(data, 32, view=view_of(seed, augment=True)) for seed in range(40)]
    mirrored = sum(tuple(view[0, 0]) == RIGHT for view in views)
    assert 8 <= mirrored <= 32
    assert all(view.shape == plain.shape for view in views)
    monkeypatch.setattr(images, "MIN_CROP", 1.0)  # nothing is left to chance but the mirror
    for seed in range(10):
        view = decode_image(data, 32, view=view_of(seed, augment=True))
        assert np.array_equal(view, plain) or np.array_equal(view, plain[:, ::-1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["geometry", "erase"])
def test_about_the_asked_share_of_the_images_is_changed(name, share):
    views = [view_of(seed, **{name: share}) for seed in range(1000)]
    assert sum(view != PLAIN for view in views) == pytest.approx(1000 * share, abs=45)


@pytest.mark.parametrize(("image_size", "side"), [(24, 10), (25, 10), (192, 77)])
def test_one_box_of_40_percent_of_each_side_is_erased_and_the_rest_is_untouched(image_size, side):
    dark = np.random.default_rng(0).integers(0, 100, (40, 40, 3), np.uint8)  # nowhere like FILL
    data = encode(Image.fromarray(dark), "PNG")
    plain = decode_image(data, image_size)
    corners = []
    for seed in range(300):
        pixels = decode_image(data, image_size, view=view_of(seed, erase=1))
        rows, columns = np.nonzero((pixels != plain).any(axis=2))
        corners.append((rows.min(), columns.min()))
        expected = plain.copy()
        expected[rows.min() : rows.min() + side, columns.min() : columns.min() + side] = FILL
        assert len(rows) == side * side
        np.testing.assert_array_equal(pixels, expected)
    room = image_size - side
    assert (np.min(corners, axis=0) <= 0.05 * room).all()
    assert (np.max(corners, axis=0) >= 0.95 * room).all()


def test_the_erased_box_lies_where_the_view_says():
    for erased, left, top in (((0, 0), 0, 0), ((0.9999, 0.0), 6, 0), ((0.5, 0.9999), 3, 6)):
        pixels = decode_image(PHOTO, 10, view=View(erased=erased))  # a box of 4 x 4, 7 places
        box = pixels[top : top + 4, left : left + 4]
        assert (box == FILL).all()
        assert (pixels == FILL).all(axis=2).sum() == 16


def test_geometry_stays_within_its_bounds_and_reaches_them():
    drawn = np.array([view_of(seed, geometry=1).geometry for seed in range(1000)])
    low, high = np.array([-10, 0.8, -0.2, -0.2]), np.array([10, 1.2, 0.2, 0.2])
    assert (drawn >= low).all() and (drawn <= high).all()
    np.testing.assert_allclose(drawn.min(axis=0), low, atol=0.01 * (high - low).max())
    np.testing.assert_allclose(drawn.max(axis=0), high, atol=0.01 * (high - low).max())
    np.testing.assert_allclose(drawn.mean(axis=0), [0, 1, 0, 0], atol=0.6)


@pytest.mark.parametrize("keeps_aspect", [False, True])
@pytest.mark.parametrize("image_size", [24, 25])
def test_no_turn_no_rescaling_and_no_shift_change_nothing(image_size, keeps_aspect):
    plain = decode_image(PHOTO, image_size, keeps_aspect)
    view = View(geometry=(0, 1, 0, 0))
    np.testing.assert_array_equal(decode_image(PHOTO, image_size, keeps_aspect, view), plain)


def marked(geometry, is_mirrored=False):
    """Sees a picture of 20 x 20 with one mark of 4 x 4; gives the mark's middle and area.

    The mark's middle is 8 to the right of the picture's middle and 4 above it.

    Returns:
        (x to the right, y downwards, both from the picture's middle; area in pixels).
    """
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[4:8, 16:20] = 200
    view = View(geometry=geometry, is_mirrored=is_mirrored)
    seen = decode_image(encode(Image.fromarray(pixels), "PNG"), 20, view=view)
    weight = np.where((seen == FILL).all(axis=2), 0, seen[..., 0] / 200)
    rows, columns = np.mgrid[:20, :20] - 9.5
    return (
        (weight * columns).sum() / weight.sum(),
        (weight * rows).sum() / weight.sum(),
        weight.sum(),
    )


COSINE, SINE = np.cos(np.radians(10)), np.sin(np.radians(10))

MOVED = {  # where the mark at (8, -4), y downwards, comes to lie
    "as it is": ((0, 1, 0, 0), (8, -4, 16)),
    "a quarter counter-clockwise": ((90, 1, 0, 0), (-4, -8, 16)),
    "a quarter clockwise": ((-90, 1, 0, 0), (4, 8, 16)),
    "a half": ((180, 1, 0, 0), (-8, 4, 16)),
    "10 degrees counter-clockwise, at 0.8 to stay inside": (
        (10, 0.8, 0, 0),
        (0.8 * (8 * COSINE - 4 * SINE), 0.8 * (-4 * COSINE - 8 * SINE), 0.64 * 16),
    ),
    "smaller": ((0, 0.5, 0, 0), (4, -2, 4)),
    "to the left": ((0, 1, -0.2, 0), (4, -4, 16)),
    "down": ((0, 1, 0, 0.2), (8, 0, 16)),
    "turned, halved, then shifted": ((90, 0.5, 0.1, -0.1), (0, -6, 4)),
}


@pytest.mark.parametrize(("geometry", "expected"), MOVED.values(), ids=MOVED)
def test_a_picture_is_turned_and_rescaled_about_its_middle_then_shifted(geometry, expected):
    assert marked(geometry) == pytest.approx(expected, abs=0.15 if geometry[0] % 90 else 0.03)


def test_an_image_is_mirrored_after_everything_else():
    assert marked((90, 0.5, 0.1, -0.1), is_mirrored=True) == pytest.approx((0, -6, 4), abs=0.03)
    assert marked((0, 1, -0.2, 0), is_mirrored=True) == pytest.approx((-4, -4, 16), abs=0.03)


def test_what_the_geometry_leaves_free_has_the_colour_of_the_bars():
    seen = fitted(32, 32, view=View(geometry=(0, 1, 0.25, -0.5)))  # 6 right, 12 up, of 24
    expected = np.zeros((24, 24), bool)
    expected[:12, 6:] = True
    np.testing.assert_array_equal(seen, expected)
    smaller = fitted(64, 32, view=View(geometry=(0, 0.5, 0, 0)))
    assert smaller.sum() == 12 * 6 and smaller[9:15, 6:18].all()


# ----------------------------------------------------------------------------------- small pictures


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("data", "left", "right"), READABLE.values(), ids=READABLE)
def test_every_format_becomes_a_small_jpeg_in_its_colours(data, left, right):
    small = opened(shrink_image(data, 24, 90))
    before = opened(data).size
    assert (small.format, small.mode) == ("JPEG", "RGB")
    assert min(small.size) == min(24, min(before))
    assert small.width / small.height == pytest.approx(before[0] / before[1], rel=0.05)
    if left is not None:
        pixels = np.asarray(small)
        np.testing.assert_allclose(pixels[:, 0].mean(axis=0), left, atol=8)
        np.testing.assert_allclose(pixels[:, -1].mean(axis=0), right, atol=8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((800, 600), (341, 256)), ((600, 800), (256, 341)), ((4000, 300), (3413, 256)),
     ((256, 900), (256, 900)), ((255, 9), (255, 9)), ((257, 257), (256, 256))],
)  # fmt: skip
def test_the_shorter_side_is_cut_and_none_is_enlarged(size, expected):
    assert opened(shrink_image(encode(two_halves(*size)), 256, 85)).size == expected
    assert decode_whole(encode(two_halves(*size), "PNG")).shape == (size[1], size[0], 3)


def test_a_jpeg_that_is_small_upright_and_rgb_already_stays_byte_for_byte():
    for data in (READABLE["JPEG"][0], READABLE["progressive JPEG"][0]):
        assert shrink_image(data, 32, 50) == data
        assert shrink_image(data, 31, 50) != data
    once = shrink_image(encode(two_halves(300, 200)), 64, 85)
    assert shrink_image(once, 64, 85) == once
    for name in ("gray JPEG", "CMYK JPEG", "PNG"):
        assert shrink_image(READABLE[name][0], 64, 90) != READABLE[name][0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_small_picture_is_upright_and_has_no_exif_or_comment(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[0x010F] = "a camera"
    for pixels in (20, 400):  # smaller, and as it is
        data = encode(two_halves(90, 60), quality=95, exif=exif, comment=b"mine")
        small = opened(shrink_image(data, pixels, 95))
        assert not small.getexif() and "exif" not in small.info and not small.info.get("comment")
        assert (small.width > small.height) == (orientation < 5)
        before, after = decode_image(data, 16), decode_image(shrink_image(data, pixels, 95), 16)
        np.testing.assert_allclose(after.astype(int), before.astype(int), atol=12)


def test_a_small_picture_keeps_the_resolution_of_its_colours_and_takes_the_quality():
    data = encode(draw(17, np.random.default_rng(3)).resize((400, 300)), quality=95)
    sizes = [len(shrink_image(data, 128, quality)) for quality in (50, 85, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 1.5
    assert [layer[1:3] for layer in opened(shrink_image(data, 128, 85)).layer] == [(1, 1)] * 3


@pytest.mark.parametrize("pixels", [16, 4096])
@pytest.mark.parametrize("data", [case[0] for case in UNREADABLE.values()], ids=UNREADABLE)
def test_what_is_unreadable_does_not_become_a_small_picture(data, pixels):
    with pytest.raises(BadImageError):
        shrink_image(data, pixels, 85)
