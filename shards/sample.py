"""A sample to be written into a shard."""

import re
from dataclasses import dataclass

from shards.errors import ShardError
from shards.plain import is_member, is_sha256

MAX_NAME_BYTES = 100
"""The length of the name field in a ustar header."""

MAX_MEMBER_BYTES = 8**11 - 1
"""The largest value of the size field in a ustar header: eleven octal digits."""

KEY_PATTERN = r"\A[^./\x00-\x1f\x7f-\x{9f}]+\z"
"""A valid key, as a regular expression for Arrow: not empty, and without these characters."""

_FORBIDDEN_IN_KEY = re.compile(r"[./\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Python's replacement for a byte that is not UTF-8."""


@dataclass(frozen=True)
class Sample:
    """A key and its members as bytes. In a tar, each member is the file KEY.MEMBER.

    Attributes:
        key: The key, unique within its shard. It has no '.', '/' or control characters, because
            WebDataset takes the part of a file's name before the first dot as the key.
        members: Maps a file extension ("image.npy", "audio.npy", "cls", "json") to content. There
            is at least one. Extensions are in lower case, because WebDataset converts them. A name
            KEY.MEMBER has at most 100 bytes of UTF-8, and a content has less than 8 GiB.
        target: The class number (int64), or None for a sample without a class.
        source_uri: The file or row that the sample was made from. UTF-8 can encode it.
        source_sha256: The sha256 of the source's bytes, 64 hexadecimal digits.

    Raises:
        ShardError: A key, member name or sha256 breaks the rules above.
    """

    key: str
    members: dict[str, bytes]
    target: int | None
    source_uri: str
    source_sha256: str

    def __post_init__(self) -> None:
        if not self.key or _FORBIDDEN_IN_KEY.search(self.key):
            raise self._refused(
                "keys are not empty and have no '.', '/' or control characters; rename it"
            )
        if not is_sha256(self.source_sha256):
            raise self._refused("its source's sha256 is not 64 hexadecimal digits; correct it")
        if _SURROGATE.search(self.source_uri):
            raise self._refused("its source's name is not UTF-8; rename the source")
        if not self.members:
            raise self._refused("it has no members; give it at least one")
        for member, content in self.members.items():
            if not is_member(member):
                raise self._refused(
                    f"member {member!r} is not lower-case letters and digits "
                    "with single '.', '_' or '-' between; rename it"
                )
            if len(f"{self.key}.{member}".encode()) > MAX_NAME_BYTES:
                raise self._refused(
                    f"with member {member!r} its name exceeds {MAX_NAME_BYTES} bytes; "
                    "shorten the key"
                )
            if len(content) > MAX_MEMBER_BYTES:
                raise self._refused(f"member {member!r} exceeds 8 GiB; cut the source into parts")

    def _refused(self, why: str) -> ShardError:
        return ShardError(f"sample {self.key!r} from {self.source_uri!r}: {why}")
