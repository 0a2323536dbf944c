"""What a file is, by its first bytes, and what to do with one that is no photo: its name may say anything."""

from __future__ import annotations

# Larger than any photo, and smaller than what would fill the memory of a laptop when some are decoded at once.
LARGEST = 1 << 30  # bytes
TOO_LARGE = "larger than 1 GiB, which no photo is; move it elsewhere"
HEAD = 512  # bytes that `reason` looks at

_CONVERT = "convert it to JPEG"
_PHOTOS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}
_OTHERS = {  # what the file begins with
    b"II*\x00": f"a TIFF file or a camera's raw photo; {_CONVERT}",
    b"MM\x00*": f"a TIFF file or a camera's raw photo; {_CONVERT}",
    b"II+\x00": f"a TIFF file; {_CONVERT}",
    b"MM\x00+": f"a TIFF file; {_CONVERT}",
    b"IIU\x00": f"a camera's raw photo; {_CONVERT}",
    b"IIRO": f"a camera's raw photo; {_CONVERT}",
    b"FUJIFILMCCD-RAW": f"a camera's raw photo; {_CONVERT}",
    b"\x00\x00\x00\x0cjP  ": f"a JPEG 2000 photo; {_CONVERT}",
    b"\xff\x4f\xff\x51": f"a JPEG 2000 photo; {_CONVERT}",
    b"\x00\x00\x00\x0cJXL ": f"a JPEG XL photo; {_CONVERT}",
    b"\xff\x0a": f"a JPEG XL photo; {_CONVERT}",
    b"8BPS": f"a Photoshop file; {_CONVERT}",
    b"\x00\x00\x01\x00": f"an icon; {_CONVERT}",
    b"%PDF": f"a PDF file; {_CONVERT}",
    b"version https://git-lfs": "a Git LFS pointer instead of the photo; run git lfs pull",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x1aE\xdf\xa3": "a video; take photos from it",
    b"\x00\x00\x01\xba": "a video; take photos from it",
    b"\x00\x00\x01\xb3": "a video; take photos from it",
    b"FLV": "a video; take photos from it",
}
# Files of "boxes" begin with one that names their brands: ISO/IEC 14496-12, section 4.3.
_BRANDS = (
    ((b"avif", b"avis"), f"an AVIF photo; {_CONVERT}"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), f"a HEIC photo; {_CONVERT}"),
    ((b"crx ",), f"a camera's raw photo; {_CONVERT}"),
)
_TEXTS = {
    b"<svg": f"an SVG drawing; {_CONVERT}",
    b"<html": "a web page instead of the photo; download it again",
    b"<!doctype html": "a web page instead of the photo; download it again",
    b"<?xml": "an XML file; move it elsewhere",
}


def is_photo(head: bytes) -> bool:
    """Whether a file that begins with `head`, 4 bytes or more, may be a photo of a kind that is read."""
    return head.startswith((*_PHOTOS, b"RIFF"))


def reason(head: bytes, message: str = "") -> str:
    """Why a file that begins with `head`, up to HEAD bytes, cannot be read as a photo; `message` is the decoder's."""
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "the file begins with zeros, as after a copy that was cut off; copy it again"
    if head.startswith(b"RIFF"):
        is_webp = head[8:12] == b"WEBP"
        return _broken("WebP", message) if is_webp else "a video or sound; take photos from it"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[start : start + 4] for start in (8, *range(16, end, 4))}
        return next((what for names, what in _BRANDS if brands & {*names}), "a video; take photos from it")
    for magic, kind in _PHOTOS.items():
        if head.startswith(magic):
            return _broken(kind, message)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return what
    text = head[:HEAD].lower()
    return next((what for mark, what in _TEXTS.items() if mark in text), "not a JPEG, PNG, GIF, BMP or WebP image")


def _broken(kind: str, message: str) -> str:
    return f"broken or unsupported {kind}" + (f" ({message.rstrip('. ')})" if message else "")
