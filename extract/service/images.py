"""What an image file says of its size, read from its header: a file of kilobytes can take gigabytes to decode."""

from __future__ import annotations

from cache import kinds

_STARTS_OF_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def pixels(content: bytes) -> int:
    """How many pixels decoding a JPEG, PNG, GIF, BMP or WebP file will write; of a GIF, in all its frames.

    TensorFlow decodes every frame of a GIF even if only the first one counts. Raises ValueError, with what it is
    instead, for anything else, and for a file that ends before it says its size.
    """
    if not kinds.is_photo(content[: kinds.HEAD]):
        raise ValueError(kinds.reason(content[: kinds.HEAD], "not a JPEG, PNG, GIF, BMP or WebP image"))
    if content[:3] == b"\xff\xd8\xff":
        count = _of_jpeg(content)
    elif content[:4] == b"\x89PNG":
        count = _number(content, 16, 4, "big") * _number(content, 20, 4, "big")
    elif content[:4] == b"GIF8":
        count = _of_gif(content)
    elif content[:2] == b"BM":
        count = abs(_number(content, 18, 4, signed=True) * _number(content, 22, 4, signed=True))
    else:
        count = _of_webp(content)
    if not count:
        raise ValueError("an image without pixels")
    return count


def _number(content: bytes, place: int, length: int, order: str = "little", signed: bool = False) -> int:
    if place + length > len(content):
        raise ValueError("the file ends within its header")
    return int.from_bytes(content[place : place + length], order, signed=signed)  # type: ignore[arg-type]


def _of_jpeg(content: bytes) -> int:
    place = 2
    while True:
        place = content.find(b"\xff", place)
        if place < 0:
            raise ValueError("the file ends within its header")
        marker = _number(content, place + 1, 1)
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
        elif marker in _STARTS_OF_FRAMES:
            return _number(content, place + 5, 2, "big") * _number(content, place + 7, 2, "big")
        elif marker in (0xD9, 0xDA):
            raise ValueError("a JPEG without a frame")
        else:
            place += 2 + max(2, _number(content, place + 2, 2, "big"))


def _of_gif(content: bytes) -> int:
    """GIF89a, sections 18 to 27. Each frame is decoded, and the first one is drawn on the whole screen."""
    count = _number(content, 6, 2) * _number(content, 8, 2)
    place = 13 + _colours(content, 10)
    while place < len(content):
        kind = content[place]
        if kind == 0x2C:
            count += _number(content, place + 5, 2) * _number(content, place + 7, 2)
            place = _after_blocks(content, place + 11 + _colours(content, place + 9))
        elif kind == 0x21:
            place = _after_blocks(content, place + 2)
        else:
            break  # the trailer, or what no decoder reads
    return count


def _colours(content: bytes, place: int) -> int:
    """The bytes of the colour table that the flags at `place` announce."""
    flags = _number(content, place, 1)
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(content: bytes, place: int) -> int:
    while place < len(content) and (length := content[place]):
        place += length + 1
    return place + 1


def _of_webp(content: bytes) -> int:
    """The largest of the sizes that its first chunks state; see RFC 9649 and RFC 6386, section 9.1."""
    largest, place = 0, 12
    for _ in range(64):  # chunks; a still photo has a handful
        if place + 8 > len(content):
            break
        kind, length, start = content[place : place + 4], _number(content, place + 4, 4), place + 8
        if kind == b"VP8X":
            largest = max(largest, (1 + _number(content, start + 4, 3)) * (1 + _number(content, start + 7, 3)))
        elif kind == b"VP8 ":
            width, height = (_number(content, start + at, 2) & 0x3FFF for at in (6, 8))
            largest = max(largest, width * height)
        elif kind == b"VP8L":
            bits = _number(content, start + 1, 4)
            largest = max(largest, (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF)))
        place = start + length + length % 2
    return largest
