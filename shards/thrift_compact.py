"""Read Thrift's compact protocol, which Parquet uses for its footer and page headers."""

from typing import Any, TypeAlias

INT32, INT64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
"""The kinds of fields that matter here. The content of binary and other kinds is skipped."""

_BOOLEANS = (1, 2)
_MAX_DEPTH = 16

Struct: TypeAlias = dict[tuple[int, int], Any]
"""The fields of a struct by number and kind: integers, structs, and lists of structs."""

Lists: TypeAlias = dict[int, Any]
"""The lists and structs that a struct may contain, by field number.

For a list, the value is the kind of its elements. If the elements are structs, it is the tuple
`(lists,)`, where `lists` describes their fields. For a struct, it is the `Lists` of that struct.
"""


class CompactReader:
    """Read structs from bytes exactly as Thrift's own code does, or raise an error.

    Thrift's generated code assumes the expected kind of a list's elements and ignores the kind that
    the list declares. `Lists` states the expected kinds, and a list that declares another kind is
    rejected.

    Attributes:
        offset: The offset of the next byte.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def struct(self, lists: Lists, depth: int = 0) -> Struct:
        """Read the struct that begins at `offset`. If a field occurs twice, the later one counts.

        Args:
            lists: The lists that the struct may contain.
            depth: The number of structs and lists around this struct.

        Raises:
            IndexError: The bytes end before the struct does.
            ValueError: The bytes are not a valid struct.
        """
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        data = self._data
        fields: Struct = {}
        number = 0
        while head := data[self.offset]:
            self.offset += 1
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            if not -(1 << 15) <= number < 1 << 15:
                raise ValueError("a field's number is out of range")
            if kind in (INT32, INT64):
                # Most fields are numbers of one byte, which need no call.
                if (byte := data[self.offset]) < 128:
                    self.offset += 1
                    fields[number, kind] = (byte >> 1) ^ -(byte & 1)
                    continue
            elif kind == BINARY:
                self._skip(self._varint())
                continue
            value = self._value(kind, lists.get(number), depth)
            if value is not None:
                fields[number, kind] = value
        self.offset += 1
        return fields

    def _value(self, kind: int, expected: Any, depth: int) -> Any:
        if kind == INT32:
            value = self._zigzag()
            if not -(1 << 31) <= value < 1 << 31:
                raise ValueError("an integer of more than 32 bits")
            return value
        if kind == INT64:
            return self._zigzag()
        if kind == STRUCT:
            return self.struct(expected if isinstance(expected, dict) else {}, depth + 1)
        if kind == LIST:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return self._list(count, head & 15, expected, depth)
        self._pass_over(kind, depth)
        return None

    def _list(self, count: int, kind: int, expected: Any, depth: int) -> list[Struct]:
        structs = expected[0] if isinstance(expected, tuple) else {}
        wanted = STRUCT if isinstance(expected, tuple) else expected
        if isinstance(wanted, int) and kind != wanted:
            raise ValueError("a list is of another kind")
        if wanted == STRUCT and kind == STRUCT:
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
            return [self.struct(structs, depth + 2) for _ in range(count)]
        for _ in range(count):
            self._element(kind, structs, depth)
        return []

    def _element(self, kind: int, structs: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in _BOOLEANS:
            self._skip(1)
            return None
        return self._value(kind, structs, depth + 1)

    def _pass_over(self, kind: int, depth: int) -> None:
        match kind:
            case 1 | 2:  # the kind of a boolean field is its value
                pass
            case 3:
                self._skip(1)
            case 4:
                self._varint()
            case 7:
                self._skip(8)
            case 8:
                self._skip(self._varint())
            case 10:
                head = self._byte()
                count = head >> 4 if head >> 4 < 15 else self._varint()
                self._list(count, head & 15, None, depth)
            case 11:
                if count := self._varint():
                    kinds = self._byte()
                    for _ in range(count):
                        self._element(kinds >> 4, {}, depth)
                        self._element(kinds & 15, {}, depth)
            case 13:
                self._skip(16)
            case _:
                raise ValueError(f"a field of the unknown kind {kind}")

    def _byte(self) -> int:
        byte = self._data[self.offset]
        self.offset += 1
        return byte

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self.offset:
            raise IndexError("the bytes end too soon")
        self.offset += count

    def _varint(self) -> int:
        data, offset = self._data, self.offset
        value = 0
        for shift in range(0, 70, 7):
            byte = data[offset]
            offset += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self.offset = offset
                return value
        raise ValueError("an integer of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
