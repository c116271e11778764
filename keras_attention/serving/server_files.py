"""The files next to the versions of an exported model: settings of TensorFlow Serving and a README.

The settings are in protobuf's text format, which has comments.
"""

import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import quote

from google.protobuf.text_encoding import CEscape

from keras_attention.serving.signatures import SIGNATURES

MAX_BATCH_SIZE = 32
METRICS_PATH = "/monitoring/prometheus/metrics"

# Servers need an absolute path; that of a container's models is the same on every machine.
_CONTAINER_FOLDER = "/models"
_MARK = "Written by keras_attention's export"
_NOTE = f"# {_MARK}; the next export writes it again.\n"
_README_NOTE = f"<!-- {_MARK}; the next export writes it again, unless this line is gone. -->\n"

_ROWS = {
    "serving_default": "| `source` | `text`, `score`, `truncated`: the best translation of each text |",
    "translate_nbest": "| `source` | `texts`, `scores`, `truncated`: the best few of each |",
    "score": "| `source`, `target` | `score`, `tokens`, `truncated`: the log probability of given translations |",
    "align": "| `source` | `text`, `score`, `source_pieces`, `target_pieces`, `alignment`, `truncated` |",
    "encode_ids": "| `source` | `ids`, `truncated` |",
    "decode_ids": "| `ids` | `text` |",
    "inspect": "| `source`, `encoder_head_mask`, `decoder_head_mask`, `cross_head_mask`, `window`, `scale` | "
    "`text`, `score`, `source_pieces`, `target_pieces`, `encoder_weights`, `decoder_weights`, `cross_weights`, "
    "`truncated`: a translation with changed attention, and the weights of every head |",
}
_X86 = """
The weights of these versions are packed for x86-64: they load only in a TensorFlow, or a TensorFlow Serving, of
version 2.21 that is built with oneDNN, as those for Linux on x86-64 are. Of weights in 8 bits, `kept_bfloat16` in the
model card names the matrices that are in bfloat16, because they lose too much quality in 8 bits.
"""
_SHORTLIST = """
The search of the newest version has a shortlist: it considers only the {commonest:,} commonest pieces of the target
language, and for each piece of a source at most {per_piece:,} others, which translate it in the training text.
"""


def server_files(
    folder: Path, signatures: Collection[str] = tuple(SIGNATURES), shortlist: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Returns the texts of the files by name, without a `README.md` if the folder has one that a person wrote."""
    # https://www.tensorflow.org/tfx/serving/serving_config
    name = os.path.basename(os.path.realpath(folder))
    files = {
        "models.config": _NOTE + _models_config(name),
        "batching.config": _NOTE + _batching_config(),
        "monitoring.config": _NOTE + _monitoring_config(),
    }
    readme = folder / "README.md"
    if not readme.exists() or readme.read_text(encoding="utf-8", errors="replace").startswith(_README_NOTE):
        files["README.md"] = _README_NOTE + _readme(name, signatures, shortlist)
    return files


def _models_config(name: str) -> str:
    return f"""# The newest version is served; add a model_version_policy to keep others.
model_config_list {{
  config {{
    name: "{CEscape(name, as_utf8=False)}"
    base_path: "{CEscape(f"{_CONTAINER_FOLDER}/{name}", as_utf8=False)}"
    model_platform: "tensorflow"
  }}
}}
"""


def _batching_config() -> str:
    return f"""# Requests that wait at the same time are run as one batch.
# A request with more texts than a batch is an error.
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
# How long a request waits for others.
batch_timeout_micros {{ value: 2000 }}
# Beyond this, requests are refused at once (UNAVAILABLE), so that the queue cannot grow without limit.
max_enqueued_batches {{ value: 100 }}
# Batches that run at the same time; each uses all cores.
num_batch_threads {{ value: 2 }}
# No allowed_batch_sizes: batches of every size run well, and padding them to a fixed size costs time.
"""


def _monitoring_config() -> str:
    return f"""prometheus_config {{
  enable: true
  path: "{METRICS_PATH}"
}}
"""


def _readme(name: str, signatures: Collection[str], shortlist: Mapping[str, int] | None) -> str:
    folder = f"{_CONTAINER_FOLDER}/{name}"
    mount = f'-v "$PWD":{shlex.quote(f"{folder}:ro")}'
    url = shlex.quote(f"localhost:8501/v1/models/{quote(name)}:predict")
    metrics = f"localhost:8501{METRICS_PATH}"
    in_container = _settings(*(shlex.quote(f"{folder}/{file}.config") for file in ("batching", "monitoring")))
    on_machine = _settings('"$PWD/batching.config"', '"$PWD/monitoring.config"')
    return f"""# {name}

Each folder with a number for its name is one version of the model, a SavedModel from text to text; its
`assets.extra/model_card.json` describes it. Run the commands in this folder.
{"" if "score" in signatures else _X86}{"" if shortlist is None else _SHORTLIST.format_map(shortlist)}
## Serve it

With docker:

```bash
docker run --rm -p 8500:8500 -p 8501:8501 {mount} tensorflow/serving \\
  --model_config_file={shlex.quote(f"{folder}/models.config")} \\
  {in_container}
```

With TensorFlow Serving's own program:

```bash
tensorflow_model_server --port=8500 --rest_api_port=8501 \\
  --model_name={shlex.quote(name)} --model_base_path="$PWD" \\
  {on_machine}
```

The server loads a new version when its folder appears. Its metrics are at `{metrics}`.

## Ask it

```bash
curl -d '{{"inputs": {{"source": ["How are you?", "Good night."]}}}}' {url}
```

| signature | takes | gives |
| --- | --- | --- |
{chr(10).join(f"| `{each}` {_ROWS[each]}" for each in signatures)}

A signature other than the first is named in the request: `{{"signature_name": "align", "inputs": …}}`. A request has at
most {MAX_BATCH_SIZE} texts. `truncated` is true for a text that was too long, of which only the beginning was read.
"""


def _settings(batching: str, monitoring: str) -> str:
    return f"""--enable_batching --batching_parameters_file={batching} \\
  --monitoring_config_file={monitoring}"""
