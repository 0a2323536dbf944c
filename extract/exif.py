"""The EXIF orientation of a photo: graph functions on the bytes of its file, part of every classifier too.

TensorFlow passes through every operation of a branch that is not taken, and any loop or call in it costs a third of the
time of decoding a small photo. So there is neither: one regular expression finds the block, wherever in the file it
stands, and another one its entry. What is broken or missing counts as orientation 1.
"""

from __future__ import annotations

import tensorflow as tf

# Where a block begins: in a segment of a JPEG, a chunk of a PNG, or one of a WebP, into which some programs write what
# belongs into a JPEG only. A TIFF header follows. \C is any byte in RE2, which has no other way to name one above 127.
_BLOCK = r"^\C*?(?:Exif\x00\x00|eXIf|EXIF\C{4})(II\*\x00|MM\x00\*)"
_NAME = r"Exif\x00\x00"
_LONGEST = 1 << 16  # bytes of a block that are looked at: as many as a segment of a JPEG can hold
# The entries of a directory, of 12 bytes each, up to the one with tag 0x0112, type 3 (short) or 4 (long), count 1 and a
# value from 1 to 8, in either byte order (EXIF 2.32, section 4.6).
_ENTRIES = "|".join(
    (
        r"\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00\C\C",
        r"\x12\x01\x04\x00\x01\x00\x00\x00([\x01-\x08])\x00\x00\x00",
        r"\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])\C\C",
        r"\x01\x12\x00\x04\x00\x00\x00\x01\x00\x00\x00([\x01-\x08])",
    )
)
_ENTRIES = rf"^(?:\C{{12}})*?(?:{_ENTRIES})\C*$"


def may_be_in(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a JPEG file's bytes (string scalar) hold the name of an EXIF block anywhere. bool scalar.

    Most images on the web do not, and `regex_replace` finds a literal by memchr.
    """
    without = tf.strings.regex_replace(encoded, _NAME, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(encoded)


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The orientation that a JPEG, PNG or WebP file's bytes (string scalar) state, 1 to 8. int32 scalar."""
    # Nearly all programs put the block near the start, and searching megabytes takes an eighth of their decoding.
    is_near = may_be_in(tf.strings.substr(encoded, 0, _LONGEST))
    encoded = tf.strings.substr(encoded, 0, tf.where(is_near, 2 * _LONGEST, tf.strings.length(encoded)))
    # If the pattern does not match, this is the start of the file, and no TIFF header.
    block = tf.strings.substr(tf.strings.regex_replace(encoded, _BLOCK, r"\1", replace_global=False), 0, _LONGEST)
    is_little, is_big = tf.strings.substr(block, 0, 2) == b"II", tf.strings.substr(block, 0, 2) == b"MM"

    def number(at: tf.Tensor | int, kind: tf.DType) -> tf.Tensor:
        raw = _text(block, at, kind.size)
        little, big = (tf.io.decode_raw(raw, kind, order, fixed_length=kind.size)[0] for order in (True, False))
        return tf.cast(tf.where(is_little, little, big), tf.int64)

    directory = tf.maximum(number(4, tf.int32), 0)
    entries = _text(block, directory + 2, 12 * number(directory, tf.uint16))
    value = tf.strings.regex_replace(entries, _ENTRIES, r"\1\2\3\4", replace_global=False)
    is_valid = (is_little | is_big) & tf.strings.regex_full_match(value, r"[\x01-\x08]")
    return tf.cast(tf.io.decode_raw(tf.where(is_valid, value, b"\x01"), tf.uint8)[0], tf.int32)


def _text(encoded: tf.Tensor, at: tf.Tensor | int, length: tf.Tensor | int) -> tf.Tensor:
    """At most `length` bytes from `at`: fewer where they end. string scalar."""
    at = tf.minimum(tf.cast(at, tf.int64), tf.cast(tf.strings.length(encoded), tf.int64))
    return tf.strings.substr(encoded, at, tf.cast(length, tf.int64))
