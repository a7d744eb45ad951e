"""What cannot be read as streams is refused before anything is read."""

import re
from pathlib import Path
from typing import Any

import pytest
from test_train_streams import config_of

from pipeline.config.load import validate
from pipeline.errors import UserError


@pytest.mark.parametrize(("change", "reason"), [
    ({"data": {"text": {"max_length": 32}}}, "data.text does not cut its files"),
    ({"training": {"batch_size": 63}}, "gradient_accumulation_steps x stream.parts_per_step = 2"),
    ({"training": {"augment": {"views": 2, "mask_bytes": 0.1}}}, "augment.views repeats"),
    ({"training": {"balance_classes": 0.5}}, "training.balance_classes draws samples several"),
    ({"training": {"augment": {"mixup": 0.2}}}, "mixup"),
    ({"training": {"compile": "default"}}, "training.compile does not take training.stream"),
    ({"objective": {"kind": "masked_language"}, "data": {"target": {"kind": "none"}}},
     "training.stream is for the objectives 'classify' and 'regress'"),
])  # fmt: skip
def test_what_cannot_be_read_as_streams_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    tree = config_of(tmp_path, stream={"parts_per_step": 2}).tree()
    for section, fields in change.items():
        tree[section] = {**(tree[section] or {}), **fields}
    with pytest.raises(UserError, match=re.escape(reason)):
        validate(tree, "changed")
