"""The pictures of the documentation: small, and as they were taken."""

from __future__ import annotations

import random
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import pytest

from docs.small_png import SIGNATURE, chunk, paeth, read, shrink

STATIC = Path(__file__).parents[2] / "docs/_static"
LARGEST = 120_000
WIDTH = 40


def picture(colours: int, channels: int) -> tuple[bytes, list[bytes]]:
    """A PNG in which each kind of line occurs, and its pixels."""
    chance = random.Random(3)
    palette = [chance.randbytes(3) for _ in range(colours)]
    rows = [[chance.choice(palette) for _ in range(WIDTH)] for _ in range(10)]
    lines = [b"".join(pixel + b"\xff" * (channels - 3) for pixel in row) for row in rows]
    filtered = [bytes([kind % 5]) + line_of(kind % 5, *pair, channels) for kind, pair in enumerate(above(lines))]
    header = struct.pack(">IIBBBBB", WIDTH, len(rows), 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(filtered))), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*part) for part in chunks), [pixel for row in rows for pixel in row]


def above(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Each line with the one above it."""
    return [(line, before) for before, line in pairwise([bytes(len(lines[0])), *lines])]


def line_of(kind: int, line: bytes, before: bytes, channels: int) -> bytes:
    """A line as an encoder writes it: less what the decoder will guess."""
    shift = bytes(channels)
    around = zip(shift + line, before, shift + before, strict=False)
    guesses = [(0, left, up, (left + up) // 2, paeth(left, up, corner))[kind] for left, up, corner in around]
    return bytes((value - guess) & 255 for value, guess in zip(line, guesses, strict=True))


@pytest.mark.parametrize("channels", [3, 4])
def test_every_pixel_is_read(channels: int) -> None:
    png, pixels = picture(300, channels)
    assert read(png) == (WIDTH, 10, pixels)


def test_picture_with_few_colours_keeps_them_all() -> None:
    png, pixels = picture(200, 3)
    small = shrink(png)
    assert len(small) < len(png)
    parts = dict(chunks(small))
    palette = [parts[b"PLTE"][at : at + 3] for at in range(0, len(parts[b"PLTE"]), 3)]
    lines = zlib.decompress(parts[b"IDAT"])
    shown = [palette[lines[row * (WIDTH + 1) + 1 + x]] for row in range(10) for x in range(WIDTH)]
    assert shown == pixels


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(SIGNATURE)
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


@pytest.mark.parametrize("file", sorted(STATIC.glob("*.png")), ids=lambda file: file.stem)
def test_picture_is_small_and_shown_somewhere(file: Path) -> None:
    assert file.stat().st_size < LARGEST
    pages = [*STATIC.parent.glob("*.md"), STATIC.parent.parent / "README.md"]
    assert any(f"_static/{file.name}" in page.read_text() for page in pages)
