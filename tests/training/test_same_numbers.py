"""`Trainer` and `Learner` give the same numbers: clipped, in float16, with a last batch that is not full."""

import pytest
import same_numbers
import tensorflow as tf


@pytest.mark.parametrize("setting", ["plain", "global_clipnorm", "float16"])
@pytest.mark.parametrize("rule", same_numbers.RULES)
def test_trainer_is_learner(rule, setting):
    strategy = tf.distribute.get_strategy()
    results = [make(strategy, rule, setting) for make in (same_numbers.by_trainer, same_numbers.by_learner)]
    same_numbers.assert_same(*results, f"{rule} {setting}")
