"""`python -m benchmarks.gpu`: correctness first, then speed, then tables, in at most 8 minutes."""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.schedule import Place, run_steps
from benchmarks.gpu.steps import STEPS


def main() -> None:
    """Run the steps, and exit with 1 if one failed or had no time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a small model and few pictures, on CPUs, to try it"
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="for all steps (default: 480)")
    parser.add_argument("--folder", type=Path, help="for all files (default: a temporary one)")
    parser.add_argument(
        "--only",
        metavar="STEP,…",
        help=f"some of the steps: {', '.join(step.name for step in STEPS)}",
    )
    args = parser.parse_args()
    names = args.only.split(",") if args.only else [step.name for step in STEPS]
    if unknown := set(names) - {step.name for step in STEPS}:
        parser.error(f"--only: there is no step {', '.join(sorted(unknown))}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="perceiver-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in STEPS if step.name in names]
    sys.exit(0 if run_steps(chosen, Place(folder.absolute(), args.small), args.seconds) else 1)


if __name__ == "__main__":
    main()
