"""What relies on gin's private parts and on the form of its messages."""

import gin
import pytest

from tfbio.experiments import config
from tfbio.experiments.gin_internals import own_message


def test_a_folder_named_like_the_first_part_of_a_path_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "train.batch_size" in config.parse(["runs/digits.gin", "rules/fa.gin"], [])


def test_a_message_is_the_error_s_own():
    config.parse(["runs/digits.gin", "rules/fa.gin"], ["train.epochs=0"])
    with pytest.raises(ValueError, match="In call to configurable 'train'") as error:
        gin.get_configurable("train")()
    assert own_message(error.value) == "Invalid value for `epochs`: expected a positive int, received 0."
    with pytest.raises(config.ConfigError, match=r"received 0\.$"):
        config.load_run()
