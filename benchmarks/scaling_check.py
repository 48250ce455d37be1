"""Checks the form of `scaling_model.py` where it can be: one replica, two in a process, two and four processes here.

    python benchmarks/scaling_check.py --rules bp dfa kp --json out.json

A fully connected network trains, each replica with one thread for a kernel and the same number of examples. The model
says that a step of several replicas takes what one takes, and an all-reduce of all gradients beside it, for
`tf.distribute` hides none. Both terms are measured: a step of one replica in a process of its own, and an all-reduce of
as many values between them. In `mirrored` they meet in the memory of one process, in `multi_worker` on the loopback
device. Where there are more replicas than cores, these take turns: one's step counts as often as they must.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def measure(kind: str, rule: str, units: int, batch_size: int, rounds: int) -> dict:
    """Milliseconds of a step and of an all-reduce, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf
    from timing import interleaved, machine

    import tfbio
    from tfbio.training.strategies import make_strategy

    if kind == "mirrored":
        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    strategy = make_strategy(kind)
    count = batch_size * strategy.num_replicas_in_sync
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, 784)).astype(np.float32), rng.integers(0, 10, count).astype(np.int32)
    with strategy.scope():
        model = tfbio.models.fully_connected((784,), 10, (units,) * 3)
        optimizer = keras.optimizers.SGD(1e-3)
    trainer = tfbio.Trainer(model, rule, optimizer, strategy=strategy, jit_compile=False)
    feed = trainer._feed(tfbio.data.from_arrays(x, y, count), None)
    epochs = iter(range(10**6))
    shapes = [variable.shape for variable in trainer.rule.forward_variables + trainer.rule.feedback_variables]

    def step() -> float:
        epoch = next(epochs)
        return float(trainer._loop(feed, feed.open(epoch, 0), epoch, 0, 1))

    def sums() -> tf.Tensor:
        values = [tf.ones(shape) for shape in shapes]
        return tf.add_n([tf.reduce_max(v) for v in tf.distribute.get_replica_context().all_reduce("sum", values)])

    @tf.function
    def all_reduce() -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(sums))[0]

    seconds = interleaved({"step": step, "all_reduce": lambda: float(all_reduce())}, rounds)
    milliseconds = {f"{name}_ms": 1e3 * statistics.median(times) for name, times in seconds.items()}
    values = sum(int(np.prod(shape)) for shape in shapes)
    return {"kind": kind, "rule": rule, "values": values, **milliseconds, "machine": machine()}


def start(kind: str, count: int, arguments: argparse.Namespace, rule: str) -> dict:
    """The measurement in `count` processes of its own; the first one's figures."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    options = [f"--{name}={getattr(arguments, name)}" for name in ("units", "batch_size", "rounds")]
    processes = []
    for index in range(count):
        environment = dict(os.environ)
        if count > 1:
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
        command = [sys.executable, __file__, "--one", kind, "--rules", rule, *options]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipe))
    outputs = [process.communicate()[0] for process in processes]
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=["bp", "dfa", "kp"])
    parser.add_argument("--units", type=int, default=1024, help="of each of three hidden layers")
    parser.add_argument("--batch_size", type=int, default=64, help="examples a replica")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--one", help="measure this kind in this process")
    arguments = parser.parse_args()
    if arguments.one:
        sizes = (arguments.units, arguments.batch_size, arguments.rounds)
        print(json.dumps(measure(arguments.one, arguments.rules[0], *sizes)))
        return
    rows = []
    print("| rule | replicas | one's step, ms | all-reduce, ms | predicted, ms | measured, ms | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for rule in arguments.rules:
        alone = start("one_device", 1, arguments, rule)
        for kind, processes, replicas in (("mirrored", 1, 2), ("multi_worker", 2, 2), ("multi_worker", 4, 4)):
            all_of_them = start(kind, processes, arguments, rule)
            turns = max(1, replicas / alone["machine"]["cores"])
            predicted = turns * alone["step_ms"] + all_of_them["all_reduce_ms"]
            rows.append({"replicas": replicas, "alone": alone, "all": all_of_them, "predicted_ms": predicted})
            figures = (alone["step_ms"], all_of_them["all_reduce_ms"], predicted, all_of_them["step_ms"])
            cells = " | ".join(f"{figure:.1f}" for figure in figures)
            ratio = all_of_them["step_ms"] / predicted
            print(f"| `{rule}` | {replicas}, `{kind}` | {cells} | {ratio:.2f} |", flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
