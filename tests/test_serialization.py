"""Every public object survives `get_config`, as plain data, through Keras's serialization and by `get`."""

import inspect
import json

import keras
import numpy as np
import pytest

import tfbio
from tfbio import feedback, losses, rules


@keras.saving.register_keras_serializable(package="tests")
def own_inverse(stage, activation):
    return tfbio.inverse(stage, activation, fully_connected=True)


TARGETS = {
    "noise": (0.1, 0.2, 0.3),
    "feedback_iterations": (1, 2, 3),
    "reduction": "mean",
    "schedule": "alternating",
    "period": 7,
    "inverse": own_inverse,
    "cuts": ("hidden",),
    "seed": 3,
}

# Class → arguments that differ from all defaults.
OBJECTS = {
    feedback.Learned: {"initializer": "he_normal", "scale": 0.5, "seed": 3},
    feedback.Random: {"initializer": "he_normal", "scale": 0.5, "seed": 3},
    feedback.SignedRandom: {"initializer": "he_normal", "scale": 0.5, "seed": 3},
    feedback.SignSymmetric: {
        "magnitude": "fixed",
        "scale": "norm",
        "distribution": "normal",
        "concordance": 0.75,
        "seed": 3,
    },
    feedback.Symmetric: {},
    losses.KerasLoss: {"loss": "mse"},
    losses.MeanSquaredError: {},
    losses.PerOutput: {"losses": {"a": "mse", "b": "softmax_cross_entropy"}, "loss_weights": {"a": 0.5, "b": 2.0}},
    losses.SigmoidCrossEntropy: {"label_smoothing": 0.1},
    losses.SoftmaxCrossEntropy: {"label_smoothing": 0.1},
    rules.Backpropagation: {},
    rules.DirectFeedbackAlignment: {
        "initializer": "he_normal",
        "scale": 0.5,
        "seed": 3,
        "cuts": ("hidden",),
        "error": "sign",
        "storage": "broadcast",
        "blocks": ("encoder/*",),
    },
    rules.DirectRandomTargetProjection: {
        "initializer": "he_normal",
        "scale": 0.5,
        "seed": 3,
        "cuts": ("hidden",),
        "storage": "broadcast",
        "blocks": ("encoder/*",),
    },
    rules.KolenPollack: {
        "initializer": "he_normal",
        "scale": 0.5,
        "seed": 3,
        "last_layer": "symmetric",
        "allow_backpropagation": ("lstm", "encoder/*"),
        "output_layers": ("head",),
    },
    rules.FeedbackAlignment: {
        "initializer": keras.initializers.RandomUniform(-0.5, 0.5, seed=7),
        "scale": 0.5,
        "seed": 3,
        "last_layer": "same",
        "allow_backpropagation": ("lstm", "encoder/*"),
        "output_layers": ("head",),
        "signed_init": True,
    },
    rules.FeedbackRule: {
        "feedback": feedback.Random("he_normal", seed=3),
        "last_layer": feedback.Random("ones"),
        "allow_backpropagation": ("lstm", "encoder/*"),
        "output_layers": ("head",),
    },
    rules.WeightMirror: {
        "initializer": "he_normal",
        "scale": 0.5,
        "seed": 3,
        "interval": 5,
        "examples": 7,
        "last_layer": "symmetric",
        "allow_backpropagation": ("lstm", "encoder/*"),
        "output_layers": ("head",),
    },
    rules.TargetPropagation: {**TARGETS, "reconstruction": "denoise"},
    rules.DifferenceTargetPropagation: {
        **TARGETS,
        "reconstruction": "denoise",
        "target_step": 0.3,
        "target_reduction": "batch",
    },
    rules.SimplifiedDifferenceTargetPropagation: {**TARGETS, "reconstruction": "preserve", "target_step": 0.3},
    rules.AuxiliaryOutputSDTP: {**TARGETS, "reconstruction": "preserve", "target_step": 0.3, "auxiliary_units": 3},
    rules.DirectDifferenceTargetPropagation: {
        **TARGETS,
        "reconstruction": "preserve",
        "target_step": 0.3,
        "feedback_decay": 0.2,
    },
    rules.LocalDifferenceTargetPropagation: {**TARGETS, "reconstruction": "preserve", "target_step": 0.3},
    rules.SignSymmetry: {
        "magnitude": "batch",
        "scale": 0.1,
        "distribution": "normal",
        "concordance": 0.75,
        "seed": 3,
        "last_layer": "same",
        "allow_backpropagation": ("lstm", "encoder/*"),
        "output_layers": ("head",),
    },
}
# Those that can't be made without arguments.
INCOMPLETE = (losses.KerasLoss, losses.PerOutput, rules.FeedbackRule)
ABSTRACT = {feedback.FeedbackWeights, losses.CanonicalLoss, losses.Loss, rules.LearningRule, rules.Update}
GET = {feedback: feedback.get, losses: losses.get, rules: rules.get}
MODULES = {cls: module for cls in OBJECTS for module in GET if getattr(module, cls.__name__, None) is cls}


def test_every_public_class_is_in_the_table():
    public = {getattr(module, name) for module in GET for name in module.__all__}
    assert {cls for cls in public if inspect.isclass(cls)} == set(OBJECTS) | ABSTRACT


def parameters(cls):
    """The constructor's arguments, with those of the base class where it takes `**options` for it."""
    signature = inspect.signature(cls.__init__).parameters
    own = {name: p for name, p in signature.items() if name != "self" and p.kind == p.POSITIONAL_OR_KEYWORD}
    passed_on = "options" in signature
    return {**parameters(cls.__mro__[1]), **own} if passed_on else own


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_the_table_says_something_about_every_argument(cls):
    assert set(OBJECTS[cls]) == set(parameters(cls))


@pytest.mark.parametrize("kwargs", [True, False], ids=["all arguments", "defaults"])
@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_round_trip(cls, kwargs):
    original = cls(**OBJECTS[cls]) if kwargs or cls in INCOMPLETE else cls()
    config = original.get_config()
    plain = json.loads(json.dumps(config))
    for arguments in OBJECTS[cls] if kwargs else ():
        assert arguments in config
    for copy in (
        cls.from_config(config),
        cls.from_config(plain),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(original)),
        GET[MODULES[cls]]({"class_name": cls.__name__, "config": config}),
        GET[MODULES[cls]](keras.saving.serialize_keras_object(original)),
    ):
        assert type(copy) is cls
        assert json.loads(json.dumps(copy.get_config())) == plain
    assert keras.saving.get_registered_name(cls) == f"tfbio>{cls.__name__}"


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_arguments_reach_the_config(cls):
    """A round trip alone would not see an argument that is dropped on both ways."""
    config = cls(**OBJECTS[cls]).get_config()
    defaults = {k: p.default for k, p in parameters(cls).items()}
    for name in OBJECTS[cls]:
        assert config[name] != defaults[name], name


@pytest.mark.parametrize(
    "name, cls", [("bp", "Backpropagation"), ("fa", "FeedbackAlignment"), ("dfa", "DirectFeedbackAlignment")]
)
def test_rules_by_name(name, cls):
    cls = getattr(rules, cls)
    for identifier in (
        name,
        cls.__name__,
        cls,
        {"class_name": name},
        {"class_name": f"tfbio>{cls.__name__}", "config": {}},
    ):
        assert type(rules.get(identifier)) is cls
    rule = cls()
    assert rules.get(rule) is rule


@pytest.mark.parametrize(
    "get, known", [(rules.get, "dfa"), (feedback.get, "symmetric"), (losses.get, "SoftmaxCrossEntropy")]
)
def test_unknown_names_are_refused_with_the_known_ones(get, known):
    for identifier in ("nothing", 3, None, int, {"config": {}}):
        with pytest.raises(ValueError, match=rf"Invalid value for `\w+`.*{known}"):
            get(identifier)


def test_feedback_layer_round_trips():
    layer = tfbio.layers.Feedback(
        keras.layers.Conv2D(3, 2, strides=2, activation="tanh", name="c", activity_regularizer="l2"),
        feedback.Random("he_normal", scale=0.5, seed=3),
        index=4,
    )
    config = layer.get_config()
    copy = tfbio.layers.Feedback.from_config(json.loads(json.dumps(config)))
    assert copy.get_config() == config
    assert copy.name == "c_feedback" and copy.index == 4 and copy.feedback.scale == 0.5
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2))
    layer(x)
    copy(x)
    np.testing.assert_array_equal(layer.pairs[0][1], copy.pairs[0][1])  # the seed and the index say the draw
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(x), copy(x))


def test_a_network_with_feedback_is_saved_and_loaded(tmp_path):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(3, name="b")]
    )
    network = tfbio.with_feedback(model, "random", "same", output_layers=[keras.layers.Dense])
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert loaded.last_layer == "same" and loaded.output_layers == ("Dense",)
    for mine, theirs in zip(network.feedback_layers, loaded.feedback_layers, strict=True):
        for expected, actual in zip(mine.pairs, theirs.pairs, strict=True):
            np.testing.assert_array_equal(expected[0], actual[0])
            np.testing.assert_array_equal(expected[1], actual[1])


def test_a_users_own_class_may_bear_the_name_of_one_of_ours():
    @keras.saving.register_keras_serializable(package="theirs")
    class MeanSquaredError(losses.Loss):
        pass

    assert type(losses.get(keras.saving.serialize_keras_object(MeanSquaredError()))) is MeanSquaredError
    assert type(losses.get({"class_name": "MeanSquaredError"})) is losses.MeanSquaredError


@tfbio.register
class Halved(rules.FeedbackRule):
    """A rule of a user's own, whose constructor hands the family's arguments on."""

    def __init__(self, seed=None, **options):
        super().__init__(feedback.Random(scale=0.5, seed=seed), **options)

    def get_config(self):
        return {**super().get_config(), "seed": self.feedback.seed}


def test_a_users_own_feedback_rule_adds_its_arguments_to_the_family_s():
    rule = Halved(seed=3, last_layer="same", allow_backpropagation=("lstm",))
    config = rule.get_config()
    assert config == {
        "last_layer": "same",
        "allow_backpropagation": ("lstm",),
        "output_layers": None,
        "seed": 3,
    }
    serialized = keras.saving.serialize_keras_object(rule)
    assert serialized["registered_name"] == f"{Halved.__module__.partition('.')[0]}>Halved"
    for copy in (Halved.from_config(config), rules.get(serialized)):
        assert type(copy) is Halved and copy.get_config() == config
