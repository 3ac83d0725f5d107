"""Evaluation: one protocol a file, pure functions of features; features.py and runner.py bring models and sets."""

from .checks import EvaluationError
from .contenders import contenders
from .runner import TASKS, compare, evaluate

__all__ = ["TASKS", "EvaluationError", "compare", "contenders", "evaluate"]
