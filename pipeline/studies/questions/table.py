"""The studies by name."""

import difflib

from pipeline.errors import UserError
from pipeline.studies.questions import (
    ablations,
    attention,
    features,
    fourier,
    linear_cost,
    memory,
    modalities,
    peers,
    permuted,
    tables,
)
from pipeline.studies.study import Study

_ALL = (
    ablations,
    attention,
    features,
    fourier,
    linear_cost,
    memory,
    modalities,
    peers,
    permuted,
    tables,
)
STUDIES: dict[str, Study] = {each.STUDY.name: each.STUDY for each in _ALL}


def study_named(name: str) -> Study:
    """Return a study.

    Raises:
        UserError: There is none of this name.
    """
    if name in STUDIES:
        return STUDIES[name]
    close = difflib.get_close_matches(name, STUDIES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(STUDIES)}"
    raise UserError(f"{name!r}: there is no such study; {hint}")
