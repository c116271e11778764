"""Jobs on files and folders, which the commands of `keras-attention` call."""

from keras_attention.extras import needed_by

with needed_by("keras_attention.pipeline", "cli", "text"):
    from keras_attention.pipeline.card import record_scores, run_card
    from keras_attention.pipeline.check import CheckReport, check_texts, draw_report
    from keras_attention.pipeline.comparison import Comparison, MetricComparison, compare, compare_translations
    from keras_attention.pipeline.config import RunConfig
    from keras_attention.pipeline.evaluate import CorpusScores, bleu_tokenizer, compare_weights, evaluate_translations
    from keras_attention.pipeline.final_model import average
    from keras_attention.pipeline.folder import RunFolder
    from keras_attention.pipeline.forecast import Forecast, forecast_run
    from keras_attention.pipeline.hosts import Hosts
    from keras_attention.pipeline.packed_weights import limit_bleu_loss
    from keras_attention.pipeline.plot import plot_runs
    from keras_attention.pipeline.runs import RunSummary, list_runs
    from keras_attention.pipeline.train import train
    from keras_attention.pipeline.trial import Trial, trial_training

__all__ = [
    "CheckReport",
    "Comparison",
    "CorpusScores",
    "Forecast",
    "Hosts",
    "MetricComparison",
    "RunConfig",
    "RunFolder",
    "RunSummary",
    "Trial",
    "average",
    "bleu_tokenizer",
    "check_texts",
    "compare",
    "compare_translations",
    "compare_weights",
    "draw_report",
    "evaluate_translations",
    "forecast_run",
    "limit_bleu_loss",
    "list_runs",
    "plot_runs",
    "record_scores",
    "run_card",
    "train",
    "trial_training",
]

# Earlier names.
Scores, score = CorpusScores, evaluate_translations
