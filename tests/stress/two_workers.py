"""Trains under every rule with two worker processes and with one, and compares weights, feedback and figures.

    python tests/stress/two_workers.py

What `tests/training/test_workers.py` does for some: 27 images in batches of 8, so that the last batch is a partial one,
AdamW, two epochs, evaluation and alignment. Not in the default test run: a rule takes half a minute.
"""

import os
import runpy
import sys
import tempfile
from pathlib import Path

os.environ.update({"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"})

RULES = ["bp", "fa", "usf", "brsf", "frsf", "kp", "wm", "dfa", "dfa_shared", "dfa_regenerated", "dfa_broadcast", "drtp"]
RULES += ["tp", "dtp", "sdtp", "ao_sdtp", "ddtp", "ldrl", "fa streamed", "dfa streamed", "fa pictures"]


def main() -> None:
    tests = Path(__file__).parent.parent
    sys.path.append(str(tests))
    compare = runpy.run_path(str(tests / "training" / "test_workers.py"))["test_two_workers_equal_one"]
    failed = []
    for rule in RULES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                compare(rule, Path(folder))
            except Exception as error:  # the others are tried too
                failed.append(rule)
                print(f"{rule}: {error}", flush=True)
            else:
                print(f"{rule}: two workers agree with one", flush=True)
    sys.exit(f"{len(failed)} failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
