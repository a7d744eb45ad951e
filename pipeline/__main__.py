"""`python -m pipeline VERB …`: the entry point of `ray job submit`."""

import sys
from pathlib import Path

# `-m` puts the working directory first, where a folder of a package's name would be imported.
_ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0]).resolve() != _ROOT:
    del sys.path[0]

from pipeline.cli.main import main  # noqa: E402  # after the import path is in order

if __name__ == "__main__":
    sys.exit(main())
