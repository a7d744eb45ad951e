"""Lists folders of S3 buckets, large ones in several ranges of names at a time.

A page of S3 has 1,000 names and says where the next page begins. So the pages of a folder would be
requested one after the other. But S3 can also begin after any text (`StartAfter`). So a range of
names is split while it is listed: another request begins at a text further on, and the first one
goes on up to there. It does not matter whether a name begins with that text. If there is nothing
behind it, the first range ends there, and the next split is nearer.

Where to split is a guess. The characters that vary among the names found so far, such as digits,
are taken to be spread evenly. A bad guess costs a request, and never a name.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

AT_ONCE = 10
"""The requests at a time, which is botocore's default number of connections."""

_FREE_SPLITS = 32
"""The splits in excess of the pages with names. So few requests find nothing."""

_UNORDERED = "--x-s3"
"""The end of the names of directory buckets, which list names in no order and from the start."""


@dataclass
class _Folder:
    """A folder of a bucket.

    Attributes:
        path: The path, as fsspec has it.
        bucket: The bucket.
        prefix: The beginning of all keys in the folder.
        is_ordered: Whether its names come in order.
        can_split: Whether they also begin where they shall.
        is_split: Whether it is listed in several ranges.
        varying: The characters that vary among its names.
    """

    path: str
    bucket: str
    prefix: str
    is_ordered: bool
    can_split: bool = True
    is_split: bool = False
    varying: set[str] = field(default_factory=set)


@dataclass
class _Range:
    """A range of the names in a folder.

    Attributes:
        folder: The folder.
        start: The range begins behind this text. It moves on with each page.
        end: The range ends with this text, or with the folder if it is None.
        token: What S3 wants to be told for the next page; None for the first page.
    """

    folder: _Folder
    start: str = ""
    end: str | None = None
    token: str | None = None

    def holds(self, name: str) -> bool:
        """Return whether a name is in the range, and not yet listed."""
        if not self.folder.is_ordered:  # such a folder is one range
            return True
        return self.start < name and (self.end is None or name <= self.end)

    def study(self, page: dict[str, Any], names: Collection[str]) -> None:
        """Note what a page tells about the folder.

        Raises:
            OSError: Names have come in order before, and now they do not.
        """
        folder, keys = self.folder, [each["Key"] for each in page.get("Contents", ())]
        is_before = any("" < name <= self.start for name in names)
        if keys != sorted(keys) or (is_before and self.token and folder.can_split):
            if folder.is_ordered and folder.is_split:
                raise OSError(f"{folder.path}: the store lists names in order, and then not")
            folder.is_ordered = False
        elif self.token is None:
            folder.can_split &= not is_before
            for column in zip(*names, strict=False):
                if len(found := set(column)) > 1:
                    folder.varying |= found
            folder.varying.discard("/")

    def goes_on(self, page: dict[str, Any], names: Collection[str]) -> bool:
        """Move behind the names of a page. Return whether there are more in the range."""
        last = max(names, default=self.start)
        if not page["IsTruncated"] or (self.end is not None and last >= self.end):
            return False
        self.start, self.token = max(self.start, last), page["NextContinuationToken"]
        return True

    def split(self) -> tuple[float, str]:
        """Return the share of all possible names that is left here, and a text that halves it.

        What follows `abc` begins with `ab` and a character after `c`, or with `a` and one after
        `b`, or with one after `a`. With n characters that vary, a beginning of k characters has
        a share of n to the power of -k. Without a place to split, the share is 0.
        """
        if self.token is None or not (self.folder.is_ordered and self.folder.can_split):
            return 0.0, ""
        characters, last = sorted(self.folder.varying), self.start.rstrip("/")
        places = [
            (len(characters) ** -float(k + 1), last[:k] + character)
            for k in range(len(last) - 1, -1, -1)
            for character in characters
            if character > last[k] and (self.end is None or last[:k] + character < self.end)
        ]
        total = sum(share for share, _ in places)
        below = 0.0
        for share, place in places:
            below += share
            if below >= total / 2:
                return total, place
        return 0.0, ""


def lists_ranges(filesystem: Any) -> bool:
    """Return whether `list_folders` can list a file system: s3fs, without old versions."""
    return hasattr(filesystem, "call_s3") and not filesystem.version_aware


def list_folders(filesystem: Any, paths: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files and folders in some folders, in no particular order.

    Args:
        filesystem: An `s3fs.S3FileSystem`.
        paths: The folders, each as a bucket and a prefix without a slash at its end.

    Yields:
        The folder, and what `filesystem.ls` reports about an entry: its name, type, size, and last
        change.

    Raises:
        FileNotFoundError: A folder does not exist.
        OSError: A request fails, or the store changes the order of names.
    """
    waiting = [_Range(_folder(filesystem, path)) for path in paths]
    running: dict[Future[dict[str, Any]], _Range] = {}
    splits = _FREE_SPLITS
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while waiting or running:
            while len(running) < AT_ONCE:
                if waiting:
                    part = waiting.pop()
                elif splits > 0 and (split := _split(running.values())):
                    part = split
                    splits -= 1
                else:
                    break
                running[pool.submit(_page, filesystem, part)] = part
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                part, page = running.pop(future), future.result()
                folder, entries = part.folder, _entries(part.folder, page)
                part.study(page, entries)
                if not entries and not part.start and part.token is None:  # missing, or a file
                    about = filesystem.ls(folder.path, detail=True)
                    yield from ((folder.path, each) for each in about)
                found = [name for name in entries if part.holds(name)]
                splits += bool(found)
                yield from ((folder.path, entries[name]) for name in found)
                if part.goes_on(page, entries):
                    waiting.append(part)


def _folder(filesystem: Any, path: str) -> _Folder:
    bucket, prefix, _ = filesystem.split_path(path)
    return _Folder(path, bucket, f"{prefix}/" if prefix else "", not bucket.endswith(_UNORDERED))


def _split(running: Iterable[_Range]) -> _Range | None:
    """Take the second half of the largest range; None if none can be split."""
    (share, place), part = max(
        ((part.split(), part) for part in running), key=lambda found: found[0][0]
    )
    if not share:
        return None
    new = _Range(part.folder, place, part.end)
    part.end, part.folder.is_split = place, True
    return new


def _page(filesystem: Any, part: _Range) -> dict[str, Any]:
    """Request the next page of a range."""
    folder = part.folder
    begin = {"StartAfter": folder.prefix + part.start} if part.start else {}
    where = {"ContinuationToken": part.token} if part.token else begin
    page: dict[str, Any] = filesystem.call_s3(
        "list_objects_v2", Bucket=folder.bucket, Prefix=folder.prefix, Delimiter="/", **where
    )
    return page


def _entries(folder: _Folder, page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a page has, as `ls` reports it, by the name in the folder."""
    found: dict[str, dict[str, Any]] = {}
    for each in page.get("Contents", ()):
        about = {key: each[key] for key in ("LastModified", "ETag") if key in each}
        name = f"{folder.bucket}/{each['Key']}"
        found[each["Key"]] = {"name": name, "type": "file", "size": each["Size"], **about}
    for each in page.get("CommonPrefixes", ()):
        name = f"{folder.bucket}/{each['Prefix'][:-1]}"
        found[each["Prefix"]] = {"name": name, "type": "directory", "size": 0}
    return {key[len(folder.prefix) :]: found[key] for key in sorted(found)}
