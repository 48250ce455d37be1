"""Kills a run with SIGKILL at random moments, starts it again each time, and compares its end with the undisturbed one.

    python tests/stress/kill_9.py --moments 20 --workers 1

A small convolutional net with dropout and batch normalisation learns by Kolen–Pollack feedback and Adam from augmented
images, 25 steps an epoch, with a checkpoint every 7 steps and weights kept of the best epoch. Of four moments one is
anywhere in the start of the processes, one as soon as a half-written checkpoint is seen, and two are once an attempt
has got as far as a checkpoint of its own. With several workers, one of them is killed, or all at once, by turns. A run
that ends before its moment has come is compared and counts for nothing; the next one begins.

At the end of each run its last checkpoint must hold, bit for bit, every variable that the undisturbed one does, and the
figures of all epochs must be the same numbers. Not in the default test run: 20 moments take some minutes.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

os.environ.update({"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"})

# What starts an attempt has imported TensorFlow once and forks, before anything is computed.
CONTEXT = multiprocessing.get_context("forkserver")


def load(name="", split="train", batch_size=8, seed=0, shuffle=True, augmentation="flip_crop", drop_remainder=False):
    import keras
    import numpy as np

    import tfbio

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (197, 8, 8, 2), np.uint8), rng.integers(0, 4, 197).astype(np.int32)
    data = tfbio.data.from_arrays(images, labels, batch_size, seed=seed, shuffle=shuffle, augmentation=augmentation)
    scaling = keras.layers.Rescaling(1 / 255)
    return data, tfbio.data.DatasetInfo("random", split, ("train", "test"), 4, (8, 8, 2), 197, scaling, None)


def model(input_shape, classes):
    import keras

    layers = [
        keras.layers.Conv2D(4, 3, activation="tanh"),
        keras.layers.BatchNormalization(synchronized=True),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2, seed=1),
        keras.layers.Dense(8, "tanh"),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential([keras.Input(input_shape), *layers], name="small")


def train(workdir: str, epochs: int, cluster: list[str], index: int) -> None:
    """What a process does: the whole run, or what is left of it."""
    log = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if len(cluster) > 1:
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": index}}
        os.environ["TF_CONFIG"] = json.dumps(task)
    import keras

    from tfbio.experiments import run

    settings = run.Run(
        load=load,
        model=model,
        rule="kp",
        optimizer=lambda: keras.optimizers.Adam(1e-3),
        epochs=epochs,
        batch_size=8,
        evaluate_on=("test",),
        select_on="test",
        strategy="multi_worker" if len(cluster) > 1 else "one_device",
        jit_compile=False,
        checkpoint_steps=7,
    )
    run.train(workdir, settings, quiet=True)


def start(workdir: Path, epochs: int, workers: int) -> list:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(workers)]
        for each in sockets:
            each.bind(("localhost", 0))
        cluster = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    processes = [CONTEXT.Process(target=train, args=(str(workdir), epochs, cluster, i)) for i in range(workers)]
    for process in processes:
        process.start()
    return processes


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.stem.removeprefix("step-")) for path in workdir.glob("checkpoints/step-*.index")), default=0)


def has_newer(workdir: Path, step: int) -> bool:
    return newest(workdir) > step


def half_written(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*_temp"))


def wait(processes: list, seconds: float, until=lambda: False) -> bool:
    """Waits so long, or until something is so, or one of the processes has ended; whether one has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        if not all(process.is_alive() for process in processes):
            return True
        time.sleep(0.002)
    return False


def end(processes: list) -> None:
    """What is left of a cluster ends by itself, with an error; none may hang."""
    for process in processes:
        process.join(60)
        if process.is_alive():
            print("    a worker had to be killed, for it did not end by itself", flush=True)
            process.kill()
            process.join()


def outcome(workdir: Path) -> tuple[dict, list]:
    """All tensors of the last checkpoint, as bytes, and the figures of all epochs but for their seconds."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / f"step-{newest(workdir)}"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: reader.get_tensor(name).tobytes() for name in names}, [{**line, "seconds": 0} for line in lines]


def differences(expected: tuple[dict, list], found: tuple[dict, list]) -> str:
    names = [name for name in expected[0].keys() | found[0].keys() if expected[0].get(name) != found[0].get(name)]
    lines = [f"{a}\n{b}" for a, b in itertools.zip_longest(expected[1], found[1]) if a != b]
    return "\n".join([f"{len(names)} tensors", *names[:10], "epochs, expected and found:", *lines[:3]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    dice, epochs, workers = random.Random(arguments.seed), arguments.epochs, arguments.workers
    CONTEXT.set_forkserver_preload(["tensorflow", "keras", "tfbio", "tfbio.experiments.run"])
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        whole = Path(folder) / "whole"
        undisturbed = start(whole, epochs, workers)
        for process in undisturbed:
            process.join()
        life = time.monotonic() - began
        result = json.loads((whole / "result.json").read_text())
        expected, training = outcome(whole), result["train_seconds"]
        print(f"undisturbed: {result['steps']} steps, {life:.0f} s, {training:.0f} s of them training", flush=True)
        kills = runs = torn = 0
        while kills < arguments.moments:
            runs += 1
            workdir = Path(folder) / f"run{runs}"
            while not (workdir / "result.json").exists():
                processes, at = start(workdir, epochs, workers), newest(workdir)
                until, moment = lambda: True, 0.0
                if kills == arguments.moments:
                    until, moment = lambda: False, 0
                elif kills % 4 == 3:
                    moment = dice.uniform(0, life - training)
                elif kills % 4 == 2:
                    until, moment = functools.partial(half_written, workdir), 0
                else:
                    until = functools.partial(has_newer, workdir, at)
                    moment = dice.uniform(0, 2 * training / arguments.moments)
                if wait(processes, 1e6, until) or wait(processes, moment):
                    end(processes)
                    if not (workdir / "result.json").exists():
                        sys.exit(f"an attempt failed by itself:\n{Path(f'{workdir}.log').read_text()[-3000:]}")
                    continue
                victims = processes if kills % 2 else [dice.choice(processes)]
                for process in victims:
                    os.kill(process.pid, signal.SIGKILL)
                end(processes)
                kills += 1
                torn += half_written(workdir)
                print(f"  {kills}: {len(victims)} of {workers} killed at step {newest(workdir)} or later", flush=True)
            if outcome(workdir) != expected:
                sys.exit(f"run {runs} differs from the undisturbed one:\n{differences(expected, outcome(workdir))}")
        print(
            f"{kills} kills in {runs} runs of {workers} workers, {torn} of them within the writing of a checkpoint: "
            f"all {len(expected[0])} tensors of every run's end, and its figures, are bit for bit the undisturbed run's"
        )


if __name__ == "__main__":
    main()
