"""The code of docs/losses.md runs and does what the text says."""

import re
from pathlib import Path

import keras
import numpy as np

import tfbio

_DOCUMENT = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def test_the_losses_of_the_document():
    namespace = {"__name__": "documented"}
    for code in re.findall(r"^```python\n(.*?)^```", _DOCUMENT, re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs/losses.md", "exec"), namespace)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Embedding(5, 3), keras.layers.Dense(5)])
    y = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 2, 1, 1]])
    rule = tfbio.rules.FeedbackAlignment()
    rule.build(model, namespace["TokenCrossEntropy"]())
    logits = model(y).numpy()
    losses = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(losses, y[..., None], -1)[..., 0][y > 0].mean()
    np.testing.assert_allclose(rule.compute(y, y).loss, expected, rtol=1e-5)
    assert namespace["loss"].loss_weights == (1.0, 0.1)
