"""The training of `test_distribution.py` with Keras' distributions on JAX.

A process has one number of devices and of hosts, so this file is a program: `python one_distribution.py RESULTS DEVICES
DROPOUT [ADDRESS HOSTS HOST]` writes the losses of a training with each distribution, or on several hosts.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[2]}"

import keras
import numpy as np

import keras_attention as ka
from keras_attention.pipeline import Hosts, RunConfig
from keras_attention.pipeline.hosts import check_same, connected, of_first_host
from keras_attention.text import BatchShard, PackedBatches
from keras_attention.training import ChunkedTrainer, FusedAdam, data_parallel
from keras_attention.training.data_parallel import num_shards
from keras_attention.training.processes import num_processes, of_first_process, process_index

V, STEPS, ROWS = 24, 50, 7
SIZES = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32, "num_heads": 4}


def batches() -> PackedBatches:
    """Batches of seven rows, which two or eight devices cannot divide."""
    numbers = np.random.default_rng(5)
    ids = [[numbers.integers(4, V, numbers.integers(1, 9)).tolist() for _ in range(300)] for _ in range(2)]
    return PackedBatches(*ids, row_length=16, rows_per_batch=ROWS, seed=3)


def train(scope: Callable[[], AbstractContextManager[Any]], dropout: float) -> tuple[np.ndarray, Any]:
    """The loss of each step, (STEPS,), and the trainer."""
    keras.utils.set_random_seed(7)
    with scope():
        model = ka.Transformer(ka.TransformerConfig(V, dropout=dropout, **SIZES))
        # Several chunks in a batch, as in one of usual size.
        trainer = ChunkedTrainer(model, 0.1, model.packed().input, chunk_size=8)
        trainer.compile(FusedAdam(0.01))
        count = num_processes()
        rows = BatchShard(batches(), process_index(), count, num_shards() // count).dataset().repeat()
        # Each call begins with new metrics, so its loss is that of the batch.
        losses = [trainer.train_on_batch(*next(rows), return_dict=True)["loss"] for _ in range(STEPS)]
    return np.array(losses), trainer


def mesh(*shape: int) -> keras.distribution.DeviceMesh:
    return keras.distribution.DeviceMesh(shape, ("batch", "model"))


def model_parallel(*shape: int) -> AbstractContextManager[Any]:
    """The scope of tensor parallelism over parts of the batch and parts of the model."""
    layouts = ka.Transformer.layout_map(mesh(*shape))
    return keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False).scope()


def local_shapes(trainer: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each variable on the first device, those of the optimizer too."""
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return {each.path: each.value.addressable_shards[0].data.shape for each in variables}


def errors() -> list[str]:
    """The messages of settings that do not fit the eight devices."""

    def model_of_eight_parts() -> None:
        with model_parallel(1, 8):
            ka.Transformer(ka.TransformerConfig(V, **SIZES))

    failing = [
        model_of_eight_parts,
        lambda: ka.Transformer.layout_map(mesh(2, 4), model_axis="heads"),
        lambda: data_parallel(9),
        lambda: data_parallel(0),
    ]
    return messages(failing)


def messages(failing: Sequence[Callable[[], Any]]) -> list[str]:
    """The messages of the errors of functions."""
    found = []
    for function in failing:
        try:
            function()
        except ValueError as error:
            found.append(str(error))
    return found


def main(results: str, devices: str, dropout: str, *hosts: str) -> None:
    rate, found = float(dropout), {}
    if hosts:
        address, count, host = hosts
        with connected(Hosts(address, int(count), int(host))):
            found["hosts"], _ = train(nullcontext, rate)
            # What differs between the hosts.
            mine = RunConfig("a", "b", "c", "d", seed=int(host), model={"dropout": 0.1 * int(host)})
            found["config"] = repr(of_first_host(mine))
            found["errors"] = np.array(messages([lambda: check_same([host]), lambda: data_parallel(1)]))
            found["seconds"] = of_first_process(1.5 + int(host))
    else:
        found["one"], _ = train(nullcontext, rate)
        found["data"], _ = train(lambda: data_parallel().scope(), rate)
        for shape in ((2, 4), (4, 2)):
            found[f"model/{shape}"], trainer = train(lambda shape=shape: model_parallel(*shape), rate)
            found |= {f"shapes/{shape}/{path}": np.array(each) for path, each in local_shapes(trainer).items()}
        with model_parallel(4, 2):
            options = {"num_kv_heads": 2, "activation": "swiglu", "use_attention_bias": True}
            model = ka.CausalTransformer(ka.TransformerConfig(V, **SIZES, **options))
        for each in model.variables:
            found[f"shapes/causal/{each.path}"] = np.array(each.value.addressable_shards[0].data.shape)
        found["errors"] = np.array(errors())
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
