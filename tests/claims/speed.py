"""benchmarks/README.md."""

from collections.abc import Callable
from statistics import median
from typing import Any

from tests.claims.numbers import (
    BENCH,
    BENCHMARKS,
    RIVALS,
    Claim,
    Number,
    read,
)


def benchmarks() -> list[Claim]:
    """The rows of benchmarks/README.md."""
    summary, steps, parity = BENCH.format("summary"), BENCH.format("steps"), BENCH.format("parity")

    def value(name: str, form: str = ".2f!") -> Number:
        return Number(summary, f"{name}/value", form)

    def row(text: str, *names: str) -> Claim:
        numbers = [value(*name.split(":")) for name in names]
        return Claim(BENCHMARKS, text, tuple(numbers))

    adapting = BENCH.format("tasks")
    ratio = [("abmll", "structured"), ("moved", "captured_from_eager", "other_seed_from_eager")]
    return [
        row("both captured, q+v | {} |", "qv_overhead_captured"),
        row("| the same, all linear layers | {} |", "all_overhead_captured"),
        row("peer's eager LoRA step, q+v | {} ({} ms) |", "qv_step_ratio", "qv_step_ms:.1f!"),
        row("KL on 1/8 of the rows | {} ({} ms); {} |", "all_step_ratio", "all_step_ms:.1f!", "all_step_ratio_eighth"),
        row("| peak memory / peer's, q+v; all linear | {}; {} |", "qv_peak_ratio", "all_peak_ratio"),
        row("q+v; all linear | {} ms; {} ms | 6; 60 |", "kl_inner_qv_ms:.1f!", "kl_inner_all_ms:.1f!"),
        row("q+v; all linear | {} ms; {} ms | 12; 120 |", "kl_outer_qv_ms:.1f!", "kl_outer_all_ms:.1f!"),
        row("mean weights / peer | {} (", "adapt_predict_ratio"),
        row("captured, from eager / another seed from eager | {} |", "parity_from_eager_over_other_seed"),
        row("ABMLL / our LoRA is {} and {}:", "qv_128_overhead_captured", "qv_512_overhead_captured"),
        Claim(
            BENCHMARKS,
            "ours took {} to {} s, the peer {} to {}: {} is of the medians, {} to {} the range of the ratios, {} of "
            "the least",
            (
                *(Number(adapting, _of_list("ours_mean_s", pick), ".2f!") for pick in (min, max)),
                *(Number(adapting, _of_list("peer_s", pick), ".2f!") for pick in (min, max)),
                Number(adapting, lambda t: _of_list("ours_mean_s", median)(t) / _of_list("peer_s", median)(t), ".2f!"),
                *(Number(adapting, lambda t, pick=pick: pick(_ratios(t)), ".2f!") for pick in (min, max)),
                Number(adapting, lambda t: _of_list("ours_mean_s", min)(t) / _of_list("peer_s", min)(t), ".2f!"),
            ),
        ),
        Claim(
            BENCHMARKS,
            "ABMLL's theta moves {} and ends {} away from where the eager run ends; the move of another seed is {} "
            "away from it. Structured LoRA's moves {}, ends {} away, another seed {}.",
            tuple(
                Number(parity, f"{system}/{what}", ".2f" if what.startswith("captured") else ".2f!")
                for system in ratio[0]
                for what in ratio[1]
            ),
        ),
        Claim(
            BENCHMARKS,
            "The peer's eager times vary by {} x with the host's load, at four layers by up to {} x.",
            (
                Number(steps, lambda s: _most(s, "peer_eager", _times), ".1f!"),
                Number(BENCH.format("steps_rank64"), lambda s: _most(s, "peer_eager", _times), ".1f!"),
            ),
        ),
        Claim(
            BENCHMARKS,
            "captured steps are apart by up to {} % of their median at 32 layers (those of all linear layers by up to "
            "{} %, so that 1.83 is {} to {}), by up to {} % at the small model's shape, and at four layers one of "
            "ours at rank 64 took {} ms where the median is {}.",
            (
                Number(BENCH.format("steps_sizes"), lambda s: _most(s, "captured", _percent), ".0f!"),
                Number(steps, lambda s: _most({"all_rank8_2x256": s["all_rank8_2x256"]}, "captured", _percent), ".0f!"),
                *(Number(steps, _least_and_most_overhead(i), ".2f!") for i in (0, 1)),
                Number(BENCH.format("steps_smollm2"), lambda s: _most(s, "captured", _percent), ".0f!"),
                Number(BENCH.format("steps_rank64"), "qv_rank64_2x256/lora_captured/spread_ms/1", ".1f!"),
                Number(BENCH.format("steps_rank64"), "qv_rank64_2x256/lora_captured/ms", ".1f!"),
            ),
        ),
        Claim(
            BENCHMARKS,
            "takes {} ({} to {}) of its time at commit b1e0b36 for LoRA and {} ({} to {};",
            tuple(
                Number(BENCH.format("cpu"), f"{system}/{what}", ".2f!")
                for system in ("lora", "abmll")
                for what in ("time_ratio", "spread/0", "spread/1")
            ),
        ),
    ] + [
        Claim(
            BENCHMARKS,
            f"| {label} | {{}} | {{}} | {{}} | {{}} | {{}} |",
            (
                *(
                    Number(BENCH.format(file), f"{key}/{name}/ms", ".1f!")
                    for name in ("peer_eager", "peer_captured", "lora_captured", "abmll_captured")
                ),
                Number(BENCH.format(file), _overhead(key), ".2f!" if key != "qv_rank64_2x256" else ".1f!"),
            ),
        )
        for label, file, key in (
            ("q+v, 2 x 256", "steps_four_layers", "qv_rank8_2x256"),
            ("q+v, 2 x 1,024", "steps_four_layers", "qv_rank8_2x1024"),
            ("q+v, 8 x 256", "steps_four_layers", "qv_rank8_8x256"),
            ("all linear, 2 x 1,024", "steps_four_layers", "all_rank8_2x1024"),
            ("q+v, 2 x 256, rank 64", "steps_rank64", "qv_rank64_2x256"),
        )
    ]


def _of_list(name: str, pick: Callable[[list[float]], float]) -> Callable[[Any], float]:
    return lambda tasks: pick(tasks["adapt_predict"][name][1:])  # the first one captures


def _ratios(tasks: Any) -> list[float]:
    seconds = tasks["adapt_predict"]
    return [ours / peer for ours, peer in zip(seconds["ours_mean_s"][1:], seconds["peer_s"][1:], strict=True)]


def _most(steps: Any, kind: str, of_one: Callable[[Any], float]) -> float:
    """Over every step of a kind in a file."""
    groups = [group for group in steps.values() if isinstance(group, dict)]
    return max(of_one(one) for group in groups for name, one in group.items() if kind in name and "ms" in one)


def _times(one: Any) -> float:
    return one["spread_ms"][1] / one["spread_ms"][0]


def _percent(one: Any) -> float:
    return 100 * (one["spread_ms"][1] - one["spread_ms"][0]) / one["ms"]


def _overhead(key: str) -> Callable[[Any], float]:
    return lambda steps: steps[key]["abmll_captured"]["ms"] / steps[key]["lora_captured"]["ms"]


def _least_and_most_overhead(end: int) -> Callable[[Any], float]:
    key = "all_rank8_2x256"
    return lambda s: s[key]["abmll_captured"]["spread_ms"][end] / s[key]["lora_captured"]["spread_ms"][1 - end]


def rivals() -> list[Claim]:
    """The table of costs of docs/rivals.md: every system that was measured, and the times that they are told in."""
    file = BENCH.format("rivals")
    measured: dict[str, dict[str, Any]] = read(file)["systems"]

    def times(name: str, phase: str) -> Number:
        return Number(file, f"systems/{name}/{phase}/times_lora", ".1f!")

    def peak(name: str) -> Number:
        return Number(file, lambda t: max(phase["peak_gib"] for phase in t["systems"][name].values()), ".1f!")

    def row(name: str) -> Claim:
        phases = [phase for phase in ("train_step", "adapt", "answer") if phase in measured[name]]
        cells = "| " * (3 - len(phases)) + "| {} " * len(phases)
        return Claim(RIVALS, f"| `{name}` {cells}| {{}} |", (*(times(name, phase) for phase in phases), peak(name)))

    texts = {"train_step": "{} ms for `structured`", "adapt": "work: {} ms", "answer": "of eight: {} ms"}
    reference = [Claim(RIVALS, t, (Number(file, f"systems/structured/{p}/ms", ".0f!"),)) for p, t in texts.items()]
    return [*reference, *(row(name) for name in measured if name != "structured"), *_core()]


def _core() -> list[Claim]:
    """Of the core on a CPU, in another run than its rivals."""
    file = BENCH.format("core")
    phases = (Number(file, f"rivals/times_structured/{phase}", ".1f!") for phase in ("train_step", "adapt", "answer"))

    def over(pair: str, *which: str) -> list[Number]:
        return [Number(file, lambda t, w=w: t["over_tasks"][pair][w], ".1f!") for w in which]

    pieces, whole = (over(f"{name}/structured", "least", "most", "median") for name in ("core", "core_whole"))
    text = "takes {} to {} times the processor time of `structured` (median {})"
    return [
        Claim(RIVALS, "| `core`, on a CPU | {} | {} | {} | |", tuple(phases)),
        Claim(RIVALS, text, tuple(pieces)),
        Claim(RIVALS, "as it was, {} to {} ({})", tuple(whole)),
    ]
