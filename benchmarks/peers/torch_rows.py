"""`torch.nn.Transformer` on rows of one length, compiled with `torch.compile`."""

import itertools

import torch
from torch import nn

from benchmarks.peers import rows, side
from benchmarks.peers.side import LABEL_SMOOTHING, Task
from benchmarks.peers.torch_transformer import Translator
from benchmarks.tools.sentences import PAD
from benchmarks.tools.workers import serve


def prepare(task: Task) -> rows.Rows:
    """Builds the model; the first step compiles it."""
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Translator(task).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: task.learning_rate(done + 1))
    data = itertools.cycle(
        [tuple(torch.from_numpy(ids).long().to(device) for ids in batch) for batch in rows.batches(task)]
    )

    def loss_of(source: torch.Tensor, target: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=task.dtype == "mixed_bfloat16"):
            # No padding: rows without a mask are what torch has its fastest attention for.
            logits = model(source, target, padded=False)
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=PAD, label_smoothing=LABEL_SMOOTHING
        )

    compiled = torch.compile(loss_of) if task.options.get("compile", True) else loss_of

    def train(count: int) -> None:
        for batch in itertools.islice(data, count):
            optimizer.zero_grad()
            compiled(*batch).backward()
            optimizer.step()
            schedule.step()
        if device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else side.peak_bytes()

    return rows.Rows(task, train, peak_bytes, sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    serve(lambda task: prepare(Task(**task)))
