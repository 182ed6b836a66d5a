"""Amortized Bayesian meta-learning for LoRA: adapters that generalise, with confidence that can be believed.

>>> import abmll
>>> abmll.load_tasks("builtin:occupations")[0].name
'occupations'
"""

from abmll.adapters.attach import attach, detach
from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdapterSet
from abmll.adapters.peft import write_peft
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.likelihood import ChoiceLikelihood
from abmll.methods import METHODS, Method, resolve_settings
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.metrics.scores import Scores, score
from abmll.models import LanguageModel, load_model
from abmll.report import write_report
from abmll.running.adapt import adapt, predict
from abmll.running.compare import run_comparison
from abmll.running.train import meta_train
from abmll.tasks.question import Question, Task
from abmll.tasks.sources import load_tasks

__all__ = [
    "METHODS",
    "AbmllError",
    "AdapterSet",
    "ChoiceLikelihood",
    "CompareConfig",
    "LanguageModel",
    "LowRankGaussian",
    "Method",
    "Prediction",
    "Predictions",
    "Question",
    "RunConfig",
    "Scores",
    "Task",
    "adapt",
    "attach",
    "detach",
    "load_config",
    "load_model",
    "load_tasks",
    "meta_train",
    "predict",
    "read_predictions",
    "resolve_settings",
    "run_comparison",
    "score",
    "write_peft",
    "write_report",
]
