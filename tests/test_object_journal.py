"""The journal of a study in object storage: the same entries as in a file, and one writer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.folders import Folder, folder_at
from pipeline.errors import UserError
from pipeline.runs.storage import names, read_bytes, remove, write_bytes
from pipeline.tuning import journal_lines
from pipeline.tuning.journal import Failure, Report, StudyJournal
from pipeline.tuning.journal_lines import has_journal

ENTRIES = [
    Report(0, 1, 0.5, False),
    Report(1, 1, None, True),
    Failure(2, "lower it — Größe"),
    *(Report(3, epoch, epoch / 8, False) for epoch in range(1, 5)),
]


@pytest.fixture(params=["s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "memory":
        return folder_at(f"memory://{tmp_path.name}/study")
    return folder_at(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


@pytest.fixture
def filled(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A journal of three objects, whose study was cut off after each entry and went on."""
    monkeypatch.setattr(journal_lines, "LINES_PER_OBJECT", 3)
    for entry in ENTRIES:
        StudyJournal(folder).append(entry)
    return folder


def test_it_reads_what_was_written_before_each_cut(filled: Folder, tmp_path: Path) -> None:
    local = StudyJournal(tmp_path)
    for entry in ENTRIES:
        local.append(entry)
    journal = StudyJournal(filled)
    assert (journal.reports, journal.errors) == (local.reports, local.errors)
    assert len(journal.reports) + len(journal.errors) == len(ENTRIES)
    objects = names(filled / "reports")
    assert objects == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    content = b"".join(read_bytes(filled / "reports" / name, 1 << 20) for name in objects)
    assert content == (tmp_path / "reports.jsonl").read_bytes()


def test_a_study_that_was_killed_before_its_first_report_has_a_journal(folder: Folder) -> None:
    assert not has_journal(folder)
    StudyJournal(folder)
    assert has_journal(folder)
    StudyJournal(folder).append(ENTRIES[0])
    assert StudyJournal(folder).reports == ENTRIES[:1]


@pytest.mark.parametrize("entries", [0, 1, 3])
def test_of_two_studies_that_write_at_once_one_stops(
    entries: int, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_lines, "LINES_PER_OBJECT", 3)
    one = StudyJournal(folder)
    for entry in ENTRIES[:entries]:
        one.append(entry)
    other = StudyJournal(folder)
    one.append(Report(7, 1, 0.5, False))
    with pytest.raises(UserError, match="another command has written to this study; wait"):
        other.append(Report(8, 1, 0.5, False))
    assert StudyJournal(folder).epochs(7) == 1 and StudyJournal(folder).epochs(8) == 0


def cut(folder: Folder) -> None:
    write_bytes(folder / "reports" / "00002.jsonl", b'{"trial": 3, "epo')


def damage(folder: Folder) -> None:
    write_bytes(folder / "reports" / "00000.jsonl", b"[]\n" * 3)


def lose(folder: Folder) -> None:
    remove(folder / "reports" / "00001.jsonl")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(cut, "line 7 is damaged"), (damage, "line 1 is damaged"), (lose, "an object .* is missing")],
)
def test_what_no_kill_can_leave_is_refused(
    spoil: Callable[[Folder], None], told: str, filled: Folder
) -> None:
    spoil(filled)
    with pytest.raises(UserError, match=rf"reports: {told}.*--fresh"):
        StudyJournal(filled)
