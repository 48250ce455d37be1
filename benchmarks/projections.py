"""What direct feedback's projections cost, in time and memory, for the stages of a network.

    python benchmarks/projections.py --outputs 1000 --units 150528 37632 75264 18816 37632 9408 18816 --batch_size 32

The defaults are the hidden layers of the ImageNet network of Bartunov et al. 2018. Each storage runs in a process of
its own, since a peak of memory is a process's; the work is one projection of a batch's errors to all stages.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

IMAGENET = (56 * 56 * 48, 28 * 28 * 48, 28 * 28 * 96, 14 * 14 * 96, 14 * 14 * 192, 7 * 7 * 192, 7 * 7 * 384)


def measure(storage: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds for one batch (median), the bytes kept, and the growth of the process's peak memory in MiB."""
    import tensorflow as tf

    from tfbio.feedback.projections import make_projections, project_all

    error = tf.random.stateless_normal((arguments.batch_size, arguments.outputs), (0, 0))
    tf.matmul(error, error, transpose_b=True)  # what TensorFlow needs to begin with
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shapes = [(units,) for units in arguments.units]
    projections = make_projections(storage, None, 1.0, 0, arguments.outputs, shapes, "float32")

    @tf.function(jit_compile=arguments.jit_compile)
    def run(error):
        return tf.add_n([tf.reduce_sum(signal) for signal in project_all(projections, error)])

    seconds = []
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        run(error).numpy()
        seconds.append(time.perf_counter() - start)
    variables = {id(v): v for projection in projections for v in projection.variables}.values()
    return {
        "ms": 1e3 * statistics.median(seconds[1:]),
        "kept_bytes": sum(v.numpy().nbytes for v in variables),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--units", type=int, nargs="+", default=list(IMAGENET))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jit_compile", action="store_true")
    parser.add_argument("--storages", nargs="+", default=["dense", "shared", "regenerated"])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    print("| storage | ms a batch | kept, MB | peak memory, MiB |\n|---|---|---|---|")
    for storage in arguments.storages:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", storage]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        print(f"| {storage} | {row['ms']:.0f} | {row['kept_bytes'] / 1e6:.1f} | {row['peak_mib']:.0f} |")


if __name__ == "__main__":
    main()
