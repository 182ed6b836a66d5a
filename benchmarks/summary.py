"""The measured rows as one file and one figure, from the results of the other benchmarks.

python benchmarks/summary.py      # reads and writes benchmarks/results/
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from benchmarks.common import write_result

HERE = Path(__file__).parent / "results"
TARGETS = {
    "qv_overhead_captured": 1.25,
    "all_overhead_captured": 1.4,
    "qv_step_ratio": 0.5,
    "qv_step_ms": 60,
    "all_step_ratio": 0.65,
    "all_step_ratio_eighth": 0.4,
    "qv_peak_ratio": 1.03,
    "all_peak_ratio": 1.03,
    "lora_captured_ratio": 1.05,
    "kl_inner_qv_ms": 6,
    "kl_inner_all_ms": 60,
    "kl_outer_qv_ms": 12,
    "kl_outer_all_ms": 120,
    "adapt_predict_ratio": 0.7,
    "smollm2_step_ratio": 0.2,
    "memory_tasks": 1.01,  # flat: the peak at the most over the peak at the least
    "memory_samples": 1.01,
    "two_gpu_speedup": 1.85,
    "rank64_overhead_captured": 1.6,
    "draws10_over_mean": 7,
    "draws10_over_mean_small": 3,
    "predict_1000_rows_s": 20,
    "first_task_s": 2,
    "qv_over_floor": 1.8,
}
FLOOR_MS = 20  # two passes over the 7.0e9 weights of the layers for 512 tokens, at some 715 TFLOP/s
LABELS = {
    "peer_eager": "peft LoRA, eager",
    "peer_captured": "peft LoRA, captured",
    "lora_captured": "our LoRA, captured",
    "abmll_eighth_captured": "ABMLL, KL on 1/8, captured",
    "abmll_captured": "ABMLL, full KL, captured",
}


def read(name: str) -> dict[str, Any]:
    """A result file."""
    found: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return found


def rows() -> dict[str, tuple[float, str]]:
    """Measured values, and on which device, by id."""
    steps, kernels, tasks, small, sizes, few, wide, parity, shards = (
        read(f"{name}.json")
        for name in (
            *("steps", "kernel_kl", "tasks", "steps_smollm2", "steps_sizes", "steps_four_layers", "steps_rank64"),
            *("parity", "shards"),
        )
    )
    found: dict[str, tuple[float, str]] = {}

    def put(name: str, value: float, of: dict[str, Any]) -> None:
        found[name] = value, of["device"]

    for which in ("qv", "all"):
        of = steps[f"{which}_rank8_2x256"]
        ours, peer = of["abmll_captured"], of["peer_eager"]
        put(f"{which}_overhead_captured", _overhead(of), steps)
        put(f"{which}_step_ratio", ours["ms"] / peer["ms"], steps)
        put(f"{which}_step_ms", ours["ms"], steps)
        put(f"{which}_step_ratio_eighth", of["abmll_eighth_captured"]["ms"] / peer["ms"], steps)
        put(f"{which}_peak_ratio", ours["peak"]["allocated_gib"] / peer["peak"]["allocated_gib"], steps)
        for kind in ("inner", "outer"):
            put(f"kl_{kind}_{which}_ms", kernels["times"][f"{which}_rank8_{kind}"]["ms"], kernels)
    lora = (steps[f"{which}_rank8_2x256"] for which in ("qv", "all"))
    put("lora_captured_ratio", max(of["lora_captured"]["ms"] / of["peer_captured"]["ms"] for of in lora), steps)
    of = small["qv_rank8_2x64"]
    put("smollm2_step_ratio", of["abmll_captured"]["ms"] / of["peer_eager"]["ms"], small)
    for tokens in (128, 512):
        put(f"qv_{tokens}_overhead_captured", _overhead(sizes[f"qv_rank8_2x{tokens}"]), sizes)
    for setting in ("qv_rank8_2x1024", "qv_rank8_8x256", "all_rank8_2x1024"):
        name = setting.replace("_rank8_2x", "_").replace("_rank8", "")
        put(f"{name}_four_layers_overhead_captured", _overhead(few[setting]), few)
    for peer in ("peer_compiled", "abmll_dense"):
        put(f"{peer}_four_layers_ms", few["qv_rank8_2x256"][peer]["ms"], few)
    engine, after = read("engine.json"), read("engine_after.json")  # rank 64 and all layers were not measured again
    put("rank64_overhead_captured", engine["rank64"]["overhead"], engine)
    put("draws10_over_mean", after["draws"]["ratio"], after)
    put("draws10_over_mean_small", after["small"]["ratio"], after)
    put("predict_1000_rows_s", after["rows"]["s"][0], after)  # captures included
    put("first_task_s", after["first"]["s"], after)
    put("qv_over_floor", after["floor"]["abmll"]["ms"] / FLOOR_MS, after)
    lora = statistics.median(engine["all"]["adapt_s"]["lora"])
    for name in ("abmll", "core"):
        put(f"all_{name}_adapt_over_lora", statistics.median(engine["all"]["adapt_s"][name]) / lora, engine)
    put("qv_rank64_four_layers_overhead_captured", _overhead(wide["qv_rank64_2x256"]), wide)
    adapting = tasks["adapt_predict"]
    ours, peer = (statistics.median(adapting[name][1:]) for name in ("ours_mean_s", "peer_s"))  # the first captures
    put("adapt_predict_ratio", ours / peer, tasks)
    for kind in ("tasks", "samples"):
        peaks = list(tasks["memory"][f"{kind}_mib"].values())
        put(f"memory_{kind}", max(peaks) / min(peaks), tasks)
    of = parity["abmll"]
    put("parity_from_eager_over_other_seed", of["captured_from_eager"] / of["other_seed_from_eager"], parity)
    put("two_gpu_speedup", shards["eight_b"]["two_gpu_speedup"], shards)
    put("shape70b_step_s", shards["seventy_b"]["shape70b_step_s"], shards)
    put("shape70b_step_ratio", shards["seventy_b"]["shape70b_step_s"] / shards["seventy_b"]["peer"]["step_s"], shards)
    return found


def _overhead(of: dict[str, Any]) -> float:
    return float(of["abmll_captured"]["ms"] / of["lora_captured"]["ms"])


def draw(path: Path) -> None:
    """Milliseconds of a step, by variant."""
    steps = read("steps.json")
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.2), sharey=True, layout="constrained")
    titles = {"qv": "q + v", "all": "all linear layers"}
    for axis, which in zip(axes, titles, strict=True):
        of = steps[f"{which}_rank8_2x256"]
        values = [of[name]["ms"] for name in LABELS]
        colours = ["#9aa5b1", "#9aa5b1", "#5b8bd6", "#d98f4e", "#c85f2b"]
        bars = axis.barh(list(LABELS.values()), values, color=colours)
        axis.bar_label(bars, [f"{v:.0f} ms" for v in values], padding=3)
        overhead = of["abmll_captured"]["ms"] / of["lora_captured"]["ms"]
        axis.set_title(f"{titles[which]}: ABMLL / our LoRA = {overhead:.2f}", loc="left", fontsize=10)
        axis.set_xlabel("one step, milliseconds (median)")
        axis.set_xlim(0, 1.15 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(f"Llama-3-8B shape, 2 x 256 tokens, rank 8, {steps['device']}", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Write summary.json and steps.png."""
    found = rows()
    names = [*(name for name in TARGETS if name in found), *sorted(found.keys() - TARGETS.keys())]
    summary = {name: {"value": found[name][0], "target": TARGETS.get(name), "device": found[name][1]} for name in names}
    write_result(HERE / "summary.json", summary)
    draw(HERE / "steps.png")
    for name, row in summary.items():
        print(f"{name:24} {row['value']:8.3f}   target {row['target']}")


if __name__ == "__main__":
    main()
