"""Two replicas take the same steps as one; logical devices need a process of their own."""

from pathlib import Path

import pytest
from processes import output_of


def agree(script, *arguments):
    assert "replicas agree" in output_of(Path(__file__).with_name(script), *arguments)


@pytest.mark.parametrize(
    "rules",
    [
        ["bp", "usf"],
        ["fa", "frsf", "brsf"],
        ["kp", "drtp"],
        ["wm"],
        ["dfa", "dfa_shared"],
        ["dfa_regenerated"],
        ["tp", "dtp", "sdtp"],
        ["ao_sdtp", "ddtp"],
        ["ldrl"],
    ],
    ids=" ".join,
)
def test_two_replicas_equal_one(rules):
    """Several rules a process, which takes as long to start as a rule takes."""
    agree("replicas.py", *rules)


def test_two_replicas_of_streamed_pictures_equal_one(tmp_path):
    agree("streamed_replicas.py", str(tmp_path))


def test_a_last_batch_that_leaves_a_replica_no_example(tmp_path):
    agree("replicas_without_examples.py", str(tmp_path))


def test_moving_statistics_are_those_of_all_replicas(tmp_path):
    agree("replicated_statistics.py", str(tmp_path))


def test_figures_saved_in_the_middle_of_an_epoch_are_the_undisturbed_ones(tmp_path):
    agree("replicated_averages.py", str(tmp_path))


def test_feedback_within_composite_and_subclassed_models():
    agree("replicated_feedback.py")
