"""Folders as users have them: kinds of files, sub-folders, what can't be read."""

import io
import logging
import os
import re

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import image_files, load, stream_of
from tfbio.training.feeds import first_batch

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _say_it_again():
    image_files._warn_once.cache_clear()


def picture(red, **options):
    return encoded(Image.new("RGB", (20, 20), (red, 50, 90)), **options)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"image_folder:{folder}"


def reds(name, **options):
    """The red of every picture, in the order of the files."""
    x, _, w = next(iter(load(name, batch_size=9, size=8, shuffle=False, **options)[0]))
    return [int(round(red)) for red in x.numpy()[w == 1][:, 4, 4, 0].tolist()]


def test_what_tensorflow_decodes_is_read_whatever_its_name(tmp_path, caplog):
    files = {
        "a.jpg": picture(10),
        "b.webp": picture(40, format="WEBP", lossless=True),
        "c.jfif": picture(70),
        "d.PNG": picture(100, format="PNG"),
        "deep/down/e.jpg": picture(130),
        "f": picture(160, format="WEBP", lossless=True),
        "g.bmp2": picture(190, format="BMP"),
        "h.anim": picture(220, format="GIF"),
    }
    name = put(tmp_path, {f"train/cat/{path}": content for path, content in files.items()})
    assert reds(name) == pytest.approx([10, 40, 70, 100, 130, 160, 190, 220], abs=2)
    assert not caplog.records


def test_what_is_not_read_is_logged_once_with_its_reason(tmp_path, caplog):
    files = {
        "train/cat/a.jpg": picture(10),
        "train/cat/BM notes.txt": b"BM and more than twelve letters",
        "train/cat/deep/old.tiff": picture(10, format="TIFF"),
        "train/cat/._a.jpg": b"",
        "train/list.csv": b"",
        "test/cat/b.jpg": picture(20),
        "validation/cat/c.jpg": picture(30),
    }
    name = put(tmp_path, files)
    (tmp_path / "train" / "cat" / "deep" / "again").symlink_to(tmp_path / "train" / "cat")
    (tmp_path / "train" / "cat" / "gone").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING, "tfbio"):
        for split in ("train", "train", "test"):
            load(name, split, size=8)
    train, test = [record.message for record in caplog.records]
    assert train.startswith(f"Not read of {tmp_path}: ")
    for part in (
        "2 are no JPEG, PNG, GIF, BMP or WebP pictures (train/cat/BM notes.txt, train/cat/deep/old.tiff)",
        "1 begin with a dot (train/cat/._a.jpg)",
        "1 lead back to a folder above (train/cat/deep/again)",
        "1 can't be read (train/cat/gone)",
        "1 are in no class's folder (train/list.csv)",
    ):
        assert part in train
    assert test == f"Not read of {tmp_path}: 1 stand beside test/ (validation)."
    assert reds(name) == pytest.approx([10], abs=2)


def broken(tmp_path):
    """Two pictures, and five that TensorFlow's file system refuses, each in a way of its own."""
    name = put(tmp_path, {"train/cat/a.jpg": picture(10), "train/cat/z.jpg": picture(40)})
    cat = tmp_path / "train" / "cat"
    (cat / "folder.jpg").mkdir()
    (cat / "gone.jpg").symlink_to("nowhere")
    (cat / "itself.jpg").symlink_to("itself.jpg")
    bad = [cat / "folder.jpg", cat / "gone.jpg", cat / "itself.jpg"]
    if os.geteuid():  # the superuser reads all
        (cat / "locked.jpg").write_bytes(picture(70))
        (cat / "locked.jpg").chmod(0)
        bad.append(cat / "locked.jpg")
    return name, [str(path) for path in bad]


def test_pictures_that_the_file_system_refuses_are_skipped(tmp_path, caplog):
    name, bad = broken(tmp_path)
    stream = stream_of(load(name, batch_size=9, size=8, shuffle=False, corrupt="skip")[0])
    ((x, _, w),) = list(stream.batches(0).as_numpy_iterator())
    assert sorted(x[w == 1][:, 4, 4, 0].tolist()) == pytest.approx([10, 40], abs=2)
    assert sorted(stream.skipped) == bad and len(caplog.records) == len(bad)


@pytest.mark.parametrize("number", range(3))
def test_pictures_that_the_file_system_refuses_are_named(tmp_path, number):
    name, bad = broken(tmp_path)
    for other in bad[:number] + bad[number + 1 :]:
        os.rmdir(other) if os.path.isdir(other) else os.remove(other)
    dataset, _ = load(name, batch_size=9, size=8, shuffle=False)
    with pytest.raises(ValueError, match=f"expected pictures that can be read and decoded, received {bad[number]}"):
        first_batch(dataset)


def test_palettes_of_bmp_files_are_no_grey_values(tmp_path):
    colours = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3))
    files = {
        "a_grey.bmp": encoded(colours.convert("L"), "BMP"),
        "b_colours.bmp": picture(200, format="BMP"),
        "c_palette.bmp": encoded(colours.quantize(8), "BMP"),
        "d_two.bmp": encoded(colours.convert("1"), "BMP"),
        "e_full.bmp": encoded(colours.quantize(256), "BMP"),
        "f_short.bmp": encoded(colours.convert("L"), "BMP")[:40],
        "g_packed.bmp": re.sub(b"(?s)^(.{30}).", rb"\1" + b"\1", encoded(colours.convert("L"), "BMP")),
    }
    name = put(tmp_path, {f"train/cat/{path}": content for path, content in files.items()})
    stream = stream_of(load(name, batch_size=9, size=20, shuffle=False, resizing="stretch", corrupt="skip")[0])
    ((x, _, w),) = list(stream.batches(0).as_numpy_iterator())
    np.testing.assert_array_equal(x[0], np.repeat(np.asarray(colours.convert("L"))[:, :, None], 3, 2))
    np.testing.assert_array_equal(x[1], np.broadcast_to([200, 50, 90], (20, 20, 3)))
    assert w.sum() == 2
    skipped = [os.path.basename(path) for path in stream.skipped]
    assert sorted(skipped) == sorted(files)[2:]


def test_how_a_camera_was_held_changes_nothing(tmp_path):
    """As docs/data.md says."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    halves = Image.fromarray(np.repeat(np.uint8([[0], [250]]), 10, 0).repeat(20, 1))
    name = put(tmp_path, {"train/cat/a.jpg": encoded(halves, exif=exif), "train/cat/b.jpg": encoded(halves)})
    x, _, _ = next(iter(load(name, batch_size=2, size=20, shuffle=False, resizing="stretch")[0]))
    np.testing.assert_array_equal(x[0], x[1])


def test_names_that_are_not_utf_8_and_folders_that_can_not_be_read_are_named(tmp_path, monkeypatch):
    name = put(tmp_path / "b", {"train/cat/a.jpg": picture(10)})
    folder = os.fsencode(tmp_path / "b" / "train" / "cat")
    try:
        open(os.path.join(folder, b"caf\xe9.jpg"), "wb").close()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(ValueError, match=r"expected names in UTF-8, received b'caf\\xe9.jpg' in .*cat. Rename it"):
        load(name, size=8)

    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, f"{path}; Permission denied")

    monkeypatch.setattr(tf.io.gfile, "listdir", refuse)
    with pytest.raises(ValueError, match="expected folders that can be read, received .*Permission denied"):
        load(name, size=8)
