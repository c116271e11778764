"""Runs an exported text-to-text model in the ways that callers do, to compare what they give.

`run_in_tensorflow` starts a process in which only TensorFlow and the library of SentencePiece's ops are
loaded, and there loads the model as Python does and as a session, such as TensorFlow Serving's, does.
`build_serve_c` builds the program of `examples/serving_c`, which has no Python in its process.
"""

import atexit
import functools
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SERVING_C = Path(__file__).parent.parent / "examples" / "serving_c"
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}


@functools.cache
def tiny_export():
    """The first version of an export of the tiny translator; it takes seconds, so there is one in a process."""
    from tiny_translator import tiny_translator

    from keras_attention.serving import export

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export(tiny_translator(), folder / "tiny", card={"data": {"source": "train.en"}})


def ops_library():
    """The library with SentencePiece's ops, found without importing tensorflow_text."""
    package = Path(importlib.util.find_spec("tensorflow_text").origin).parent
    return package / "python" / "ops" / "_sentencepiece_tokenizer.so"


def as_bytes(texts):
    return [text.encode() if isinstance(text, str) else text for text in texts]


def meta_graph(path):
    """The graph for serving, as the file holds it."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved_model = SavedModel.FromString((Path(path) / "saved_model.pb").read_bytes())
    (graph,) = [graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags]
    return graph


def ops_used(path):
    """The names of all ops that a server needs to run the model."""
    return {op.name for op in meta_graph(path).meta_info_def.stripped_op_list.op}


def run_in_tensorflow(path, in_python, in_session):
    """Returns the answers to two lists of requests, one for each way, from a fresh process.

    A request is a signature's name and its inputs by name; an answer is the outputs by name, as arrays, or the text
    of the error.
    """
    done = subprocess.run(
        [sys.executable, __file__, str(ops_library()), str(path)],
        input=pickle.dumps((in_python, in_session)),
        capture_output=True,
        env=QUIET,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return pickle.loads(done.stdout)


def build_serve_c(folder):
    """Builds `examples/serving_c` with its one command and returns the program."""
    program = Path(folder) / "serve"
    subprocess.run(["make", "-C", str(SERVING_C), f"PYTHON={sys.executable}", f"PROGRAM={program}"], check=True)
    return program


def can_build():
    return all(map(shutil.which, ("cc", "make")))


def _work(path, in_python, in_session):
    """In the fresh process: the answers."""
    import tensorflow as tf

    tf.load_op_library(sys.argv[1])
    loaded = tf.saved_model.load(path)

    def ask_python(signature, inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {key: value.numpy() for key, value in loaded.signatures[signature](**tensors).items()}

    answers = [_answer(ask_python, *request) for request in in_python], []
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], path)

        def ask_session(signature, inputs):
            definition = graph.signature_def[signature]
            fetches = {key: value.name for key, value in definition.outputs.items()}
            return session.run(fetches, {definition.inputs[name].name: value for name, value in inputs.items()})

        answers[1].extend(_answer(ask_session, *request) for request in in_session)
    foreign = {"keras_attention", "tensorflow_text", "sentencepiece"} & set(sys.modules)
    if foreign:
        raise RuntimeError(f"This process should have loaded only TensorFlow, and has {foreign}")
    return answers


def _answer(run, signature, inputs):
    try:
        return run(signature, inputs)
    except Exception as error:  # whatever a caller would see
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = _work(sys.argv[2], *pickle.load(sys.stdin.buffer))
    sys.stdout.buffer.write(pickle.dumps(found))
