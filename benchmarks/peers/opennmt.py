"""OpenNMT-tf's training command, in the environment of its own that it needs, on the same sentences.

It cuts its batches by tokens too, and logs source and target tokens a second. `task.options["python"]` is the Python of
that environment: `python3.11 -m venv opennmt; opennmt/bin/pip install OpenNMT-tf==2.32.0 tensorflow-cpu==2.13.1`.
"""

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.peers.side import LABEL_SMOOTHING, STARTED, Measured, Task, main, useful_flops
from benchmarks.tools.sentences import FIRST_PIECE, Sentences

MODEL = """
import opennmt

def model():
    inputter = lambda: opennmt.inputters.WordEmbedder(embedding_size={hidden_dim})
    return opennmt.models.Transformer(
        inputter(), inputter(), num_layers={num_layers}, num_units={hidden_dim}, num_heads={num_heads},
        ffn_inner_dim={intermediate_dim}, dropout={dropout}, attention_dropout=0.0, ffn_dropout=0.0, mha_bias=False,
        output_layer_bias=False, pre_norm=False, share_embeddings=opennmt.models.EmbeddingsSharingLevel.ALL,
    )
"""
CONFIG = """
model_dir: {folder}/run
data:
  train_features_file: {folder}/source.txt
  train_labels_file: {folder}/target.txt
  source_vocabulary: {folder}/vocabulary.txt
  target_vocabulary: {folder}/vocabulary.txt
  source_sequence_controls: {{end: true}}
params:
  optimizer: Adam
  optimizer_params: {{beta_1: 0.9, beta_2: 0.98, epsilon: 1.0e-9}}
  learning_rate: {learning_rate_scale}
  decay_type: NoamDecay
  decay_params: {{model_dim: {hidden_dim}, warmup_steps: {warmup_steps}}}
  label_smoothing: {label_smoothing}
train:
  batch_type: tokens
  batch_size: {tokens_per_batch}
  length_bucket_width: 1
  sample_buffer_size: {pairs}
  maximum_features_length: 256
  maximum_labels_length: 256
  max_step: {max_step}
  save_summary_steps: {report_every}
  save_checkpoints_steps: null
"""
# Its vocabulary has begin, end and padding of its own, and one place for what is unknown.
SPECIAL = ("<blank>", "<s>", "</s>")
REPORT_EVERY = 5
PROGRESS = re.compile(r"Step = (\d+) ; steps/s = ([\d.]+), tokens/s = (\d+)")
PARAMETERS = re.compile(r"Number of model parameters: (\d+)")


def check(task: Task) -> None:
    """Refuses what OpenNMT-tf cannot do or does not say."""
    for name in ("warmup", "steps"):
        if getattr(task, name) % REPORT_EVERY:
            raise ValueError(f"`{name}` is a multiple of {REPORT_EVERY}. Received: {name}={getattr(task, name)}")
    if task.dtype == "mixed_bfloat16":
        raise ValueError("OpenNMT-tf has no bfloat16. Received: dtype='mixed_bfloat16'")


def run(task: Task) -> Measured:
    """Trains on the clock of its log."""
    check(task)
    sentences = Sentences.load(task.sentences)
    with tempfile.TemporaryDirectory() as folder:
        write_files(task, sentences, Path(folder))
        command = [
            task.options["python"], "-m", "opennmt.bin.main", "--model", f"{folder}/model.py",
            "--config", f"{folder}/config.yml", "--seed", "1",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        process = subprocess.Popen(
            [*command, "train"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        lines = [(time.time(), line) for line in process.stderr]
        if process.wait():
            raise RuntimeError("OpenNMT-tf failed:\n" + "".join(line for _, line in lines)[-3000:])
    return read_log(task, sentences, lines)


def write_files(task: Task, sentences: Sentences, folder: Path) -> None:
    """The sentences as text of numbers, their vocabulary, the model and the config."""
    for name, rows in zip(("source", "target"), sentences.rows(), strict=True):
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        (folder / f"{name}.txt").write_text(text + "\n", encoding="ascii")
    # As many entries as V, with the one for what is unknown.
    pieces = [str(number) for number in range(FIRST_PIECE, task.vocabulary_size)]
    (folder / "vocabulary.txt").write_text("\n".join((*SPECIAL, *pieces)) + "\n", encoding="ascii")
    fields = {name: getattr(task, name) for name in Task.__dataclass_fields__}
    (folder / "model.py").write_text(MODEL.format(**fields), encoding="ascii")
    config = CONFIG.format(
        **fields, folder=folder, pairs=len(sentences), label_smoothing=LABEL_SMOOTHING,
        max_step=task.warmup + task.steps, report_every=REPORT_EVERY,
    )  # fmt: skip
    (folder / "config.yml").write_text(config, encoding="ascii")


def read_log(task: Task, sentences: Sentences, lines: list[tuple[float, str]]) -> Measured:
    """Adds up the reports after the warm-up; each is the rate since the one before."""
    reports = [PROGRESS.search(line) for _, line in lines]
    timed = [report for report in reports if report and int(report[1]) > task.warmup]
    seconds = [REPORT_EVERY / float(report[2]) for report in timed]
    tokens = sum(float(report[3]) * part for report, part in zip(timed, seconds, strict=True))
    # The number of parameters is logged at the end of the first step.
    first_step, parameters = next((at, int(found[1])) for at, line in lines if (found := PARAMETERS.search(line)))
    source_lengths, target_lengths = (lengths + 1 for lengths in (sentences.source_lengths, sentences.target_lengths))
    share = tokens / (source_lengths.sum() + target_lengths.sum())  # of an epoch
    return Measured(
        tokens=round(tokens),
        seconds=sum(seconds),
        first_step_seconds=first_step - float(os.environ[STARTED]),
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        parameters=parameters,
        loss=None,
        flops=round(share * useful_flops(task, source_lengths, target_lengths)),
    )


if __name__ == "__main__":
    main(run)
