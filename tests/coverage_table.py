"""Which oracle is tried on which rule, feedback and layer: the tables of `docs/coverage.md`.

    python tests/coverage_table.py > docs/coverage.md

They are read off the tests' own parametrisation: a case that a test gains or loses changes the document, and
`test_coverage.py` fails until it is written again. The one thing said here is which tests make up an oracle.
"""

import importlib.util
import inspect
import itertools
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported

import tfbio
from tfbio.layers.traits import registered

TESTS = Path(__file__).parent
ABSTRACT_RULES = (tfbio.rules.LearningRule, tfbio.rules.FeedbackRule)


class Test(NamedTuple):
    """A test function, and the rules that it is about where its parameters do not say so."""

    file: str
    name: str
    rules: tuple[str, ...] = ()


FA, DFA = "rules/test_feedback_alignment.py", "rules/test_direct_feedback_alignment.py"
TARGETS = "rules/test_target_propagation.py"
DIRECT = "rules/test_direct_difference_target_propagation.py"
LOCAL = "rules/test_local_difference_target_propagation.py"
STRESS = "stress/test_every_rule.py"

#: Oracle → tests that count for rules.
ORACLES = {
    "backward weights equal to W: backpropagation": (
        Test(FA, "test_feedback_equal_to_the_kernels_is_backpropagation", ("bp", "fa")),
        Test("rules/test_kolen_pollack.py", "test_with_equal_weights_it_is_backpropagation_and_stays_so", ("kp",)),
        Test(TARGETS, "test_with_the_transposed_jacobian_it_is_backpropagation"),
        Test(DIRECT, "test_with_transposed_products_of_weights_a_linear_net_is_backpropagation", ("ddtp",)),
    ),
    "equal magnitudes: backpropagation": (
        Test("rules/test_sign_symmetry.py", "test_with_equal_magnitudes_it_is_backpropagation", ("usf",)),
    ),
    "kernels above do not change the signal": (
        Test(FA, "test_kernels_above_a_layer_do_not_change_its_signal", ("fa",)),
        Test(FA, "test_the_first_layer_s_signal_is_unrelated_to_backpropagation_s_at_the_start", ("fa",)),
        Test(DFA, "test_kernels_above_a_stage_do_not_change_its_signal", ("dfa",)),
        Test(DFA, "test_the_first_layer_s_signal_is_unrelated_to_backpropagation_s_at_the_start", ("dfa",)),
        Test(DFA, "test_targets_alone_make_hidden_updates_blind_to_the_output", ("drtp",)),
    ),
    "linear and shallow networks": (
        Test(DFA, "test_a_deep_linear_network_with_the_product_of_its_kernels_is_backpropagation", ("dfa",)),
        Test(DFA, "test_with_one_hidden_layer_it_is_feedback_alignment", ("fa", "dfa")),
        Test("rules/test_feedback_storage.py", "test_any_storage_is_dense_feedback_with_its_matrices"),
    ),
    "NumPy, float64": (
        Test(FA, "test_three_dense_layers_against_numpy", ("fa",)),
        Test(DFA, "test_three_dense_layers_against_numpy", ("dfa",)),
        Test(DFA, "test_the_sign_of_the_error_and_the_target_alone_against_numpy", ("dfa", "drtp")),
        Test("rules/test_weight_mirror.py", "test_an_update_of_dense_layers_against_numpy", ("wm",)),
        Test(TARGETS, "test_targets_and_gradients_are_numpy_s_for_six_steps"),
        Test(DIRECT, "test_targets_and_gradients_are_numpy_s_for_ten_steps", ("ddtp",)),
    ),
    "feedback learns as it should": (
        Test("rules/test_kolen_pollack.py", "test_the_gap_shrinks_by_the_decay_each_step", ("kp",)),
        Test("rules/test_weight_mirror.py", "test_the_mean_of_what_a_mirror_sees_is_the_kernel", ("wm",)),
        Test(TARGETS, "test_the_best_linear_inverse", ("dtp",)),
        Test(DIRECT, "test_the_best_feedback_is_the_damped_pseudo_inverse", ("ddtp",)),
        Test(LOCAL, "test_inverses_of_a_linear_net_learn_the_transposed_weights", ("ldrl",)),
    ),
    "one, two replicas": (
        Test("training/test_replicas.py", "test_two_replicas_equal_one"),
        Test(STRESS, "test_two_replicas_equal_one"),
    ),
    "one, two processes": (
        Test("training/test_workers.py", "test_two_workers_equal_one"),
        Test(STRESS, "test_two_workers_equal_one"),
    ),
    "stopped and resumed": (
        Test("training/test_checkpoints.py", "test_a_stopped_and_resumed_run_equals_an_uninterrupted_one"),
        Test("training/test_checkpoints.py", "test_resumed_equals_uninterrupted"),
        Test(STRESS, "test_resumed_equals_uninterrupted"),
    ),
    "learns": (
        Test("rules/test_learning.py", "test_the_first_layer_learns"),
        Test(STRESS, "test_the_first_layer_learns"),
        Test(TARGETS, "test_an_autoencoder_learns", ("dtp",)),
        Test("layers/test_locally_connected_feedback.py", "test_every_rule_trains_them"),
    ),
    "configs round-trip": (Test("test_serialization.py", "test_round_trip"),),
}

#: Oracle → tests that count for layers.
LAYER_ORACLES = {
    "symmetric: backpropagation": (
        Test("layers/test_feedback.py", "test_symmetric_feedback_is_backpropagation"),
        Test("layers/test_locally_connected_feedback.py", "test_feedback_equal_to_the_kernel_is_backpropagation"),
    ),
    "B = W: backpropagation": (
        Test("layers/test_feedback.py", "test_feedback_equal_to_the_kernel_is_backpropagation"),
        Test("layers/test_locally_connected_feedback.py", "test_feedback_equal_to_the_kernel_is_backpropagation"),
    ),
    "a layer with B as kernel": (
        Test("layers/test_feedback.py", "test_the_input_gradient_is_that_of_a_layer_with_the_feedback_as_kernel"),
        Test("layers/test_feedback.py", "test_a_separable_convolution_is_the_chain_of_its_two_kernels"),
        Test("layers/test_feedback.py", "test_options_that_this_cpu_takes_only_when_compiled"),
        Test(
            "layers/test_locally_connected_feedback.py",
            "test_the_input_gradient_is_that_of_a_layer_with_the_feedback_as_kernel",
        ),
    ),
    "graph and XLA": (Test("layers/test_feedback_modes.py", "test_graphs_and_xla_equal_eager"),),
    "mixed precision": (Test("layers/test_feedback_modes.py", "test_mixed_precision"),),
    "mirror: E[ΔB] ∝ W": (Test("rules/test_weight_mirror.py", "test_the_mean_of_what_a_mirror_sees_is_the_kernel"),),
}


def module(file: str) -> Any:
    """A test module, by its path below `tests/`."""
    name = "coverage_" + file.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def cases(file: str, name: str) -> list[tuple]:
    """The arguments of each case of a test, as pytest takes the product of its `parametrize` marks."""
    marks = [m for m in getattr(getattr(module(file), name), "pytestmark", []) if m.name == "parametrize"]
    return list(itertools.product(*(list(mark.args[1]) for mark in marks)))


def flat(value: Any) -> list:
    """The values within nested tuples and lists."""
    return [leaf for each in value for leaf in flat(each)] if isinstance(value, list | tuple) else [value]


def public(source: Any, base: type) -> list[type]:
    classes = [getattr(source, name) for name in source.__all__]
    return [each for each in classes if inspect.isclass(each) and issubclass(each, base)]


def rules() -> list[type]:
    """The public rules, all of which the tables must show."""
    return [rule for rule in public(tfbio.rules, tfbio.rules.LearningRule) if rule not in ABSTRACT_RULES]


def layers() -> list[type]:
    """Keras's weighted layers and the package's own."""
    own = [layer for layer in public(tfbio.layers, keras.layers.Layer) if layer is not tfbio.layers.Feedback]
    stock = {cls: traits for cls, traits in registered().items() if cls.__module__.startswith("keras.")}
    known = {cls for cls, traits in stock.items() if traits.kernels}
    return [*sorted(known, key=lambda cls: cls.__name__), *own]


def rule_of(value: Any) -> type | None:
    """The rule that a parameter stands for: a class, a name (whatever follows it), a config or a function."""
    if inspect.isclass(value):
        return value if issubclass(value, tfbio.rules.LearningRule) else None
    if isinstance(value, str):
        value = value.split(" ")[0]
    try:
        return type(tfbio.rules.get(value))
    except ValueError:
        return None


def layer_of(value: Any) -> type | None:
    cls = value if inspect.isclass(value) else type(value)
    return cls if issubclass(cls, keras.layers.Layer) else None


def count(tests: tuple[Test, ...], of: Any) -> Counter:
    """How many cases of some tests each class has; `of` says which class a parameter stands for, or None."""
    counted = Counter()
    for test in tests:
        found = cases(test.file, test.name)
        if test.rules:
            counted.update({cls: len(found) for cls in {rule_of(name) for name in test.rules}})
            continue
        for case in found:
            counted.update({cls for value in flat(case) if (cls := of(value))})
    return counted


def table(rows: list[type], oracles: dict[str, tuple[Test, ...]], of: Any) -> list[str]:
    counts = {oracle: count(tests, of) for oracle, tests in oracles.items()}
    lines = ["| |" + "".join(f" {oracle} |" for oracle in oracles), "|---|" + "---:|" * len(oracles)]
    for row in rows:
        lines.append(f"| `{row.__name__}` |" + "".join(f" {counts[oracle][row] or '–'} |" for oracle in oracles))
    return lines


def contract() -> list[str]:
    """Each setting of a rule that the contract is tested for, and the tests of the contract."""
    file = "rules/test_contract.py"
    settings = module(file).RULES
    tests = [name for name in vars(module(file)) if name.startswith("test_") and cases(file, name)]
    tests = [name for name in tests if len(cases(file, name)) % len(settings) == 0]
    lines = ["| rule | settings |", "|---|---|"]
    for rule in rules():
        own = [f"`{name}`" for name, make in settings.items() if type(make()) is rule]
        lines.append(f"| `{rule.__name__}` | {', '.join(own) or '–'} |")
    lines += ["", f"Each of these {len(settings)} settings passes:", ""]
    for name in tests:
        lines.append(f"- {name.removeprefix('test_').replace('_', ' ')} ({len(cases(file, name))} cases)")
    lines += ["", "One of a kind, and the others in `tests/stress`, equal themselves compiled by XLA."]
    return lines


def feedback() -> list[str]:
    """Public sources of backward weights, the settings that use them, and whether their configs are tested."""
    settings = {name: make() for name, make in module("rules/test_contract.py").RULES.items()}
    tried = module("test_serialization.py").OBJECTS
    lines = ["| feedback | settings with it | configs round-trip |", "|---|---|---|"]
    for source in public(tfbio.feedback, tfbio.feedback.FeedbackWeights):
        if source is tfbio.feedback.FeedbackWeights:
            continue
        used = [
            f"`{name}`"
            for name, rule in settings.items()
            if source in (type(getattr(rule, "feedback", None)), type(_last(rule)))
        ]
        lines.append(f"| `{source.__name__}` | {', '.join(used) or '–'} | {'yes' if source in tried else '–'} |")
    return lines


def _last(rule: Any) -> Any:
    """The feedback of a rule's last layer, where it is another."""
    last = getattr(rule, "last_layer", None)
    return None if last in (None, "same") else tfbio.feedback.get(last)


DOCUMENT = """# What is tested on what

Numbers of cases, read off the tests' parametrisation by `python tests/coverage_table.py`. A dash: none, be it that the
oracle says nothing about the rule. Where an oracle is the same for all rules, `launchers/test.sh` tries one of a kind,
`launchers/test.sh tests/stress` all. Beside these, `tests/experiments/test_config.py` builds the run of every gin file.

## Rules

{rules}

## Layers

{layers}

Locally connected layers are also compared with a loop, with the convolution that they are when tied, and with their
adjoint, in `tests/layers/test_locally_connected.py`.

## Options

The contract of `tfbio.rules.base`, for every rule in these settings:

{contract}

## Feedback

{feedback}
"""


def document() -> str:
    parts = {
        "rules": table(rules(), ORACLES, rule_of),
        "layers": table(layers(), LAYER_ORACLES, layer_of),
        "contract": contract(),
        "feedback": feedback(),
    }
    return DOCUMENT.format(**{name: "\n".join(lines) for name, lines in parts.items()})


if __name__ == "__main__":
    sys.stdout.write(document())
