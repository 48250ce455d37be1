"""The console command as a user meets it: exit codes, sentences, signals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tfbio import __version__, cli

SHORT = ["--gin_param=train.epochs=2", "--gin_param=train.alignment=False", "--gin_param=train.jit_compile=False"]


def tfbio(*arguments):
    return cli.main(list(arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run") / "q")
    assert tfbio("train", "--gin_file=quickstart.gin", f"--workdir={folder}", *SHORT) == 0
    return folder


def test_train_then_evaluate_export_and_report(finished, capsys):
    result = json.loads(open(os.path.join(finished, "result.json")).read())
    capsys.readouterr()
    assert tfbio("evaluate", f"--workdir={finished}") == 0
    out = capsys.readouterr().out
    assert float(out.split("test_error ")[1].split()[0]) == pytest.approx(result["final"]["test_error"], rel=1e-4)
    assert tfbio("export", f"--workdir={finished}", "--preprocessing") == 0
    for path in capsys.readouterr().out.split():
        assert os.path.exists(path)
    assert tfbio("report", finished) == 0
    assert "FeedbackAlignment" in capsys.readouterr().out
    assert os.path.exists(os.path.join(finished, "learning_curves.png"))


def test_a_line_an_epoch_on_a_pipe(tmp_path, capsys):
    assert tfbio("train", "--gin_file=quickstart.gin", f"--workdir={tmp_path}", *SHORT) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[-1].startswith("finished: ") and "test_error" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "unknown command 'trian'"),
        (["train"], 2, "needs --gin_file"),
        (["train", "--gin_fil=x"], 2, "gin_fil"),
        (["train", "extra", "--gin_file=quickstart.gin"], 2, "extra"),
        (["evaluate"], 2, "needs --workdir"),
        (["report"], 2, "needs a folder"),
        (["--workdir=runs/q"], 2, "a command is missing"),
        (["evaluate", "--workdir=q", "--split=all"], 2, "<train|validation|test>"),
        (["train", "--gin_file=none.gin"], 1, "no file 'none.gin'"),
        (["train", "--gin_file=quickstart.gin", "--gin_param=load.name='no_such_set'"], 1, "no_such_set"),
        (["train", "--gin_file=quickstart.gin", "--gin_param=load.name='mnist'", "--data_dir=/nowhere"], 1, "mnist"),
        (["train", "--gin_file=quickstart.gin", "--gin_param=train.rule='hebb'"], 1, "Invalid value for `rule`"),
        (["train", "--gin_file=quickstart.gin", "--gin_param=Adam.learning_rate=3e38"], 1, "The loss became"),
    ],
)
def test_bad_calls_end_with_a_sentence(arguments, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert tfbio(*arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert time.monotonic() - start < 60


def test_another_configuration_in_the_same_folder(finished, capsys):
    rebound = "--gin_param=Adam.learning_rate=0.5"
    assert tfbio("train", "--gin_file=quickstart.gin", f"--workdir={finished}", *SHORT, rebound) == 1
    assert "other settings (optimizer)" in capsys.readouterr().err


FLAGS = {
    "train": {"gin_file", "gin_param", "workdir", "data_dir"},
    "evaluate": {"gin_param", "workdir", "data_dir", "split", "best"},
    "export": {"gin_param", "workdir", "data_dir", "preprocessing", "best"},
    "study": {"gin_file", "gin_param", "workdir", "data_dir", "processes"},
    "report": {"workdir"},
}
EXAMPLES = {
    "gin_file": "x.gin",
    "gin_param": "a=1",
    "workdir": "q",
    "data_dir": "d",
    "split": "train",
    "best": "true",
    "preprocessing": "true",
    "processes": "2",
}


@pytest.mark.parametrize("command", FLAGS)
def test_a_flag_of_other_commands_is_refused(command, capsys, monkeypatch):
    monkeypatch.setitem(cli._COMMANDS, command, cli._COMMANDS[command]._replace(run=lambda rest: None))
    for flag, value in EXAMPLES.items():
        takers = [name for name, own in FLAGS.items() if flag in own]
        assert tfbio(command, f"--{flag}={value}") == (0 if command in takers else 2)
        if command not in takers:
            sentence = capsys.readouterr().err.splitlines()[0]
            assert sentence == f"tfbio {command}: --{flag} is a flag of {' and '.join(takers)}, not of {command}."


def test_help(capsys):
    assert tfbio("--help") == tfbio("help") == tfbio() == 0
    texts = capsys.readouterr().out.split("tfbio: ")[1:]
    assert len(texts) == 3 and len(set(texts)) == 1 and all(f"tfbio {command}" in texts[0] for command in FLAGS)
    for command, own in FLAGS.items():
        assert tfbio(command, "--help") == tfbio("help", command) == tfbio(command, "--workdir=q", "-h") == 0
        texts = capsys.readouterr().out.split(f"tfbio {command}: ")[1:]
        assert len(texts) == 3 and len(set(texts)) == 1
        assert {flag for flag in EXAMPLES if f"--{flag}:" in texts[0] or f"--[no]{flag}:" in texts[0]} == own
    assert tfbio("help", "trian") == 2


def test_version(capsys):
    assert tfbio("--version") == tfbio("train", "--version") == 0
    assert capsys.readouterr().out == 2 * f"tfbio {__version__}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_then_stop(tmp_path, number, code):
    command = [sys.executable, "-u", "-m", "tfbio", "train", "--gin_file=quickstart.gin", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [*command, "--gin_param=train.epochs=100000", *SHORT[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Stopped at step" in error
    assert list((tmp_path / "checkpoints").glob("step-*.index"))
    assert not (tmp_path / "result.json").exists()
