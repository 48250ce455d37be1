"""Oracle 1 on KerasHub's networks, with random weights: blocks in blocks, tokens, several outputs, shared heads."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio import with_feedback

hub = pytest.importorskip("keras_hub", reason="pip install tfbio[hub]")

RANDOM = np.random.default_rng(0)


def images(size):
    return RANDOM.normal(size=(2, size, size, 3)).astype("float32")


def resnet_backbone(size):
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(size, size, 3),
    )


def resnet():
    return hub.models.ImageClassifier(backbone=resnet_backbone(32), preprocessor=None, num_classes=5), images(32)


def vit():
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    return keras.Sequential([backbone, keras.layers.Lambda(lambda x: x[:, 0]), keras.layers.Dense(5)]), images(16)


def bert():
    backbone = hub.models.BertBackbone(
        vocabulary_size=20, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=8
    )
    model = hub.models.BertTextClassifier(backbone=backbone, num_classes=3, preprocessor=None, dropout=0.0)
    tokens = RANDOM.integers(1, 20, (2, 8))
    mask = np.ones_like(tokens)
    mask[1, 5:] = 0
    return model, {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": mask}


def retinanet():
    encoder = resnet_backbone(64)
    backbone = hub.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=7, use_p5=False, image_shape=(64, 64, 3)
    )
    model = hub.models.RetinaNetObjectDetector(
        backbone=backbone, num_classes=4, bounding_box_format="xyxy", preprocessor=None
    )
    return model, images(64)


def gradients(network, model, x):
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(network(x, training=False))
        loss = sum(
            tf.reduce_sum(output * tf.random.stateless_normal(tf.shape(output), (0, number)))
            for number, output in enumerate(outputs)
        )
    result = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    return [tf.convert_to_tensor(gradient).numpy() for gradient in result]


@pytest.mark.parametrize("make", [resnet, vit, bert, retinanet])
def test_with_the_kernels_as_feedback_it_is_backpropagation(make):
    model, x = make()
    exact = gradients(model, model, x)
    for a, e in zip(gradients(with_feedback(model, "symmetric"), model, x), exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6 * np.abs(e).max())
    network = with_feedback(model, "random")
    kinds = [type(each.feedback).__name__ for each in network.feedback_layers]
    assert kinds.count("Symmetric") == (2 if make is retinanet else 1)
    first = next(number for number, v in enumerate(model.trainable_variables) if v.name == "kernel")
    g, e = (np.ravel(each[first]) for each in (gradients(network, model, x), exact))
    assert abs(g @ e) < 0.7 * np.linalg.norm(g) * np.linalg.norm(e)
