"""The elements at the start of a plainly written DICOM file, walked without decoding them.

The headers of a series are nearly all alike: a walk that keeps bytes lets what they mean be worked out once. Whatever
is not plainly written is left to pydicom.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

EXPLICIT_LITTLE = re.compile(r"1\.2\.840\.10008\.1\.2\.(1|4\.\d+|5)")
"""Transfer syntaxes whose elements name their representation and are little endian: uncompressed, and compressed."""
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT = frozenset((
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
))  # fmt: skip
"""Representations with a length of four bytes, and of two (DICOM PS3.5 7.1.2)."""
TEXT = frozenset((b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UN", b"UT"))
"""Representations whose meaning may depend on the character set."""
SYNTAX, FRAMES, PIXELS = 0x00020010, 0x00280008, 0x7FE00010
_ELEMENT = struct.Struct("<HH2sH")


def plain_elements(head: bytes, tags: Collection[int]) -> tuple[dict[int, tuple[bytes, bytes]], str, int] | None:
    """Return the elements at the start of a DICOM file: representation and bytes by tag.

    Args:
        head: the file's first bytes.
        tags: the elements to return.

    Returns:
        The elements, the transfer syntax, and the byte at which PixelData begins. None unless everything before it
        lies in ``head``, is explicit, little endian, in order, of known representations and defined lengths, its text
        ASCII, and the file one frame.

    Source: DICOM PS3.5 7.1 (data elements) and PS3.10 7.1 (file meta information).

    Example:
        >>> plain_elements(b"no DICOM", ()) is None
        True
    """
    if head[128:132] != b"DICM":
        return None
    elements: dict[int, tuple[bytes, bytes]] = {}
    syntax, place, last, end = "", 132, 0, len(head) - 12
    while place <= end:
        group, element, vr, size = _ELEMENT.unpack_from(head, place)
        tag = group << 16 | element
        if tag == PIXELS:
            text = b"".join(value for vr, value in elements.values() if vr in TEXT)
            return (elements, syntax, place) if syntax and text.isascii() and b"\x1b" not in text else None
        if tag <= last or tag == FRAMES or (group > 2 and not syntax):
            return None
        start = place + 8
        if vr in LONG:
            start, size = place + 12, int.from_bytes(head[place + 8 : place + 12], "little")
        elif vr not in SHORT:
            return None
        # an undefined length, 2 ** 32 - 1, ends beyond the head
        last, place = tag, start + size
        if tag == SYNTAX:
            syntax = head[start:place].rstrip(b"\0 ").decode("latin-1")
            if not EXPLICIT_LITTLE.fullmatch(syntax):
                return None
        elif tag in tags:
            elements[tag] = (vr, head[start:place])
    return None


@cache
def tag_of(keyword: str) -> int:
    """Return the number of an element that DICOM names so."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag


def plain_dataset(head: bytes, keywords: Sequence[str]) -> Any | None:
    """Return these elements of a plainly written file as pydicom's dataset, None for any other (``plain_elements``)."""
    found = plain_elements(head, frozenset(tag_of(keyword) for keyword in keywords))
    return None if found is None else as_dataset(found[0])


def as_dataset(elements: Mapping[int, tuple[bytes, bytes]]) -> Any:
    """Return elements (representation and bytes by tag) as pydicom's dataset."""
    import pydicom
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import BaseTag

    data = pydicom.Dataset()
    for tag, (vr, value) in elements.items():
        data[tag] = RawDataElement(BaseTag(tag), vr.decode(), len(value), value, 0, False, True)
    return data
