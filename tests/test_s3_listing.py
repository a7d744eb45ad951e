"""Large folders of S3 are listed in ranges: the same names as page by page, each once."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import s3fs

from pipeline.preprocess.sources import s3_listing
from pipeline.preprocess.sources.s3_listing import list_folders
from pipeline.preprocess.sources.walk import File, walk

PAGE, COUNT = 4, 60
draw = random.Random(0)

NAMES: dict[str, Callable[[int], str]] = {
    "numbers": lambda n: f"img_{n:07d}.jpg",
    "numbers-without-zeros": lambda n: f"{n}.jpg",
    "hashes": lambda n: f"{draw.getrandbits(128):032x}.png",
    "dates": lambda n: f"2026-{1 + n % 12:02d}-{1 + n % 28:02d}T{n % 24:02d}:{n}.flac",
    "with-folders": lambda n: f"{n % 30:03d}/{n}.jpg" if n % 2 else f"{n:03d}0.jpg",
    "beyond-ascii": lambda n: f"{'aéж中😀'[n % 5]}{n} +%.jpg",
    "one-name-in-another": lambda n: "a" * (n + 1),
    "a-page": lambda n: f"{n % PAGE}.jpg",
}


@pytest.fixture(scope="module")
def root(s3_bucket: str) -> Iterator[str]:
    """The path of folders in a bucket that gives `PAGE` names at a time."""
    filesystem, path = s3fs.S3FileSystem(), f"{s3_bucket.removeprefix('s3://')}/flat"
    filesystem.pipe({
        f"{path}/{folder}/{name(n)}": b"." * (n % 7)
        for folder, name in NAMES.items()
        for n in range(COUNT)
    })  # fmt: skip
    filesystem.touch(f"{path}/marked/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(PAGE))
        yield path
    filesystem.rm(path, recursive=True)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ranges whose pages are requested."""
    made: list[Any] = []
    request = s3_listing._page
    monkeypatch.setattr(
        s3_listing, "_page", lambda fs, part: (made.append(part), request(fs, part))[1]
    )
    return made


def page_by_page(path: str, monkeypatch: pytest.MonkeyPatch) -> list[File]:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.preprocess.sources.walk.lists_ranges", lambda filesystem: False)
        return sorted(walk(s3fs.S3FileSystem(), path))


@pytest.mark.parametrize("folder", NAMES)
def test_ranges_give_each_name_once(
    folder: str, root: str, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(walk(s3fs.S3FileSystem(), f"{root}/{folder}"))
    assert files == page_by_page(f"{root}/{folder}", monkeypatch)
    assert len({file.path for file in files}) == len(files)
    if folder == "a-page":
        assert len(requests) == 1
    elif folder != "one-name-in-another":
        assert len(set(map(id, requests))) > 5, "ranges were split"


def test_many_folders_are_listed_together(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(walk(s3fs.S3FileSystem(), root))
    assert files == page_by_page(root, monkeypatch)
    assert len(files) == (len(NAMES) - 1) * COUNT + PAGE


def test_a_folder_that_is_missing_is_an_error_as_before(root: str) -> None:
    filesystem = s3fs.S3FileSystem()
    with pytest.raises(FileNotFoundError):
        list(list_folders(filesystem, [f"{root}/none"]))
    assert list(walk(filesystem, f"{root}/marked")) == []


def test_a_store_that_begins_elsewhere_than_asked_loses_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers that speak S3 do not know `StartAfter`."""
    filesystem = s3fs.S3FileSystem()
    call = filesystem.call_s3

    def without_start(method: str, **options: Any) -> Any:
        options.pop("StartAfter", None)
        return call(method, **options)

    expected = page_by_page(f"{root}/numbers", monkeypatch)
    monkeypatch.setattr(filesystem, "call_s3", without_start)
    assert sorted(walk(filesystem, f"{root}/numbers")) == expected


def test_a_store_without_an_order_is_listed_page_by_page(
    root: str, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory bucket names objects in no order."""
    filesystem = s3fs.S3FileSystem()
    call = filesystem.call_s3

    def backwards(method: str, **options: Any) -> Any:
        page = call(method, **options)
        return page | {"Contents": page.get("Contents", [])[::-1]}

    expected = page_by_page(f"{root}/hashes", monkeypatch)
    monkeypatch.setattr(filesystem, "call_s3", backwards)
    assert sorted(walk(filesystem, f"{root}/hashes")) == expected
    assert len(set(map(id, requests))) == 1
