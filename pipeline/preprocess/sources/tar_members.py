"""Reads the headers of a tar without trusting them.

Names are never used as paths, and nothing is unpacked. A header cannot make the reader read more
than `MAX_EXTENSION_BYTES` at once.
"""

from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
MAX_MEMBER_BYTES = 2 * 1024**3
MAX_NAME_BYTES = 4096
_SPARSE = b"GNU.sparse."
_REGULAR = (b"0", b"\0", b"7")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"D": "a list of an incremental dump",
    b"M": "the rest of a file in another volume",
    b"V": "a volume's name",
}


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: The name as the tar has it.
        offset: The offset of its bytes in the tar.
        length: The number of its bytes.
        reason: Why it cannot be used, or None.
    """

    name: bytes
    offset: int
    length: int
    reason: str | None


class DamagedTarError(ValueError):
    """The tar cannot be read beyond this byte; the text says where and why."""


def tar_members(file: IO[bytes], size: int) -> Iterator[Member]:
    """Yield the files, links and devices in a tar, in order. Folders are left out.

    The caller may read and seek the file between two members.

    Args:
        file: The tar, open at any position.
        size: The length of the tar in bytes.

    Raises:
        DamagedTarError: The tar is damaged. All members before the damage were yielded.
    """
    offset = 0
    long_name: bytes | None = None
    extended: dict[bytes, bytes] = {}
    defaults: dict[bytes, bytes] = {}
    while True:
        header = _read(file, offset, BLOCK)
        if not header:
            raise DamagedTarError(f"it ends at byte {offset} without an end mark")
        if len(header) < BLOCK:
            raise DamagedTarError(f"it is cut short at byte {offset + len(header)}")
        if not any(header):
            return
        kind, length = _check(header, offset)
        if b"size" in extended:
            length = _decimal(extended[b"size"], offset)
        start = offset + BLOCK
        if length > size - start:
            raise DamagedTarError(
                f"the member at byte {offset} has {length} bytes, and {size - start} are left"
            )
        offset = start + -(-length // BLOCK) * BLOCK
        if kind in (b"L", b"x", b"g"):
            if length > MAX_EXTENSION_BYTES:
                raise DamagedTarError(
                    f"the header at byte {start - BLOCK} has {length} bytes, more than "
                    f"{MAX_EXTENSION_BYTES}"
                )
            data = _read(file, start, length)
            if kind == b"L":
                long_name = data.rstrip(b"\0")
            elif kind == b"x":
                extended = _records(data, start)
            else:
                defaults |= _records(data, start)
            continue
        if kind == b"K":  # the target of a long link
            continue
        records = defaults | extended
        name = records.get(b"path") or long_name or _name(header)
        long_name, extended = None, {}
        if kind == b"5" or (kind == b"\0" and name.endswith(b"/")):
            continue
        if len(name) > MAX_NAME_BYTES:
            too_long = f"a name of {len(name)} bytes, more than {MAX_NAME_BYTES}"
            yield Member(name, start, length, too_long)
            continue
        reason = None if kind in _REGULAR else f"{_KINDS.get(kind, 'of an unknown kind')} in a tar"
        if _SPARSE in records:
            reason = "a sparse file in a tar"
        elif reason is None and length > MAX_MEMBER_BYTES:
            reason = f"{length} bytes, more than {MAX_MEMBER_BYTES}"
        yield Member(name, start, length, reason)


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _check(header: bytes, offset: int) -> tuple[bytes, int]:
    """Check a header's checksum; return the member's kind and length."""
    stored = header[148:156].strip(b" \0")
    try:
        wanted = int(stored, 8)
    except ValueError:
        raise DamagedTarError(f"no tar header at byte {offset}") from None
    if wanted != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise DamagedTarError(f"the checksum of the header at byte {offset} is wrong")
    return header[156:157], _number(header[124:136], offset)


def _number(field: bytes, offset: int) -> int:
    """Read octal digits, or the binary form that GNU tar and star use for large numbers."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True) & ((1 << 95) - 1)
        if field[0] == 0xFF:
            raise DamagedTarError(f"the header at byte {offset} has a negative length")
        return value
    digits = field.strip(b" \0")
    try:
        value = int(digits or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise DamagedTarError(f"the header at byte {offset} has no length")
    return value


def _decimal(digits: bytes, offset: int) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise DamagedTarError(f"the extended header before byte {offset} has no length")
    return int(digits)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    # GNU tar stores times where ustar stores the start of the path.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Read the `LENGTH KEY=VALUE` lines of an extended header."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise DamagedTarError(f"the extended header at byte {offset} is damaged")
        end = position + int(digits)
        line = data[position + len(digits) + 1 : end]
        key, equals, value = line.partition(b"=")
        if end <= position or end > len(data) or not equals or not value.endswith(b"\n"):
            raise DamagedTarError(f"the extended header at byte {offset} is damaged")
        # Only the keys that are used are kept: a tar may have any number of others.
        if key in (b"path", b"size"):
            records[key] = value[:-1]
        elif key.startswith(_SPARSE):
            records[_SPARSE] = b""
        position = end
    return records
