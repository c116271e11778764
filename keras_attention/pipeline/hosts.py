"""Hosts that train a run together with JAX: connecting them, and what their processes have in common."""

import contextlib
import dataclasses
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_attention.layers.arguments import check_distributes
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.last_words import last_words
from keras_attention.training.data_parallel import data_parallel
from keras_attention.training.processes import (
    is_first_process,
    num_processes,
    of_all_processes,
    of_first_process,
    process_index,
)

# A host that sends nothing for this time counts as dead, and the others end.
HEARTBEAT_SECONDS = 30
# The time for all hosts to start, and for the first one to write the final model after the others have ended.
CONNECTION_SECONDS, SHUTDOWN_SECONDS = 300, 3600
# Keras' own variables, https://keras.io/api/distribution.
_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID = (
    f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
)
# How JAX's errors begin when a connection between two hosts ends.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (?:reset|closed)")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that train a run together, one on each host or one for each GPU.

    Without arguments, those that the environment describes: Slurm, Open MPI, a TPU, Kubernetes with `pip install
    "jax[k8s]"`, or the variables KERAS_DISTRIBUTION_JOB_ADDRESSES, KERAS_DISTRIBUTION_NUM_PROCESSES and
    KERAS_DISTRIBUTION_PROCESS_ID.

    Args:
        coordinator: Address of the first process as "host:port", with a port that is free there.
        num_hosts: Number of processes.
        host: Index of this process, from 0.

    Raises:
        ValueError: If only some of the arguments are given, or one is out of range.

    Example:
        >>> Hosts("10.0.0.1:1234", num_hosts=2, host=0).num_hosts
        2
    """

    coordinator: str | None = None
    num_hosts: int | None = None
    host: int | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        missing = [name for name, value in values.items() if value is None]
        if 0 < len(missing) < len(values):
            raise ValueError(
                "Give the address of the first host, the number of hosts and the index of this one, or none of them "
                f"where the environment has them. Received: {_received(values)}"
            )
        if missing:
            return
        if not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(
                "`coordinator` is the address of the first host and a port, such as 10.0.0.1:1234. "
                f"Received: coordinator={self.coordinator!r}"
            )
        if not 0 <= self.host < self.num_hosts:
            raise ValueError(
                f"`host` counts the hosts from 0, so it is below `num_hosts`. Received: {_received(values)}"
            )

    @classmethod
    def from_environment(cls) -> "Hosts":
        """Returns the hosts that Keras' variables describe, or `Hosts()` without them."""
        values = [os.environ.get(name) for name in (_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID)]
        if None in values:
            return cls()
        addresses, number, index = values
        try:
            return cls(addresses.split(",")[0], int(number), int(index))
        except ValueError as error:
            received = dict(zip((_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID), values, strict=True))
            raise ValueError(
                f"The environment must name an address with a port, a number of processes and the index of this one. "
                f"Received: {_received(received)}"
            ) from error


@contextlib.contextmanager
def connected(hosts: Hosts | None) -> Iterator[None]:
    """Connects the hosts; within the block, each has a part of every batch, and only the first one prints."""
    if hosts is None and num_processes() == 1:
        yield
        return
    check_distributes("`hosts`")
    if hosts is not None:
        _connect(hosts)
    number, index = num_processes(), process_index()
    message = (
        f"Host {index} of {number} ended before the training did. If its own error is not above, another host ended or "
        "lost its connection: JAX's message above names it as a task. Start the same command on all hosts again: the "
        "run resumes from its last checkpoint."
    )
    with last_words(message), _silent_unless_first(), _lost_connections(index, number), data_parallel().scope():
        import jax

        print(f"training on {number} hosts with {jax.device_count()} devices")
        yield


def _connect(hosts: Hosts) -> None:
    import jax

    hosts = Hosts.from_environment() if hosts.coordinator is None else hosts
    message = (
        f"This host did not connect to the others within {CONNECTION_SECONDS} seconds. Start the same command on all "
        "hosts, each with its own index, and check that they reach the port of the first one. "
        f"Received: {_received(dataclasses.asdict(hosts))}"
    )
    with last_words(message):
        try:
            jax.distributed.initialize(
                hosts.coordinator,
                hosts.num_hosts,
                hosts.host,
                # Otherwise Slurm, for example, gives each of its tasks one GPU.
                cluster_detection_method=None if hosts.coordinator is None else "deactivate",
                initialization_timeout=CONNECTION_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            failure = error
        else:
            return
    if "must be called before" in str(failure):
        raise ValueError(
            "JAX connects hosts only before its first computation: call `train` with `hosts` at the beginning of the "
            "process. Received: a process in which JAX has computed"
        ) from failure
    if "should be defined" in str(failure) or "must be defined" in str(failure):
        raise ValueError(
            "The environment does not describe any hosts: pass the address of the first host, their number and the "
            "index of this one (--hosts HOST:PORT --num-hosts N --host I), or start the processes with srun or mpirun. "
            f"Received: no variables of Slurm, Open MPI, Kubernetes, and no {_ADDRESSES}"
        ) from failure
    raise failure


@contextlib.contextmanager
def _silent_unless_first() -> Iterator[None]:
    """Discards the output of all processes but the first."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _lost_connections(index: int, number: int) -> Iterator[None]:
    """Raises a ConnectionError for JAX's errors about a lost connection."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else ""
        if not _LOST.search(first):
            raise
        raise ConnectionError(f"Host {index} of {number} lost its connection to another host: {first}") from error


def of_first_host(config: RunConfig) -> RunConfig:
    """Returns the config of the first host, since some settings are chosen by the speed of a machine."""
    if num_processes() == 1:
        return config
    text = np.frombuffer(json.dumps(dataclasses.asdict(config)).encode(), np.uint8)
    size = int(of_first_process(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = text[:size]
    return RunConfig(**json.loads(bytes(of_first_process(padded)).decode()))


def check_same(values: Sequence[Any]) -> None:
    """Checks that the hosts have read the same texts and the same state of the run."""
    checksums = of_all_processes(np.int32(zlib.crc32(json.dumps(values).encode()) >> 1)).tolist()
    differing = [index for index, each in enumerate(checksums) if each != checksums[0]]
    if differing:
        raise ValueError(
            "All hosts must read the same texts and the same folder of the run: put them in a file system that the "
            "hosts share, and install the same releases of the packages. "
            f"Received: other values on hosts {differing} than on host 0"
        )


def _received(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
