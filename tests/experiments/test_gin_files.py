"""Gin files as editors save them, and macros that nobody set."""

import pytest

from tfbio.experiments import config

TEXT = '# café\ninclude "quickstart.gin"\ntrain.epochs = 3\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_in_utf_8_with_and_without_a_mark(tmp_path, encoding, end):
    (tmp_path / "inner.gin").write_bytes(TEXT.replace("\n", end).encode(encoding))
    (tmp_path / "outer.gin").write_bytes(f'include "{tmp_path}/inner.gin"{end}'.encode(encoding))
    for name in ("inner.gin", "outer.gin"):
        config.parse([str(tmp_path / name)], [])
        assert config.load_run().epochs == 3


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_text_is_refused(tmp_path, encoding):
    (tmp_path / "a.gin").write_bytes(TEXT.encode(encoding))
    with pytest.raises(config.ConfigError, match="a.gin is no text in UTF-8") as caught:
        config.parse([str(tmp_path / "a.gin")], [])
    assert "\n" not in str(caught.value)


def test_the_file_and_line_of_an_error_are_named(tmp_path):
    (tmp_path / "a.gin").write_text("train.epochs = 3\ntrain.epoch = 4\n")
    with pytest.raises(config.ConfigError, match="epoch.*a.gin.*line 2"):
        config.parse([str(tmp_path / "a.gin")], [])


def test_a_macro_without_a_value_is_named_alone():
    with pytest.raises(config.ConfigError, match="^The macro %EPOCHS has no value") as caught:
        config.parse(["quickstart.gin"], ["train.epochs=%EPOCHS"])
        config.load_run()
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)
    config.parse(["quickstart.gin"], ["train.epochs=%EPOCHS", "EPOCHS=4"])
    assert config.load_run().epochs == 4
