"""Every rule in what the default tests do with one rule of a kind. All take half an hour on two cores.

bash launchers/test.sh tests/stress
"""

import pytest
from rules import test_contract
from training import test_checkpoints

from tfbio.rules import _NAMES

RULES = [name for name in test_contract.RULES if name not in test_contract.COMPILED]


@pytest.mark.parametrize("name", RULES)
def test_xla_equals_eager(name, float64):
    test_contract.test_graphs_and_xla_equal_eager(test_contract.RULES[name], True, float64)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("number", "rule"), list(enumerate(_NAMES, 1)), ids=_NAMES)
def test_resumed_equals_uninterrupted(tmp_path, number, rule, jit_compile):
    test_checkpoints.test_resumed_equals_uninterrupted(tmp_path, rule, 1 + number % 13, jit_compile)
