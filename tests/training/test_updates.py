"""One update path on two replicas; logical devices need a process of their own."""

from pathlib import Path

import pytest
from processes import output_of


@pytest.mark.parametrize("rules", [["bp", "kp"], ["fa", "dfa", "dtp"]], ids=" ".join)
def test_two_replicas_equal_one_by_trainer_and_learner(rules):
    """Clipped, in float16, where an overflow on one replica skips the step on both."""
    assert "replicas agree" in output_of(Path(__file__).with_name("replicated_updates.py"), *rules)


def test_metrics_and_predictions_of_two_replicas_are_those_of_one(tmp_path):
    """Resumed within an epoch too; what can't be exact is refused."""
    assert "replicas agree" in output_of(Path(__file__).with_name("replicated_updates.py"), "metrics", str(tmp_path))
