"""Amortized Bayesian meta-learning for LoRA: adapters that generalise, with confidence that can be believed.

>>> import abmll
>>> abmll.load_tasks("builtin:occupations")[0].name
'occupations'
"""

from typing import TYPE_CHECKING, Any

from abmll.adapters.attach import attach, detach
from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import read_adapter, write_adapter
from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdapterSet
from abmll.adapters.peft import write_peft
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.exporting import export_calibrated, export_mean, export_merged
from abmll.likelihood import ChoiceLikelihood
from abmll.methods import METHODS, Method, resolve_settings
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.metrics.scores import Scores, score
from abmll.models import LanguageModel, load_model
from abmll.report import write_report
from abmll.running.adapt import adapt, predict
from abmll.running.adapters import load_adapter
from abmll.running.compare import run_comparison
from abmll.running.saved_tasks import SavedTask, list_tasks, load_task, save_task
from abmll.running.train import meta_train
from abmll.tasks.question import Question, Task
from abmll.tasks.sources import load_tasks

if TYPE_CHECKING:
    from abmll.classifier import Classifier  # optional extra: scikit-learn's base classes take time to import

__all__ = [
    "METHODS",
    "AbmllError",
    "AdapterSet",
    "ChoiceLikelihood",
    "Classifier",
    "CompareConfig",
    "LanguageModel",
    "LowRankGaussian",
    "Method",
    "Prediction",
    "Predictions",
    "Question",
    "RunConfig",
    "SavedTask",
    "Scores",
    "StoredAdapter",
    "Task",
    "adapt",
    "attach",
    "detach",
    "export_calibrated",
    "export_mean",
    "export_merged",
    "list_tasks",
    "load_adapter",
    "load_config",
    "load_model",
    "load_task",
    "load_tasks",
    "meta_train",
    "predict",
    "read_adapter",
    "read_predictions",
    "resolve_settings",
    "run_comparison",
    "save_task",
    "score",
    "write_adapter",
    "write_peft",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "Classifier":
        from abmll.classifier import Classifier  # optional extra: as above

        return Classifier
    raise AttributeError(f"module 'abmll' has no attribute {name!r}")
