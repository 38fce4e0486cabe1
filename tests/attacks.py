"""Image files that are small but take minutes, gigabytes or another program to decode."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
# Pillow's plugin runs Ghostscript to decode it.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"


def encode(image, kind, **options):
    """Return the content of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def make_chunk(name, body):
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def make_png(width, height, *chunks, depth=8, color=2):
    """Return a PNG with this size in its header; chunks are (name, content)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    parts = [header, *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(make_chunk(*part) for part in parts)


def make_large_png(width, height, depth=16, color=6, channels=4):
    """Return a PNG whose pixels are all 0; it is decoded completely."""
    compressor = zlib.compressobj(1)
    row = bytes(1 + width * channels * depth // 8)
    data = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])
    return make_png(width, height, (b"IDAT", data), depth=depth, color=color)


def make_pages(count):
    """Return a TIFF of pages of one pixel."""
    content = bytearray(b"II*\0" + struct.pack("<I", 8))
    for page in range(count):
        start = len(content)
        tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, start)]
        tags += [(277, 3, 1), (278, 3, 1), (279, 4, 1)]
        following = 0 if page == count - 1 else start + 2 + 12 * len(tags) + 4
        content += struct.pack("<H", len(tags))
        content += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        content += struct.pack("<I", following)
    return bytes(content)


def make_segments(count, marker=b"\xff\xe1"):
    """Return a JPEG with empty segments before its pixels."""
    content = encode(NOISE, "JPEG")
    return content[:2] + (marker + b"\0\2") * count + content[2:]


def make_scans(count):
    """Return a progressive JPEG whose last scan is repeated."""
    content = encode(NOISE.resize((1000, 800)), "JPEG", progressive=True, quality=10)
    return content[:-2] + content[content.rfind(b"\xff\xda") : -2] * count + content[-2:]


def make_hidden_scans(count, gap=b""):
    """Return a JPEG with a comment between its scans that contains the end marker, and another segment, ``gap``."""
    content = make_scans(count)
    second = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
    return content[:second] + b"\xff\xfe\0\x04\xff\xd9" + gap + content[second:]


def make_profile(elements):
    """Return a color profile with a chain of equal operations (type mpet), which all refer to the same bytes."""
    from PIL import ImageCms

    # The name of sRGB would show that nothing has to be converted.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    standard = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    segment = b"parf" + bytes(8) + struct.pack(">4f", 1, 1, 0, 0)
    curve = b"curf" + bytes(4) + struct.pack(">HH", 10, 0) + struct.pack(">9f", *range(9)) + segment * 10
    curves = b"cvst" + bytes(4) + struct.pack(">HH", 3, 3) + struct.pack(">II", 36, len(curve)) * 3 + curve
    head = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, elements)
    chain = head + struct.pack(">II", 16 + 8 * elements, len(curves)) * elements + curves
    count = struct.unpack_from(">I", standard, 128)[0]
    table = [struct.unpack_from(">4sII", standard, 132 + 12 * number) for number in range(count)]
    tags = [(b"D2B0", chain), *((name, standard[start : start + size]) for name, start, size in table)]
    start = 132 + 12 * len(tags)
    entries, data = b"", b""
    for name, body in tags:
        entries += struct.pack(">4sII", name, start + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    body = standard[4:128] + struct.pack(">I", len(tags)) + entries + data
    return struct.pack(">I", 4 + len(body)) + body


def make_rle_bmp(size):
    """Return a BMP with run-length encoding that has one pixel per run, decoded by Python code."""
    data = b"\x01\x00" * (size // 2)
    start = 54 + 1024
    header = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return header + struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, len(data), 0, 0, 256, 256) + bytes(1024) + data


def make_gif_comments(count):
    """Return a GIF with comments of one letter."""
    content = encode(NOISE.convert("P"), "GIF")
    return content[: 13 + 768] + b"\x21\xfe" + b"\x01a" * count + b"\0" + content[13 + 768 :]
