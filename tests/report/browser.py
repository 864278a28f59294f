"""A real browser without a screen: what a page looks like, and what it would have loaded from elsewhere."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs a browser (apt-get install chromium)")
# As root it has no sandbox of its own; the rest keeps it from asking its maker's hosts.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def look(page: Path, picture: Path | None = None, *, size: tuple[int, int] = (1240, 1600)) -> str:
    """The document as the browser has it after loading; ``picture`` is written as PNG."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="poncho-browser-") as place:
        command = [PROGRAM, *_FLAGS, f"--user-data-dir={place}", f"--window-size={size[0]},{size[1]}"]
        if picture is not None:
            done = subprocess.run(
                [*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True
            )
        done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def pixels(picture: Path) -> tuple[int, int, set[bytes]]:
    """Width, height, and every colour that is there (PNG of 8 bits, not interlaced: ISO/IEC 15948)."""
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    width = height = channels = 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", body)
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    raw, stride = zlib.decompress(packed), width * channels
    above, colours = bytearray(stride), set()
    for row in range(height):
        start = row * (stride + 1)
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, above, channels)
        colours.update(bytes(line[x : x + 3]) for x in range(0, stride, channels))
        above = line
    return width, height, colours


def _unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> None:
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        up = above[i]
        if kind == 1:
            line[i] = (line[i] + left) & 255
        elif kind == 2:
            line[i] = (line[i] + up) & 255
        elif kind == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif kind == 4:
            corner = above[i - step] if i >= step else 0
            guess = left + up - corner
            near = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))
            line[i] = (line[i] + near[2]) & 255
