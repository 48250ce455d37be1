"""Predicts what a training step of each rule costs on 1 to 1,024 chips: arithmetic, memory, all-reduce, input.

    python benchmarks/scaling_model.py --csv out.csv --json out.json --plot out.png

Counted from the layers: multiply-adds of an example, parameters, what is summed over replicas, what a replica keeps.
Assumed, and printed with the result: the chips (`CHIPS`), the share of their peaks that is reached, Adam. A step is

    forward, then a series of pieces (a layer's or a stage's gradients, and values to all-reduce), then the update.

A piece takes the longer of its arithmetic and of moving its parameters through memory. Pieces' sums follow one another
on the network, each as soon as its piece is there and in buckets of `BUCKET` bytes or more: they are hidden behind the
pieces that come later. Rules with a backward chain have the order of the chain. Direct feedback has none: its pieces
come in the order that ends first, which is Johnson's (1954, two machines in a row). `exposed` is a step that hides
nothing, with one sum after the last piece, as in `tf.distribute` today. Each chip keeps its batch (weak scaling);
efficiency is a chip's images/s as a share of one alone.
"""

import argparse
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported

import tfbio
from tfbio.network.graph import inlined, nodes

RULES = ("bp", "fa", "usf", "kp", "dfa", "dfa_regenerated", "dtp", "sdtp", "ao_sdtp")
NETWORKS = ("bartunov_imagenet_lc", "bartunov_imagenet_conv", "resnet50")
AUXILIARY = 512  # AO-SDTP's units
FLOAT = 4  # bytes: weights, gradients, optimizer and sums are float32
ACTIVATION = 2  # bytes: activations are bfloat16
SLOTS = 2  # Adam's numbers for each parameter
BUCKET = 4e6  # bytes: small sums are joined, or each would pay the network's latency


@dataclass(frozen=True)
class Chip:
    """Figures of one chip and its network; rates are a second's, of one direction, links in bytes.

    Attributes:
        peak: floating-point operations, two for a multiply-add, bfloat16, without sparsity.
        utilisation: the share of `peak` that is reached. Assumed.
        memory, bandwidth: bytes, and bytes a second of which 0.8 are reached.
        domain, link: chips joined by the fast network, and its bytes for each.
        outer: bytes for each chip between domains.
        latency: of one stage of a sum, seconds. Assumed.
        draws: random numbers. Assumed.
    """

    peak: float
    utilisation: float
    memory: float
    bandwidth: float
    domain: int
    link: float
    outer: float
    latency: float
    draws: float

    def arithmetic(self, macs: float) -> float:
        return 2 * macs / (self.peak * self.utilisation)

    def traffic(self, values: float) -> float:
        return FLOAT * values / (0.8 * self.bandwidth)

    def all_reduce(self, values: float, chips: int) -> float:
        """Seconds to sum so many float32 values over chips: within domains in pieces, the pieces between domains."""
        inner = min(chips, self.domain)
        outer = math.ceil(chips / self.domain)
        seconds = ring(FLOAT * values, inner) / self.link + ring(FLOAT * values / inner, outer) / self.outer
        return seconds + 2 * self.latency * (math.ceil(math.log2(inner)) + math.ceil(math.log2(outer)))


CHIPS = {
    "TPU v5e": Chip(197e12, 0.4, 16e9, 819e9, 256, 200e9, 6.4e12 / 8 / 256, 2e-6, 1e11),
    "H100 SXM": Chip(989e12, 0.4, 80e9, 3.35e12, 8, 450e9, 50e9, 5e-6, 5e11),
}


def ring(size: float, members: int) -> float:
    """Bytes that each member sends to sum `size` bytes over all: 2 (n - 1) / n of them."""
    return 2 * (members - 1) / members * size


@dataclass(frozen=True)
class Weighted:
    """One layer: its parameters, its multiply-adds forward, an example's, and whether no other comes before it."""

    parameters: int
    kernel: int
    macs: int
    first: bool


@dataclass(frozen=True)
class Stage:
    """A part of the network between two points that all paths pass."""

    layers: list[Weighted]
    inputs: int
    outputs: int
    bias: int  # of the mirror image: one for each channel (each unit, without shared weights) of the input
    activations: int

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


@dataclass
class Work:
    """What a rule does with one example.

    Attributes:
        forward: multiply-adds before any gradient.
        pieces: `(multiply-adds, values to sum, values read beside them, random numbers)`, in the order of the chain.
        free: how many of the pieces, from the end, may come in any order.
        learned: values of feedback that learns; kept: of feedback that does not.
    """

    forward: int
    pieces: list[tuple[int, int, int, int]]
    free: int = 0
    learned: int = 0
    kept: int = 0


def macs(layer: keras.layers.Layer, inputs: tuple, outputs: tuple) -> tuple[int, int]:
    """A layer's multiply-adds for an example, and the size of its kernel."""
    kernel = math.prod(layer.kernel.shape) if getattr(layer, "kernel", None) is not None else 0
    if isinstance(layer, tfbio.layers.LocallyConnected2D):
        return kernel, kernel  # each weight is used once
    shape = inputs if "Transpose" in type(layer).__name__ else outputs
    return kernel * math.prod(shape[1:-1]), kernel


def weighted(model: keras.Model) -> Iterator[Weighted]:
    """The layers with parameters, each after those that it needs."""
    seen = {id(tensor): False for tensor in model.inputs}  # whether a kernel comes before
    for node in nodes(inlined(model)):
        before = any(seen.get(id(tensor), False) for tensor in node.inputs)
        work, kernel = macs(node.layer, node.inputs[0].shape, node.outputs[0].shape)
        seen.update({id(tensor): before or kernel > 0 for tensor in node.outputs})
        if node.layer.weights:
            yield Weighted(sum(math.prod(v.shape) for v in node.layer.trainable_variables), kernel, work, not before)


def stages(model: keras.Model) -> list[Stage]:
    """The model's stages, counted."""
    result = []
    for stage in tfbio.stages(model):
        calls = nodes(inlined(stage))
        local = any(isinstance(node.layer, tfbio.layers.LocallyConnected2D) for node in calls)
        units = math.prod(stage.input_shape[1:])
        bias = units if local else stage.input_shape[-1]
        if len(stage.input_shape) > 2 and isinstance(calls[-1].layer, keras.layers.Dense):
            bias = units
        outputs = math.prod(stage.output_shape[1:])
        activations = sum(math.prod(node.outputs[0].shape[1:]) for node in calls)
        result.append(Stage(list(weighted(stage)), units, outputs, bias, activations))
    return result


def work(rule: str, model: keras.Model) -> Work:
    """What `rule` does with an example on `model`.

    Raises:
        ValueError: the rule has no way through this network.
    """
    layers, parts = list(weighted(model)), stages(model)
    forward = sum(layer.macs for layer in layers)
    if rule in ("bp", "fa", "usf", "kp"):
        kernels = [layer for layer in layers if layer.kernel]
        pieces = [(layer.macs * (1 if layer.first else 2), layer.parameters, 0, 0) for layer in reversed(layers)]
        # The first layer has feedback, too, of no use; the last one's is its weights, but under `kp`.
        kept = {"fa": kernels[:-1], "kp": kernels}.get(rule, [])
        return Work(forward, pieces, kept=sum(layer.kernel for layer in kept))
    if rule in ("dfa", "dfa_regenerated"):
        pieces, classes = [], parts[-1].outputs
        for part in reversed(parts):
            projection = 0 if part is parts[-1] else classes * part.outputs
            chain = sum(layer.macs * (1 if layer.first else 2) for layer in part.layers)
            drawn = projection if rule == "dfa_regenerated" else 0
            if part.layers:
                values = sum(layer.parameters for layer in part.layers)
                pieces.append((chain + projection, values, 0 if drawn else projection, drawn))
        kept = 0 if rule == "dfa_regenerated" else classes * sum(part.outputs for part in parts[:-1])
        return Work(forward, pieces, free=len(pieces), kept=kept)
    return _targets(rule, parts, forward)


def _targets(rule: str, parts: Sequence[Stage], forward: int) -> Work:
    """Difference target propagation: targets down the inverses, then each inverse's own loss."""
    if any(len([layer for layer in part.layers if layer.kernel]) != 1 for part in parts):
        raise ValueError("target propagation needs stages that have a mirror image: one weighted layer each")
    top, count = len(parts) - 1, len(parts)
    inverted = range(1, top if rule == "dtp" else count)
    extra = AUXILIARY * parts[-1].inputs if rule == "ao_sdtp" else 0
    inverse = {i: parts[i].macs + (extra if i == top else 0) for i in inverted}
    values = {i: parts[i].layers[0].kernel + parts[i].bias + (extra if i == top else 0) for i in inverted}
    pieces = []
    for i in reversed(range(count)):
        way = 2 * inverse.get(i + 1, 0)  # of the target, and of what was reached
        if i == top - 1:
            way += parts[top].macs if rule == "dtp" else extra  # the gradient, or the auxiliary features
        pieces.append((way + parts[i].macs, sum(layer.parameters for layer in parts[i].layers), 0, 0))
    for i in reversed(inverted):  # noise through the stage, through the inverse, and the inverse's gradient
        features = extra if i == top else 0
        pieces.append((parts[i].macs + features + 2 * inverse[i], values[i], 0, parts[i].inputs))
    return Work(forward, pieces, free=len(inverted), learned=sum(values.values()), kept=extra)


def johnson(pieces: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The order of `(seconds of computing, seconds of summing)` in which all is done first."""
    early = sorted((p for p in pieces if p[0] <= p[1]), key=lambda p: p[0])
    return early + sorted((p for p in pieces if p[0] > p[1]), key=lambda p: -p[1])


def finish(pieces: Sequence[tuple[float, float]]) -> float:
    """When the last sum is there, if each starts as soon as its piece and the sum before are done."""
    computed = summed = 0.0
    for compute, reduce in pieces:
        computed += compute
        summed = max(summed, computed) + reduce
    return summed


def step(chip: Chip, rule: Work, parameters: int, batch: int, chips: int) -> dict[str, float]:
    """Seconds of a step: `overlapped`, `exposed`, and what the sums alone take, `all_reduce`."""
    pieces, waiting = [], (0.0, 0)
    chained = len(rule.pieces) - rule.free
    free: list[tuple[float, float]] = []
    for number, (count, values, read, drawn) in enumerate(rule.pieces, start=1):
        compute = max(chip.arithmetic(count * batch), chip.traffic(2 * values + read)) + drawn / chip.draws
        waiting = (waiting[0] + compute, waiting[1] + values)
        if FLOAT * waiting[1] >= BUCKET or number in (chained, len(rule.pieces)):
            (pieces if number <= chained else free).append((waiting[0], chip.all_reduce(waiting[1], chips)))
            waiting = (0.0, 0)
    pieces += johnson(free)
    learned = parameters + rule.learned
    ends = max(chip.arithmetic(rule.forward * batch), chip.traffic(parameters))
    ends += chip.traffic((3 + 2 * SLOTS) * learned)  # the update reads gradients, and reads and writes the rest
    whole = chip.all_reduce(learned, chips)
    exposed = ends + sum(compute for compute, _ in pieces) + whole
    return {"overlapped": min(ends + finish(pieces), exposed), "exposed": exposed, "all_reduce": whole}


def memory(rule: Work, model: keras.Model, batch: int) -> float:
    """Bytes of a replica: weights, gradients, optimizer, feedback, activations that gradients need."""
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    activations = sum(math.prod(node.outputs[0].shape[1:]) for node in nodes(inlined(model)))
    return FLOAT * ((2 + SLOTS) * (parameters + rule.learned) + rule.kept) + ACTIVATION * batch * activations


def predict(batch: int, counts: Sequence[int]) -> tuple[dict, list[dict]]:
    """Counts by network and rule, and a row for each network, rule, chip and number of chips."""
    counted, rows = {}, []
    for name in NETWORKS:
        model = getattr(tfbio.models, name)()
        parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
        counted[name] = {"parameters": model.count_params(), "trainable": parameters, "rules": {}}
        for rule in RULES:
            try:
                made = work(rule, model)
            except ValueError as error:
                counted[name]["rules"][rule] = {"refused": str(error)}
                continue
            counted[name]["rules"][rule] = {
                "forward_macs": made.forward,
                "other_macs": sum(piece[0] for piece in made.pieces),
                "all_reduce_bytes": FLOAT * sum(piece[1] for piece in made.pieces),
                "random_numbers": sum(piece[3] for piece in made.pieces),
                "feedback_values": made.learned + made.kept,
                "replica_bytes": memory(made, model, batch),
            }
            for chip, figures in CHIPS.items():
                alone = step(figures, made, parameters, batch, 1)
                for chips in counts:
                    seconds = step(figures, made, parameters, batch, chips)
                    rows.append(
                        {
                            "network": name,
                            "rule": rule,
                            "chip": chip,
                            "chips": chips,
                            "overlapped_ms": round(1e3 * seconds["overlapped"], 4),
                            "exposed_ms": round(1e3 * seconds["exposed"], 4),
                            "all_reduce_ms": round(1e3 * seconds["all_reduce"], 4),
                            "hidden": round(max(0.0, _hidden(alone, seconds)), 3),
                            "efficiency_overlapped": round(alone["overlapped"] / seconds["overlapped"], 4),
                            "efficiency_exposed": round(alone["exposed"] / seconds["exposed"], 4),
                            "images_per_second": round(chips * batch / seconds["overlapped"]),
                        }
                    )
        keras.backend.clear_session()
    return counted, rows


def _hidden(alone: dict[str, float], seconds: dict[str, float]) -> float:
    """The share of the sums' time that a step does not take longer than one chip's."""
    longer = seconds["overlapped"] - alone["overlapped"]
    return 1 - longer / seconds["all_reduce"] if seconds["all_reduce"] else 0.0


def plot(rows: Sequence[dict], path: str) -> None:
    """Efficiency by the number of chips, hidden sums solid and exposed ones dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(CHIPS), len(NETWORKS), figsize=(11, 6), sharex=True, sharey=True, squeeze=False)
    for line, chip in zip(axes, CHIPS, strict=True):
        for axis, network in zip(line, NETWORKS, strict=True):
            for color, rule in enumerate(RULES):
                mine = [r for r in rows if (r["network"], r["rule"], r["chip"]) == (network, rule, chip)]
                chips = [r["chips"] for r in mine]
                axis.plot(chips, [r["efficiency_overlapped"] for r in mine], color=f"C{color}", label=rule)
                axis.plot(chips, [r["efficiency_exposed"] for r in mine], color=f"C{color}", ls=":", lw=0.8)
            axis.set_xscale("log", base=2)
            axis.set_title(f"{network}, {chip}", fontsize=8)
            axis.set_ylim(0, 1.05)
    axes[-1][1].set_xlabel("chips")
    axes[0][0].set_ylabel("efficiency")
    axes[0][0].legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128, help="examples a chip")
    parser.add_argument("--csv", help="write the predictions here")
    parser.add_argument("--json", help="write counts and assumptions here")
    parser.add_argument("--plot", help="draw efficiencies here")
    arguments = parser.parse_args()
    counted, rows = predict(arguments.batch_size, [2**power for power in range(11)])
    for row in rows:
        if row["chips"] in (1, 64, 1024):
            print(*row.values(), sep="\t")
    if arguments.json:
        chips = {name: asdict(chip) for name, chip in CHIPS.items()}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"batch_size": arguments.batch_size, "chips": chips, "networks": counted}, file, indent=1)
            file.write("\n")
    if arguments.csv:
        with open(arguments.csv, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
