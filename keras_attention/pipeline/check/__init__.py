"""The check of the text files of a training: numbers, problems, cleaned copies."""

from keras_attention.pipeline.check.before_training import check_before_training
from keras_attention.pipeline.check.picture import draw_report
from keras_attention.pipeline.check.problems import Problem
from keras_attention.pipeline.check.report import CheckReport
from keras_attention.pipeline.check.texts import check_texts

__all__ = ["CheckReport", "Problem", "check_before_training", "check_texts", "draw_report"]
