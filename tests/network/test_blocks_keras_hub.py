"""Direct feedback within KerasHub's backbones, with random weights: behind each of the encoder's blocks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio import stages
from tfbio.rules import DirectFeedbackAlignment

hub = pytest.importorskip("keras_hub", reason="pip install tfbio[hub]")

RANDOM = np.random.default_rng(0)


def vit():
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    x = RANDOM.normal(size=(2, 16, 16, 3)).astype("float32")
    return keras.Sequential([backbone, keras.layers.Lambda(lambda x: x[:, 0]), keras.layers.Dense(5)]), x


def bert():
    backbone = hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=0.0,
        max_sequence_length=8,
    )
    classifier = hub.models.BertTextClassifier(backbone=backbone, num_classes=5, preprocessor=None, dropout=0.0)
    tokens = RANDOM.integers(1, 20, (2, 8))
    mask = np.ones_like(tokens)
    mask[1, 5:] = 0
    x = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": mask}
    inputs = {name: keras.Input((8,), dtype="int32", name=name) for name in x}  # projections need a fixed length
    return keras.Model(inputs, classifier(inputs)), x


@pytest.mark.parametrize("make", [vit, bert])
def test_an_encoder_s_blocks_learn_from_their_own_signals_and_the_others_from_the_next(make, caplog):
    model, x = make()
    assert len(stages(model)) < 4  # what a graph shows of it
    rule = DirectFeedbackAlignment(seed=1)
    rule.build(model, "softmax_cross_entropy")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "share a signal" in line
    names = [each.name for each in rule.network.cuts]
    assert len(names) == 3 and all(each.shape[1:] == (16,) for each in rule.network.cuts)
    assert {signals for signals in rule.signals.values()} == {(name,) for name in (*names, "loss")}
    y = np.array([0, 3])
    before = rule.compute(x, y)
    np.testing.assert_allclose(before.outputs, model(tf.nest.map_structure(tf.constant, x)), rtol=1e-5, atol=1e-6)
    paths = [variable.path.rpartition("/")[0] for variable in rule.forward_variables]
    learn = {rule.signals[path] for path, g in zip(paths, before.forward, strict=True) if np.abs(g).max() > 0}
    assert len(learn) == 4
    # With a silent projection, what learns from it stands still, and nothing else changes.
    rule.projections[1].assign(tf.zeros_like(rule.projections[1]))
    for path, a, b in zip(paths, before.forward, rule.compute(x, y).forward, strict=True):
        if rule.signals[path] == (names[1],):
            np.testing.assert_array_equal(b, np.zeros_like(b))
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
