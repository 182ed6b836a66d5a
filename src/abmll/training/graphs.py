"""CUDA graphs: a step captured once per batch shape and replayed, so that a small step is not all launch overhead.

The first batch of a shape runs eagerly, which also warms up every library; the second is captured; from then on the
graph is replayed on new contents of the same memory. So nothing is captured that does not come twice, a capture
computes nothing twice, and a step is the same arithmetic in all three ways.
"""

import contextlib
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from abmll.prompts.batches import ChoiceBatch

log = logging.getLogger(__name__)

Step = Callable[[Sequence[ChoiceBatch], Tensor], tuple[Tensor, ...]]
"""Batches and noise keys [S] -> tensors. It may change parameters and optimizer state, in place only."""

MOST_CAPTURED = 64
EAGER_VISITS = 1


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    batches: list[ChoiceBatch]
    keys: Int[Tensor, " S"]
    outputs: tuple[Tensor, ...]
    reserved: int
    step: Step  # a reference: names are made of ids, and an object that is freed would leave its id to another


class Graphs:
    """Runs steps, captured where that is possible.

    Args:
        device: where batches and parameters are.
        capture: False runs everything eagerly; devices other than CUDA do so in any case.
        most: graphs that are kept; the one that was used longest ago goes first.

    Attributes:
        replays, eager_runs: how often each happened.
        capture_seconds: spent in making captures.
        fallbacks: name of a step -> why it runs eagerly.

    >>> graphs = Graphs(torch.device("cpu"))
    >>> graphs.run("double", lambda batches, keys: (2 * keys,), [], torch.tensor([4]))
    (tensor([8]),)
    """

    def __init__(self, device: torch.device, *, capture: bool = True, most: int = MOST_CAPTURED) -> None:
        self.device, self.most = device, most
        self.capture = capture and device.type == "cuda"
        self.replays = self.eager_runs = 0
        self.capture_seconds = 0.0
        self.fallbacks: dict[str, str] = {}
        self._visits: dict[Any, int] = {}
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._pool: Any = None
        if self.capture:
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.set_stream(_working_stream(device))

    def run(self, name: str, step: Step, batches: Sequence[ChoiceBatch], keys: Int[Tensor, " S"]) -> tuple[Tensor, ...]:
        """The step's outputs, which the next run of this step may overwrite.

        Args:
            name: of the step; with the shapes of the inputs it names the graph, so it must tell apart whatever the
                step reads besides its arguments and the memory of its parameters.
            step: what to run.
            batches: moved to the device if they are elsewhere.
            keys: noise keys.
        """
        if not self.capture or name in self.fallbacks:
            return self._eagerly(step, batches, keys)
        signature = (name, keys.shape[0], *(batch.signature for batch in batches))
        captured = self._captured.get(signature)
        if captured is None:
            self._visits[signature] = self._visits.get(signature, 0) + 1
            if self._visits[signature] <= EAGER_VISITS:
                return self._eagerly(step, batches, keys)
            captured = self._capture(name, signature, step, batches, keys)
            if captured is None:
                return self._eagerly(step, batches, keys)
        self._captured.move_to_end(signature)
        for mine, batch in zip(captured.batches, batches, strict=True):
            mine.copy_(batch)
        captured.keys.copy_(keys, non_blocking=True)
        captured.graph.replay()
        self.replays += 1
        return captured.outputs

    def _eagerly(self, step: Step, batches: Sequence[ChoiceBatch], keys: Tensor) -> tuple[Tensor, ...]:
        self.eager_runs += 1
        return step([batch.to(self.device, non_blocking=True) for batch in batches], keys.to(self.device))

    def _capture(
        self, name: str, signature: Any, step: Step, batches: Sequence[ChoiceBatch], keys: Tensor
    ) -> _Captured | None:
        while len(self._captured) >= self.most:
            self._captured.popitem(last=False)
        _make_room(self.device)
        static = [batch.to(self.device).repeat(1) for batch in batches]  # memory of their own
        static_keys = keys.to(self.device).clone()
        before, graph = torch.cuda.memory_reserved(self.device), torch.cuda.CUDAGraph()
        began = time.perf_counter()
        try:
            with _capturing(graph, self._pool):
                outputs = step(static, static_keys)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            self.fallbacks[name] = str(error).strip().splitlines()[0]
            log.warning("%s cannot be captured as a CUDA graph and runs eagerly: %s", name, self.fallbacks[name])
            return None
        self.capture_seconds += time.perf_counter() - began
        reserved = max(0, torch.cuda.memory_reserved(self.device) - before)
        self._captured[signature] = _Captured(graph, static, static_keys, outputs, reserved, step)
        return self._captured[signature]

    def close(self) -> None:
        """Give the captured graphs and their memory back; they are made anew if there are more runs."""
        self._captured.clear()
        self._visits.clear()
        if self.capture:
            torch.cuda.empty_cache()

    def report(self) -> dict[str, Any]:
        """For the journal: what was captured, how often it was used, and the memory that captures reserved."""
        return {
            "captured": len(self._captured),
            "replays": self.replays,
            "eager_runs": self.eager_runs,
            "capture_seconds": round(self.capture_seconds, 3),
            "reserved_bytes": sum(c.reserved for c in self._captured.values()),
            "fallbacks": dict(self.fallbacks),
        }


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _working_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that all work of this process is on, captured or not.

    A capture cannot be made on the default stream, and eager runs between replays must be on the same one as the
    replays: then all work stays in order, and memory freed by one is safe for the other. There is one for every system,
    because cuBLAS keeps a workspace (32 MiB on an H100) for each stream and thread that ever used it.
    """
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
        _streams[device].wait_stream(torch.cuda.current_stream(device))
    return _streams[device]


def _make_room(device: torch.device) -> None:
    """Give cached memory back if little is left: nothing can be given back during a capture."""
    free, total = torch.cuda.mem_get_info(device)
    if free < total // 4:
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What `torch.cuda.graph` does, without giving all cached memory back each time: the next eager step would have to
    ask for it again, and there is a capture for every shape.

    Nothing may be collected meanwhile, since a CUDA object that goes ends a capture.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        graph.capture_begin(pool=pool)
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it fails too, and knows less of why
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        if collects:
            gc.enable()
