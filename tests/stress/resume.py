"""Resumes a run of every rule, compiled and not, and compares it bit for bit with the run that never stopped.

    python tests/stress/resume.py --rules dtp sdtp

What `tests/training/test_checkpoints.py` does for one rule of a kind. Not in the default test run: it takes
some minutes.
"""

import argparse
import os
import runpy
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfbio.rules import _NAMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(_NAMES), choices=list(_NAMES))
    tests = runpy.run_path(str(Path(__file__).parents[1] / "training" / "test_checkpoints.py"))
    failed = []
    for number, rule in enumerate(parser.parse_args().rules):
        for jit_compile in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    tests["test_resumed_equals_uninterrupted"](Path(folder), rule, 1 + number % 13, jit_compile)
                except Exception as error:  # the others are tried too
                    failed.append(rule)
                    print(f"{rule}{', compiled' * jit_compile}: {type(error).__name__} {error}", flush=True)
                else:
                    print(f"{rule}{', compiled' * jit_compile}: resumed, it is the undisturbed run", flush=True)
    sys.exit(f"{len(failed)} failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
