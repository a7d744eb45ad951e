"""``python -m pipeline VERB …``: the entry point of ``ray job submit``."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
