"""Run by test_updates.py, once for each process of a cluster: metrics, arrays and predictions."""

import json
import os

import keras
import numpy as np
import same_numbers
import tensorflow as tf

import tfbio

alone = "TF_CONFIG" not in os.environ
strategy = tf.distribute.get_strategy() if alone else tf.distribute.MultiWorkerMirroredStrategy()
model, _, optimizer = same_numbers.parts(strategy, "bp", "clipvalue")
with strategy.scope():
    metrics = [keras.metrics.AUC(num_thresholds=20, name="auc"), keras.metrics.R2Score(name="r2")]
trainer = tfbio.Trainer(model, "kp", optimizer, strategy=strategy, metrics=metrics, jit_compile=False)
targets = np.eye(4, dtype="float32")[same_numbers.Y]
history = trainer.fit((same_numbers.X, targets), epochs=2, batch_size=8, verbose=False).history
figures = trainer.evaluate(same_numbers.data().map(lambda x, y, w: (x, tf.one_hot(y, 4), w)))
predictions = trainer.predict(same_numbers.data())
np.testing.assert_allclose(predictions, trainer.model(same_numbers.X), rtol=1e-4, atol=1e-6)
print(json.dumps({**figures, "history": history["auc"] + history["loss"], "sum": float(np.sum(predictions))}))
