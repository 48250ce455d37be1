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
    @gin.configurable(module="test_gin_internals")
    def refuses():
        raise ValueError("Invalid value for `x`.")

    with pytest.raises(ValueError, match="refuses") as error:
        refuses()
    assert own_message(error.value) == "Invalid value for `x`."
