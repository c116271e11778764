"""Runs an exported text-to-text model in the three ways that callers do, to compare what they give.

`run_in_tensorflow` starts a process in which only TensorFlow and the library of SentencePiece's ops are
loaded, and there loads the model as Python does and as a session, such as TensorFlow Serving's, does.
`run_in_c` compiles and runs `serve.c`, a process without Python.
"""

import base64
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}


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


def run_in_tensorflow(path, texts, signatures):
    """Returns {"python" or "session": {signature: {output: nested list}}}, from a fresh process."""
    texts = [base64.b64encode(text).decode() for text in as_bytes(texts)]
    work = {"path": str(path), "texts": texts, "signatures": signatures}
    done = subprocess.run(
        [sys.executable, __file__, str(ops_library())],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        env=QUIET,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return _map_texts(json.loads(done.stdout), base64.b64decode)


def compile_serve_c(folder):
    """Compiles `serve.c` against the TensorFlow that Python uses and returns the program."""
    tensorflow = Path(importlib.util.find_spec("tensorflow").origin).parent
    program = Path(folder) / "serve"
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", str(HERE / "serve.c"), "-o", str(program)]
    command += [f"-I{tensorflow}/include", f"-L{tensorflow}", *libraries]
    command += [f"-Wl,-rpath,{tensorflow}"]
    if shutil.which("ld.gold"):  # reads a library of a gigabyte in a fifth of the time
        command.append("-fuse-ld=gold")
    subprocess.run(command, check=True)
    return program


def has_compiler():
    return shutil.which("gcc") is not None


def run_in_c(program, path, texts, signature):
    """Returns {output: flat list} of one signature, from a process without Python."""
    texts = as_bytes(texts)
    definition = meta_graph(path).signature_def[signature]
    names = sorted(definition.outputs)
    command = [str(program), str(path), str(ops_library()), definition.inputs["source"].name]
    command += [definition.outputs[name].name for name in names]
    packed = struct.pack("<I", len(texts))
    packed += b"".join(struct.pack("<I", len(text)) + text for text in texts)
    done = subprocess.run(command, input=packed, capture_output=True, env=QUIET, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return _unpack(done.stdout, names)


def _unpack(packed, names):
    """Reads what `serve.c` writes: for each output its kind, its count and its values."""
    results, place = {}, 0
    for name in names:
        kind, count = struct.unpack_from("<cI", packed, place)
        place += 5
        if kind == b"f":
            results[name] = list(struct.unpack_from(f"<{count}f", packed, place))
            place += 4 * count
            continue
        results[name] = []
        for _ in range(count):
            (length,) = struct.unpack_from("<I", packed, place)
            results[name].append(packed[place + 4 : place + 4 + length])
            place += 4 + length
    return results


def _map_texts(values, change):
    if isinstance(values, dict):
        return {name: _map_texts(value, change) for name, value in values.items()}
    if isinstance(values, list):
        return [_map_texts(value, change) for value in values]
    return change(values) if isinstance(values, str | bytes) else values


def _work():
    """In the fresh process: work on standard input, results on standard output, both JSON."""
    import tensorflow as tf

    tf.load_op_library(sys.argv[1])
    work = json.loads(sys.stdin.read())
    texts = [base64.b64decode(text) for text in work["texts"]]
    results = {"python": {}, "session": {}}

    loaded = tf.saved_model.load(work["path"])
    for name in work["signatures"]:
        found = loaded.signatures[name](source=tf.constant(texts, tf.string, [len(texts)]))
        results["python"][name] = {key: value.numpy().tolist() for key, value in found.items()}

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], work["path"])
        for name in work["signatures"]:
            definition = graph.signature_def[name]
            fetches = {key: value.name for key, value in definition.outputs.items()}
            found = session.run(fetches, {definition.inputs["source"].name: texts})
            results["session"][name] = {key: value.tolist() for key, value in found.items()}

    foreign = {"keras_attention", "tensorflow_text", "sentencepiece"} & set(sys.modules)
    if foreign:
        raise RuntimeError(f"This process was to load TensorFlow alone, and has {foreign}")
    print(json.dumps(_map_texts(results, lambda text: base64.b64encode(text).decode())))


if __name__ == "__main__":
    _work()
