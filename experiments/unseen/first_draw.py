"""Every system at its first training seed and first draw of examples: what was run once, beside the rest."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from abmll.scoring.scores import score
from experiments.unseen.packing import Packed
from experiments.unseen.results import of_tasks, read_results

METRICS = ("accuracy", "nll_posterior", "nll", "ece", "ece_noise_floor")


def first_draw(targets: Iterable[Packed], parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Means over the tasks of each part, of the predictions with seed 0 after draw 0.

    Args:
        targets: packed files.
        parts: name of a part -> its tasks, as validation and unseen ones.

    Returns:
        System -> part -> metric -> mean. Systems without seed 0 are left out.
    """
    kept = list(targets)
    out: dict[str, Any] = {}
    for part, tasks in parts.items():
        final = read_results(of_tasks(kept, tasks)).final
        for system, by_seed in final.items():
            if 0 in by_seed:
                scores = [score(by_seed[0][0, task]).to_dict() for task in tasks]
                out.setdefault(system, {})[part] = {m: float(np.mean([s[m] for s in scores])) for m in METRICS}
    return out
