"""Amortized Bayesian meta-learning for LoRA: adapters that generalise, with confidence that can be believed.

Names are imported when they are first used, so that `import abmll` costs nothing.

>>> import abmll
>>> abmll.load_tasks("builtin:occupations")[0].name
'occupations'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abmll.deprecation import warn_renamed

if TYPE_CHECKING:
    from abmll.adapters.attach import StdOptions, attach, detach
    from abmll.adapters.facts import StoredAdapter
    from abmll.adapters.folder import read_adapter, write_adapter
    from abmll.adapters.gaussian import LowRankGaussian
    from abmll.adapters.layer import AdapterSet
    from abmll.adapters.peft import write_peft
    from abmll.classifier import Classifier
    from abmll.config import CompareConfig, RunConfig, load_config
    from abmll.errors import AbmllError, NonFiniteError
    from abmll.everyday.saved import SavedPosterior, list_posteriors, load_posterior, save_posterior
    from abmll.exporting import export_calibrated, export_mean, export_merged
    from abmll.likelihood import ChoiceLikelihood
    from abmll.methods import METHODS, Method, register_method, resolve_settings
    from abmll.metrics.predictions import Prediction, Predictions, read_predictions
    from abmll.models import LanguageModel, load_model, random_model
    from abmll.publishing import Pushed, push_run
    from abmll.question import Question, Task
    from abmll.report import write_report
    from abmll.runs.compare import run_comparison
    from abmll.runs.train_run import train
    from abmll.scoring.registered import register_metric
    from abmll.scoring.scores import Scores, score
    from abmll.systems.adapters import load_adapter, load_system
    from abmll.systems.build import build_system
    from abmll.systems.plans import AdaptationPlan, PredictionPlan
    from abmll.systems.predict import Answer
    from abmll.systems.system import System
    from abmll.tasks.registered import RawTask, register_source
    from abmll.tasks.sources import load_tasks
    from abmll.watching import Watched, WatchOptions, watch_task

_MODULES = {
    "AbmllError": "abmll.errors",
    "AdaptationPlan": "abmll.systems.plans",
    "AdapterSet": "abmll.adapters.layer",
    "Answer": "abmll.systems.predict",
    "ChoiceLikelihood": "abmll.likelihood",
    "Classifier": "abmll.classifier",
    "CompareConfig": "abmll.config",
    "LanguageModel": "abmll.models",
    "LowRankGaussian": "abmll.adapters.gaussian",
    "METHODS": "abmll.methods",
    "Method": "abmll.methods",
    "NonFiniteError": "abmll.errors",
    "Prediction": "abmll.metrics.predictions",
    "PredictionPlan": "abmll.systems.plans",
    "Predictions": "abmll.metrics.predictions",
    "Pushed": "abmll.publishing",
    "Question": "abmll.question",
    "RawTask": "abmll.tasks.registered",
    "RunConfig": "abmll.config",
    "SavedPosterior": "abmll.everyday.saved",
    "Scores": "abmll.scoring.scores",
    "StdOptions": "abmll.adapters.attach",
    "StoredAdapter": "abmll.adapters.facts",
    "System": "abmll.systems.system",
    "Task": "abmll.question",
    "WatchOptions": "abmll.watching",
    "Watched": "abmll.watching",
    "attach": "abmll.adapters.attach",
    "build_system": "abmll.systems.build",
    "detach": "abmll.adapters.attach",
    "export_calibrated": "abmll.exporting",
    "export_mean": "abmll.exporting",
    "export_merged": "abmll.exporting",
    "list_posteriors": "abmll.everyday.saved",
    "load_adapter": "abmll.systems.adapters",
    "load_config": "abmll.config",
    "load_model": "abmll.models",
    "load_posterior": "abmll.everyday.saved",
    "load_system": "abmll.systems.adapters",
    "load_tasks": "abmll.tasks.sources",
    "push_run": "abmll.publishing",
    "random_model": "abmll.models",
    "read_adapter": "abmll.adapters.folder",
    "read_predictions": "abmll.metrics.predictions",
    "register_method": "abmll.methods",
    "register_metric": "abmll.scoring.registered",
    "register_source": "abmll.tasks.registered",
    "resolve_settings": "abmll.methods",
    "run_comparison": "abmll.runs.compare",
    "save_posterior": "abmll.everyday.saved",
    "score": "abmll.scoring.scores",
    "train": "abmll.runs.train_run",
    "watch_task": "abmll.watching",
    "write_adapter": "abmll.adapters.folder",
    "write_peft": "abmll.adapters.peft",
    "write_report": "abmll.report",
}
"""Public name -> the module that defines it; the imports above are for type checkers."""

__all__ = [
    "METHODS",
    "AbmllError",
    "AdaptationPlan",
    "AdapterSet",
    "Answer",
    "ChoiceLikelihood",
    "Classifier",
    "CompareConfig",
    "LanguageModel",
    "LowRankGaussian",
    "Method",
    "NonFiniteError",
    "Prediction",
    "PredictionPlan",
    "Predictions",
    "Pushed",
    "Question",
    "RawTask",
    "RunConfig",
    "SavedPosterior",
    "Scores",
    "StdOptions",
    "StoredAdapter",
    "System",
    "Task",
    "WatchOptions",
    "Watched",
    "attach",
    "build_system",
    "detach",
    "export_calibrated",
    "export_mean",
    "export_merged",
    "list_posteriors",
    "load_adapter",
    "load_config",
    "load_model",
    "load_posterior",
    "load_system",
    "load_tasks",
    "push_run",
    "random_model",
    "read_adapter",
    "read_predictions",
    "register_method",
    "register_metric",
    "register_source",
    "resolve_settings",
    "run_comparison",
    "save_posterior",
    "score",
    "train",
    "watch_task",
    "write_adapter",
    "write_peft",
    "write_report",
]


_DEPRECATED = {
    "adapt": ("abmll.systems.predict", "adapt", "abmll.System.adapt"),
    "meta_train": ("abmll.training.train", "meta_train_parts", "abmll.train"),
    "predict": ("abmll.systems.predict", "predict", "abmll.System.predict"),
    "SavedTask": ("abmll.everyday.saved", "SavedPosterior", "abmll.SavedPosterior"),
    "list_tasks": ("abmll.everyday.saved", "list_posteriors", "abmll.list_posteriors"),
    "load_task": ("abmll.everyday.saved", "load_posterior", "abmll.load_posterior"),
    "save_task": ("abmll.everyday.saved", "save_posterior", "abmll.save_posterior"),
}
"""Earlier public name -> where it is, and what takes its place; gone with the next minor version."""


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        module, attribute, instead = _DEPRECATED[name]
        warn_renamed(f"abmll.{name}", instead)
        return getattr(import_module(module), attribute)
    if name not in _MODULES:
        raise AttributeError(f"module 'abmll' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
