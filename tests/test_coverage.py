"""The document of what is tested on what is up to date, and nothing public is missing from it."""

import runpy
from pathlib import Path

import keras

import tfbio

DOCUMENT = Path(__file__).parent.parent / "docs" / "coverage.md"
coverage = runpy.run_path(str(Path(__file__).with_name("coverage_table.py")))


def rows(document):
    """The first cells of all tables' rows that have a number or a word behind them."""
    lines = [line.split("|")[1:-1] for line in document.splitlines() if line.startswith("| `")]
    return {line[0].strip(" `") for line in lines if any(cell.strip() != "–" for cell in line[1:])}


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text() == coverage["document"](), "run: python tests/coverage_table.py > docs/coverage.md"


def test_every_public_rule_feedback_and_layer_is_in_it():
    sources = {
        tfbio.rules: tfbio.rules.LearningRule,
        tfbio.feedback: tfbio.feedback.FeedbackWeights,
        tfbio.layers: keras.layers.Layer,
    }
    abstract = {*sources.values(), tfbio.rules.FeedbackRule, tfbio.layers.Feedback}
    classes = {cls for source, base in sources.items() for cls in coverage["public"](source, base)} - abstract
    names = {cls.__name__ for cls in classes}
    assert len(names) > 15 and names <= rows(DOCUMENT.read_text())


def test_every_oracle_is_tried():
    for oracles, of in (("ORACLES", "rule_of"), ("LAYER_ORACLES", "layer_of")):
        for oracle, tests in coverage[oracles].items():
            for test in tests:
                assert coverage["count"]((test,), coverage[of]), (oracle, test)
