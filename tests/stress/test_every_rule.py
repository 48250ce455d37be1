"""Every rule in what the default tests do with one rule of a kind. All take an hour on two cores.

bash launchers/test.sh tests/stress
"""

import pytest
import same_numbers
from rules import test_contract, test_learning
from training import test_accumulation, test_checkpoints, test_replicas, test_updates, test_workers

from tfbio.rules import _NAMES

RULES = pytest.mark.parametrize("rule", _NAMES)
JIT_COMPILE = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])


@pytest.mark.parametrize("name", [*filter(lambda name: name not in test_contract.COMPILED, test_contract.RULES)])
def test_xla_equals_eager(name, float64):
    test_contract.test_xla_equals_eager(name, float64)


@JIT_COMPILE
@RULES
def test_resumed_equals_uninterrupted(tmp_path, rule, jit_compile):
    stop = 1 + list(_NAMES).index(rule) % 13
    test_checkpoints.test_resumed_equals_uninterrupted(tmp_path, rule, stop, jit_compile)


@pytest.mark.parametrize(
    "rule", [rule for rule in _NAMES if rule not in ("ldrl", "ddtp")]
)  # whose noise is a part's own
def test_parts_sum_to_the_batch(rule, float64):
    test_accumulation.test_parts_sum_to_the_batch(rule, float64)


@RULES
def test_parts_sum_to_the_batch_compiled(rule):
    test_accumulation.test_compiled(rule)


@pytest.mark.parametrize("setting", test_replicas.SETTINGS)
@RULES
def test_two_replicas_equal_one(rule, setting, two_replicas):
    test_replicas.test_two_replicas_equal_one(rule, *test_replicas.SETTINGS[setting], two_replicas)


@pytest.mark.parametrize("setting", same_numbers.SETTINGS)
@pytest.mark.parametrize("rule", same_numbers.RULES)
def test_two_replicas_equal_one_by_trainer_and_learner(rule, setting, two_replicas):
    test_updates.test_two_replicas_equal_one_by_trainer_and_learner(rule, setting, two_replicas)


@pytest.mark.parametrize("rule", [*_NAMES, "fa streamed", "dfa streamed", "fa pictures"])
def test_two_workers_equal_one(rule, tmp_path):
    """27 images in batches of 8, so that the last batch is a partial one, AdamW, evaluation and alignment."""
    full = test_workers.with_pictures(rule, tmp_path)
    test_workers.finish(test_workers.start_runs((full, tmp_path / rule, 2)))
    test_workers.assert_equal_one(rule, tmp_path, tmp_path / "alone")


@pytest.mark.parametrize(("rule", "params"), test_learning.OTHERS.items(), ids=test_learning.OTHERS)
def test_the_first_layer_learns(rule, params, tmp_path):
    test_learning.test_the_first_layer_learns(rule, params, tmp_path)
