"""What a training step of each rule costs on a network that fills memory: seconds, peak memory, bytes of feedback.

    python benchmarks/memory.py --network bartunov_imagenet_lc --rules bp dfa_regenerated dfa_shared dfa --batch_size 4

Each rule has a process of its own, for the peak is the process's: the plain model, SGD without momentum, one real batch
of random pixels, `--steps` steps in the graph loop of `Trainer` without XLA. Time is of the steps after the first. The
peak holds what TensorFlow itself and making the model take (`model`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def peak() -> float:
    """The process's peak memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(network: str, rule: str, batch_size: int, steps: int) -> dict:
    """One rule, in this process."""
    import keras
    import numpy as np

    import tfbio

    keras.utils.set_random_seed(0)
    model = getattr(tfbio.models, network)()
    made = peak()
    trainer = tfbio.Trainer(model, rule, keras.optimizers.SGD(1e-4), jit_compile=False, steps_per_loop=1)
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *model.input_shape[1:]), dtype=np.float32)
    y = rng.integers(0, model.output_shape[-1], batch_size).astype(np.int32)
    data = tfbio.data.from_arrays(x, y, batch_size)
    trainer.fit(data, epochs=1, verbose=False)
    started = time.perf_counter()
    history = trainer.fit(data, epochs=1 + steps, verbose=False).history
    seconds = (time.perf_counter() - started) / steps
    feedback = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in trainer.rule.variables)
    return {
        "rule": rule,
        "parameters": int(model.count_params()),
        "seconds": seconds,
        "peak_mib": peak(),
        "model_mib": made,
        "feedback_bytes": feedback,
        "losses": history["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="bartunov_imagenet_lc", help="a function of tfbio.models")
    parser.add_argument("--rules", nargs="+", default=["bp", "dfa_regenerated", "dfa_shared", "dfa"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--one", action="store_true", help="measure the one rule in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.network, arguments.rules[0], arguments.batch_size, arguments.steps)))
        return
    rows = []
    print("| rule | s a step | peak, MiB | the model alone, MiB | feedback, bytes |\n|---|---:|---:|---:|---:|")
    for rule in arguments.rules:
        options = ["--network", arguments.network, "--rules", rule, "--batch_size", str(arguments.batch_size)]
        command = [sys.executable, __file__, *options, "--steps", str(arguments.steps), "--one"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:  # killed, say, for want of memory
            rows.append({"rule": rule, "failed": process.stderr.strip().splitlines()[-1:] or process.returncode})
            print(f"| {rule} | failed: {rows[-1]['failed']} | | | |", flush=True)
            continue
        row = json.loads(process.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"| {rule} | {row['seconds']:.1f} | {row['peak_mib']:.0f} | {row['model_mib']:.0f} | "
            f"{row['feedback_bytes']:,} |",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"network": arguments.network, "batch_size": arguments.batch_size, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
