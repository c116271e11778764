"""Export of a translator as a SavedModel from text to text, in the folders that TensorFlow Serving watches."""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_attention.files import folders_removed_on_error
from keras_attention.serving.graph_transforms import shrink_graph
from keras_attention.serving.inspection import inspect_signature
from keras_attention.serving.model_card import model_card
from keras_attention.serving.model_folder import check_model_folder, unfinished_folder
from keras_attention.serving.packed_check import check_packed_export
from keras_attention.serving.packed_transformer import is_packed
from keras_attention.serving.server_files import server_files
from keras_attention.serving.signatures import SEARCH_SIGNATURES, SIGNATURES, Signature
from keras_attention.serving.translator import Translator
from keras_attention.serving.warm_up import WARM_UP_FILE, write_warm_up

MODEL_CARD = Path("assets.extra") / "model_card.json"


def export(
    translator: Translator,
    folder: str | os.PathLike,
    card: Mapping[str, Any] | None = None,
    inspect: bool = False,
) -> Path:
    """Writes the next version of a SavedModel that takes and returns text, and the files that a server needs.

    Its signature `serving_default` takes `source` (B,) and returns `text`, `score` and `truncated` (B,); the others are
    `translate_nbest`, `score`, `align`, `encode_ids` and `decode_ids`, and on request `inspect`. The version contains
    `assets.extra/model_card.json` and, if tensorflow-serving-api is installed, warm-up requests. Each export also
    writes, next to the versions, `models.config`, `batching.config`, `monitoring.config`, and a `README.md` with the
    commands that serve and query the model; it keeps a `README.md` whose first line is not the export's own.

    The translator of a `PackedTransformer` is exported without `score` and `align`, which need the trained weights. The
    SavedModel is compared with the translator in a session as servers have it, and only loads in a TensorFlow that is
    built with oneDNN for x86-64.

    The search of a translator with a `Shortlist` is limited to it in the export too; `score` and the alignment of
    `align` are those of the whole vocabulary.

    The export is atomic: it is written to a temporary folder `unfinished-…` and renamed when it is complete, so a
    server that watches the folder never sees an incomplete version. One that fails leaves nothing behind; the
    temporary folder of one that was killed is removed by the next.

    Args:
        translator: The translator.
        folder: The model's folder; the versions in it are 1, 2, 3, …
        card: More entries of the model card, such as `{"data": …, "bleu": …}`.
        inspect: Whether to add the signature `inspect`, with which the translation page shows the attention of every
            head and changes it, see `models.InspectedTransformer`.

    Returns:
        The folder of the new version.

    Raises:
        TypeError: If `card` cannot be serialized as JSON.
        ValueError: If `card` has an entry that the export fills itself, or `folder` is that of one version, contains
            other files than versions, or has a name that servers refuse, or `inspect` is given for another model than a
            `Transformer`, or with a shortlist.
        RuntimeError: If a SavedModel with packed weights does not compute what the translator does.

    Example:
        >>> translator = getfixture("translator")
        >>> export(translator, "saved_models/en-de").as_posix()
        'saved_models/en-de/1'

    Source: https://www.tensorflow.org/tfx/serving/serving_config
    """
    check_model_folder(folder)
    folder = Path(folder)
    signatures = SEARCH_SIGNATURES if is_packed(translator) else SIGNATURES
    if inspect:
        signatures = signatures | {"inspect": inspect_signature(translator)}
    entries = model_card(translator, os.path.basename(os.path.realpath(folder)), card, inspect)
    with folders_removed_on_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as unfinished:
            _write(translator, unfinished / "version", signatures)
            if is_packed(translator):
                check_packed_export(unfinished / "version", translator)
            files = server_files(folder, signatures, entries.get("shortlist"))
            for name, text in files.items():
                (unfinished / name).write_text(text, encoding="utf-8")
            version = _publish(unfinished / "version", folder, entries)
            for name in files:
                (unfinished / name).replace(folder / name)
        return version


def _write(translator: Translator, path: Path, signatures: Mapping[str, Signature]) -> None:
    # Not tf.saved_model.save: a session, as servers use, would find no variables.
    archive = keras.export.ExportArchive()
    archive.track(translator)
    for name, (function, inputs) in signatures.items():
        archive.add_endpoint(name, functools.partial(function, translator), inputs)
    # A server does not train, and without the gradients of custom operations the graph is smaller.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(path), options=options, verbose=False)
    shrink_graph(path)
    (path / WARM_UP_FILE).parent.mkdir(exist_ok=True)
    write_warm_up(path / WARM_UP_FILE, translator, signatures)


def _publish(unfinished: Path, folder: Path, card: dict[str, Any]) -> Path:
    """Adds the model card to a finished export and renames it to the next version."""
    while True:
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        version = folder / str(max(taken, default=0) + 1)
        text = json.dumps({**card, "version": int(version.name)}, indent=2, ensure_ascii=False) + "\n"
        (unfinished / MODEL_CARD).write_text(text, encoding="utf-8")
        try:
            return unfinished.rename(version)
        except OSError:
            if not version.exists():
                raise  # no other export took the number at the same time
