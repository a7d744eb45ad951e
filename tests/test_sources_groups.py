"""`data.group`: the samples of a group lie in one split."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from source_trees import (
    classes_of,
    listed,
    make_tar,
    make_tree,
    refusal,
    refused,
    rows,
    uris,
    write_listing,
)

from pipeline.config.load import load_config
from pipeline.preprocess.identity import set_identity


def recordings(root: Path, counts: dict[str, int], cuts: int = 4, start: int = 0) -> Path:
    """Write `counts[CLASS]` recordings of each class, each of as many cuts."""
    for name, count in counts.items():
        for number in range(start, start + count):
            make_tree(root, *(f"{name}/rec{name}{number}_{cut}.png" for cut in range(cuts)))
    return root


def group_of(uri: str) -> str:
    return uri.rsplit("/", 1)[1].split("_")[0]


def held_out(root: Path, **settings: Any) -> set[str]:
    """Return the groups in validation, after checking that none is in training, too."""
    listing = listed(root, **{"validation": 0.2, "group": r"/(rec\w+?\d+)_", **settings})
    groups = [{group_of(uri) for uri in uris(listing, s)} for s in ("train", "validation")]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    return groups[1]


def test_whole_groups_are_held_out_and_each_class_gives_its_share(tmp_path):
    recordings(tmp_path, {"cat": 20, "owl": 10})
    held_out(tmp_path)
    listing = listed(tmp_path, validation=0.2, group=r"/(rec\w+?\d+)_")
    assert Counter(classes_of(listing, "validation").values()) == {"cat": 16, "owl": 8}
    apart = listed(tmp_path, validation=0.2)  # without groups, twins lie on both sides
    sides = [{group_of(uri) for uri in uris(apart, s)} for s in ("train", "validation")]
    assert sides[0] & sides[1]


def test_the_share_is_met_within_a_group_whatever_their_sizes(tmp_path):
    sizes = np.random.default_rng(0).integers(1, 9, 60)
    for number, size in enumerate(sizes.tolist()):
        name = "cat" if number % 3 else "owl"
        make_tree(tmp_path, *(f"{name}/rec{name}{number}_{cut}.png" for cut in range(size)))
    totals = Counter(uri.split("/")[1] for uri in uris(listed(tmp_path), "train"))
    for seed in range(5):
        listing = listed(tmp_path, validation=0.25, group=r"/(rec\w+?\d+)_", seed=seed)
        for name, count in Counter(classes_of(listing, "validation").values()).items():
            assert abs(count - 0.25 * totals[name]) < 3
    assert len({frozenset(held_out(tmp_path, seed=seed)) for seed in range(3)}) == 3


def test_a_group_too_large_for_the_share_is_passed_over(tmp_path):
    make_tree(tmp_path, *(f"cat/recA1_{cut}.png" for cut in range(50)))
    recordings(tmp_path, {"owl": 5, "cat": 10}, cuts=5)
    for seed in range(8):
        assert "recA1" not in held_out(tmp_path, seed=seed)


def test_a_class_of_two_large_groups_has_one_on_each_side_and_of_one_stays_in_training(tmp_path):
    recordings(tmp_path, {"cat": 10})
    recordings(tmp_path, {"owl": 2, "emu": 1}, cuts=30)
    listing = listed(tmp_path, validation=0.1, group=r"/(rec\w+?\d+)_")
    assert Counter(classes_of(listing, "validation").values()) == {"cat": 4, "owl": 30}


def test_groups_of_several_classes_leave_each_class_in_training(tmp_path):
    for number in range(12):
        make_tree(tmp_path, f"cat/p{number}_a.png", f"owl/p{number}_b.png", f"owl/p{number}_c.png")
    make_tree(tmp_path, "emu/p0_d.png", "emu/p1_d.png")
    for seed in range(6):
        listing = listed(tmp_path, validation=0.5, group=r"/(p\d+)_", seed=seed)
        found = [Counter(classes_of(listing, s).values()) for s in ("train", "validation")]
        assert found[0]["emu"] == found[1]["emu"] == 1
        assert found[1]["cat"] in (6, 7) and found[1]["owl"] == 2 * found[1]["cat"]


def test_the_split_depends_on_groups_and_seed_and_not_on_the_place(tmp_path):
    one, two = (recordings(tmp_path / name, {"cat": 12, "owl": 12}) for name in ("a", "b"))
    assert held_out(one) == held_out(two)
    assert held_out(one) != held_out(one, seed=1)


def test_added_files_follow_their_group_and_known_groups_stay(tmp_path):
    recordings(tmp_path, {"cat": 12, "owl": 12})
    settings = {"validation": 0.25, "group": r"/(rec\w+?\d+)_"}
    before = listed(tmp_path, **settings)
    known = before.table.select(["uri", "split"])
    held = held_out(tmp_path, validation=0.25)
    twin = sorted(held)[0]
    make_tree(tmp_path, f"{twin[3:6]}/{twin}_99.png")
    recordings(tmp_path, {"cat": 8}, start=50)
    after = listed(tmp_path, known=known, **settings)
    assert set(uris(before, "validation")) <= set(uris(after, "validation"))
    assert f"validation/{twin[3:6]}/{twin}_99.png" in uris(after, "validation")
    assert set(uris(before, "train")) <= set(uris(after, "train"))
    assert Counter(classes_of(after, "validation").values())["cat"] >= 20


def test_earlier_samples_of_one_group_on_both_sides_are_refused(tmp_path):
    recordings(tmp_path, {"cat": 5, "owl": 5})
    known = pa.table(
        {
            "uri": pa.array([b"train/cat/reccat1_0.png", b"validation/cat/reccat1_1.png"]),
            "split": ["train", "validation"],
        }
    )
    told = refusal(tmp_path, known=known, validation=0.2, group=r"/(rec\w+?\d+)_")
    assert "the group 'reccat1' in train and in validation; make the set again with --" in told


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_column_of_a_listing_names_the_groups(tmp_path, suffix):
    patients = [None if row == 5 else row // 4 for row in range(80)]
    words, kinds = ([f"w{row}" for row in range(80)], ["xy"[row // 4 % 2] for row in range(80)])
    path = write_listing(tmp_path, suffix, {"words": words, "kind": kinds, "patient": patients})
    settings: dict[str, Any] = {"columns": {"text": "words"}, "target": {"column": "kind"}}
    listing = listed(path, ("text",), validation=0.25, group="patient", **settings)
    sides = {
        split: {int(uri.rsplit("#", 1)[1]) // 4 for uri in uris(listing, split)}
        for split in ("train", "validation")
    }
    assert not sides["train"] & sides["validation"] and len(sides["validation"]) in (4, 5, 6)
    assert refused(listing) == {f"train/rows{suffix}#5": "column 'patient' has no value"}
    told = refusal(path, ("text",), validation=0.25, group="doctor", **settings)
    assert "no column 'doctor' (data.group); it has 'words', 'kind', 'patient'" in told


def test_tars_are_grouped_by_the_path_with_that_of_the_tar(tmp_path):
    for tar in range(2):
        members = {
            f"p{number}_{cut}.{kind}": b"x" if kind == "png" else b"%d" % (number % 2)
            for number in range(tar * 10, tar * 10 + 10)
            for cut in range(3)
            for kind in ("png", "cls")
        }
        make_tar(tmp_path / f"{tar}.tar", members)
    listing = listed(tmp_path, layout="tars", validation=0.2, group=r"\.tar/(p\d+)_")
    sides = [{group_of(uri) for uri in uris(listing, s)} for s in ("train", "validation")]
    assert not sides[0] & sides[1] and len(sides[1]) == 4 and len(rows(listing)) == 60


def test_patterns_that_cannot_name_groups_are_refused(tmp_path):
    recordings(tmp_path, {"cat": 3, "owl": 3})
    make_tree(tmp_path, "cat/other.png")
    told = refusal(tmp_path, validation=0.2, group=r"/(rec\w+?\d+)_")
    assert "captures nothing on the path 'cat/other.png'; mend the pattern, or move" in told
    assert "has 0 capturing groups, and needs one" in refusal(tmp_path, test="x", group="/rec")
    assert "has 2 capturing" in refusal(tmp_path, validation=0.2, group="(a)(b)")
    assert "is not a regular expression" in refusal(tmp_path, validation=0.2, group="(rec")
    assert "there is only one; give validation, test" in refusal(tmp_path, group="/(rec)")


def test_too_few_groups_are_refused(tmp_path):
    recordings(tmp_path, {"cat": 3, "owl": 3})
    told = refusal(tmp_path, validation=0.2, group="/(rec)")
    assert "all samples are of one group by data.group ('rec'), and two splits need two" in told
    told = refusal(tmp_path, validation=0.2, group="^([a-z]+)/")
    assert "each class has a single group by data.group, so none can be held out" in told


def test_a_group_in_two_sources_is_refused_by_name(tmp_path):
    train = recordings(tmp_path / "train", {"cat": 2, "owl": 2})
    other = recordings(tmp_path / "other", {"cat": 1}, start=1)
    told = refusal(train, test=str(other), group=r"/(rec\w+?\d+)_")
    assert "1 group lies in several splits ('reccat1' in train and test); move each" in told
    apart = recordings(tmp_path / "apart", {"cat": 1}, start=7)
    counts = listed(train, test=str(apart), group=r"/(rec\w+?\d+)_").counts()
    assert counts == {"train": 16, "test": 4}


def test_a_group_in_two_splits_of_a_column_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"w{row},{'xy'[row % 2]},{('train', 'val')[row > 5]},{row // 2}" for row in range(8)]
    settings: dict[str, Any] = {
        "columns": {"text": "words", "split": "part"}, "target": {"column": "kind"},
        "group": "patient",
    }  # fmt: skip
    path.write_text("\n".join(["words,kind,part,patient", *lines]))
    assert listed(path, ("text",), **settings).counts() == {"train": 6, "validation": 2}
    path.write_text("\n".join(["words,kind,part,patient", *lines, "w8,x,val,0"]))
    told = refusal(path, ("text",), **settings)
    assert "1 group lies in several splits ('0' in train and validation)" in told


def test_sets_without_groups_have_the_identity_of_earlier_ones():
    config = load_config("digits")
    assert "data.group" not in set_identity(config)
    grouped = config.data.model_copy(update={"group": "(x)"})
    assert set_identity(config.model_copy(update={"data": grouped}))["data.group"] == "(x)"
