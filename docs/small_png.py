"""Makes screenshots smaller: at most 256 colours, and packed as well as zlib can. Pure, and slow: seconds for each."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = 256
_CHANNELS = {2: 3, 6: 4}
"""By colour type: RGB, and RGB with opacity, which is dropped."""


def shrink(png: bytes) -> bytes:
    """The same picture with a palette: rare colours become the nearest that is frequent. For 8 bits a channel."""
    width, height, pixels = read(png)
    counts = Counter(pixels)
    palette = [colour for colour, _ in counts.most_common(COLOURS)]
    place = {colour: palette.index(min(palette, key=lambda p: distance(p, colour))) for colour in counts}
    indexes = bytes(place[pixel] for pixel in pixels)
    # Each line begins with its filter: none, which suits palettes best.
    lines = b"".join(b"\0" + indexes[start : start + width] for start in range(0, width * height, width))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", b"".join(palette)),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    return SIGNATURE + b"".join(chunk(name, data) for name, data in chunks)


def distance(one: bytes, other: bytes) -> int:
    """How different two colours are."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def chunk(name: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def read(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height, and the colour of each pixel."""
    parts = list(chunks_of(png))
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", parts[0][1])
    if depth != 8 or kind not in _CHANNELS or rest != [0, 0, 0]:
        raise ValueError(f"A PNG of colour type {kind} with {depth} bits is not one that a browser makes.")
    channels = _CHANNELS[kind]
    data = zlib.decompress(b"".join(content for name, content in parts if name == b"IDAT"))
    pixels: list[bytes] = []
    above = bytes(width * channels)
    for start in range(0, len(data), width * channels + 1):
        above = unfiltered(data[start], data[start + 1 : start + 1 + width * channels], above, channels)
        pixels += [above[at : at + 3] for at in range(0, len(above), channels)]
    return width, height, pixels


def chunks_of(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The parts of a PNG file, each with its name."""
    at = len(SIGNATURE)
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def unfiltered(kind: int, line: bytes, above: bytes, channels: int) -> bytes:
    """A line as it was before the encoder took away what it guessed."""
    done = bytearray(channels)  # what is left of the first pixel
    if kind == 0:
        return line
    if kind == 2:
        return bytes((value + up) & 255 for value, up in zip(line, above, strict=True))
    for at, value in enumerate(line):
        left, up, corner = done[at], above[at], above[at - channels] if at >= channels else 0
        guess = left if kind == 1 else (left + up) // 2 if kind == 3 else paeth(left, up, corner)
        done.append((value + guess) & 255)
    return bytes(done[channels:])


def paeth(left: int, up: int, corner: int) -> int:
    """The neighbour that is nearest to their plane."""
    guess = left + up - corner
    return min((left, up, corner), key=lambda neighbour: abs(guess - neighbour))
