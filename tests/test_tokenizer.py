"""Subword tokenizers: the graph and Python agree, training repeats itself, errors can be acted on."""

import gzip
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_attention.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, SubwordTokenizer
from keras_attention.text.sentencepiece_model import _split_long

pytestmark = pytest.mark.tensorflow

SENTENCES = [
    "The cat sat on the mat.",
    "“Où est le café ?” demanda-t-elle à 14 h 30.",
    "Der Fluss fließt durch 1 234 Täler…",
    "A\u0301 combining accent, an emoji 😀, a no-break\u00a0space, a narrow\u202fone.",
    "東京は日本の首都です。",
] * 3
# Each of these meets another corner: nothing, blanks of several kinds, unknown and combined characters, SentencePiece's
# own marks, control characters, a byte order mark.
TEXTS = [
    "The cat sat on the mat.",
    "",
    " ",
    "  two  spaces  ",
    "😀",
    "👩\u200d👩\u200d👧 🇫🇷",
    "no-break\u00a0space\u202fnarrow\u3000wide",
    "A\u0301 e\u0308 \u0301",
    "▁the ▁",
    "<s> </s> <pad> <unk>",
    "a\tb\nc\x00d",
    "\ufeffmark",
    "\ufffd",
    "ﬁ Å ½ İ ß",
    "東京は日本の首都です。",
    "Ωμέγα неизвестно",
]
NOT_UTF8 = [
    b"\xff\xfeab",
    b"caf\xe9",
    b"a\xe2\x82b",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80x",
    b"\xc0\xaf",
    b"\xf4\x90\x80\x80",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    first, second = folder / "train.en", folder / "train.de"
    first.write_text("\n".join(SENTENCES[:7]) + "\n", encoding="utf-8")
    second.write_text("\n".join(SENTENCES[7:]) + "\n", encoding="utf-8")
    return [first, second]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(files, request):
    return SubwordTokenizer.train(files, vocabulary_size=73, model_type=request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_graph_equals_python(tokenizer, text):
    expected = tokenizer.encode([text])
    ids = tokenizer.tokenize([text])
    assert ids.dtype == tf.int32
    assert ids.to_list() == expected
    assert tokenizer.detokenize(ids).numpy()[0].decode() == tokenizer.decode(expected)[0]


@pytest.mark.parametrize("data", NOT_UTF8)
def test_graph_reads_bad_bytes_as_python_does_with_replacement(tokenizer, data):
    assert tokenizer.tokenize([data]).to_list() == tokenizer.encode([data.decode("utf-8", "replace")])


def test_text_comes_back_as_it_was(tokenizer):
    assert tokenizer.decode(tokenizer.encode(SENTENCES)) == SENTENCES
    assert [text.decode() for text in tokenizer.detokenize(tokenizer.tokenize(SENTENCES)).numpy()] == SENTENCES


def test_one_output_for_each_input_in_one_batch(tokenizer):
    ids = tokenizer.tokenize(TEXTS)
    assert ids.to_list() == tokenizer.encode(TEXTS)
    assert [text.decode() for text in tokenizer.detokenize(ids).numpy()] == tokenizer.decode(tokenizer.encode(TEXTS))


def test_no_texts_at_all(tokenizer):
    ids = tokenizer.tokenize(tf.zeros((0,), tf.string))
    assert ids.shape[0] == 0
    assert tokenizer.detokenize(ids).shape == (0,)
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == []


def test_neither_begin_nor_end_is_added(tokenizer):
    ids = {piece for row in tokenizer.encode(SENTENCES) for piece in row}
    assert not ids & {PAD_ID, UNK_ID, BOS_ID, EOS_ID}


def test_detokenize_drops_padding_begin_and_all_from_the_first_end(tokenizer):
    first, second = tokenizer.encode(["The cat", "mat."])
    rows = [
        [BOS_ID, *first, EOS_ID, *second, EOS_ID],
        [PAD_ID, *second[:1], PAD_ID, *second[1:]],
        [EOS_ID, *first],
        [],
    ]
    expected = ["The cat", "mat.", "", ""]
    ragged = tf.ragged.constant(rows, tf.int32)
    assert tokenizer.decode(rows) == expected
    assert [text.decode() for text in tokenizer.detokenize(ragged).numpy()] == expected
    assert [text.decode() for text in tokenizer.detokenize(ragged.to_tensor()).numpy()] == expected
    assert [text.decode() for text in tokenizer.detokenize(tf.cast(ragged, tf.int64)).numpy()] == expected


def test_unknown_characters_show(tokenizer):
    assert "⁇" in tokenizer.decode(tokenizer.encode(["the Ω"]))[0]


def test_special_pieces_have_the_fixed_ids(tokenizer):
    assert tokenizer.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert (PAD_ID, UNK_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    assert tokenizer.vocabulary_size == 73


def test_works_when_a_trace_comes_first(files):
    tokenizer = SubwordTokenizer.train(files, vocabulary_size=73)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def there_and_back(texts):
        return tokenizer.detokenize(tokenizer.tokenize(texts).to_tensor())

    assert there_and_back(tf.constant(["the cat", ""])).numpy().tolist() == [b"the cat", b""]
    assert tokenizer.tokenize(["the cat"]).to_list() == tokenizer.encode(["the cat"])


def test_the_model_is_found_by_an_export(files, tmp_path):
    class Echo(tf.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer = SubwordTokenizer.train(files, vocabulary_size=73)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="source")])
        def __call__(self, texts):
            return self.tokenizer.detokenize(self.tokenizer.tokenize(texts))

    tf.saved_model.save(Echo(), str(tmp_path / "echo"))
    assert tf.saved_model.load(str(tmp_path / "echo"))(tf.constant(["the mat."])).numpy().tolist() == [b"the mat."]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_again_gives_the_same_bytes_from_gzip_too(files, tmp_path, model_type):
    zipped = [tmp_path / f"{file.name}.gz" for file in files]
    for plain, packed in zip(files, zipped, strict=True):
        packed.write_bytes(gzip.compress(plain.read_bytes()))
    models = [SubwordTokenizer.train(names, 71, model_type).model for names in (files, files, zipped)]
    assert models[0] == models[1] == models[2]


def test_training_prints_nothing(files, capfd):
    SubwordTokenizer.train(files, vocabulary_size=71).encode(["the cat"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "line", ["the mat " * 997, "häß" * 1999, "x▅y", "猫" * 70_001], ids=["long", "umlauts", "reserved", "no spaces"]
)
def test_no_line_is_left_out(files, tmp_path, model_type, line):
    """SentencePiece drops lines of more than 4,192 bytes and lines with its sign for what is unknown."""
    (tmp_path / "odd").write_text(f"{line} ÞØ\n", encoding="utf-8")
    tokenizer = SubwordTokenizer.train([*files, tmp_path / "odd"], 76, model_type)
    known = [word.replace("▅", "") for word in (line[-50:], "ÞØ")]
    assert all(1 not in ids for ids in tokenizer.encode(known))


def test_long_lines_are_cut_at_spaces_and_lose_nothing():
    line = " ".join("ab" * (1 + number % 7) for number in range(1999))
    parts = list(_split_long(["short", line, "", "😀" * 5003]))
    assert parts[0] == "short"
    assert "".join(parts) == "short" + line + "😀" * 5003
    assert all(len(part.encode()) <= 4192 for part in parts)
    cut = parts[1 : parts.index("")]
    assert len(cut) > 3
    assert all(part.startswith(" ") for part in cut[1:])


def test_a_sample_of_lines_is_announced(files, monkeypatch):
    monkeypatch.setattr("keras_attention.text.tokenizer.MAX_TRAINING_LINES", 5)
    with pytest.warns(UserWarning, match=r"a sample of 5 of \d+ lines"):
        SubwordTokenizer.train(files, vocabulary_size=71)


def test_a_sample_of_lines_follows_from_the_seed(tmp_path, monkeypatch):
    """SentencePiece is given the sample, whose lines it cannot choose in another way."""
    (tmp_path / "text").write_text("".join(f"word{number}\n" for number in range(97)), encoding="utf-8")
    monkeypatch.setattr("keras_attention.text.tokenizer.MAX_TRAINING_LINES", 11)
    samples = []
    monkeypatch.setattr(
        "keras_attention.text.tokenizer.train_model", lambda lines, *_: samples.append(list(lines)) or b""
    )
    monkeypatch.setattr(SubwordTokenizer, "__init__", lambda self, model: None)
    with pytest.warns(UserWarning, match="a sample of 11 of 97 lines"):
        for seed in (1, 1, 2):
            SubwordTokenizer.train(tmp_path / "text", 300, seed=seed)
    first, same, other = samples
    assert first == same != other
    assert len(set(first)) == len(set(other)) == 11


def test_saving_replaces_the_whole_file(tokenizer, tmp_path):
    place = tmp_path / "tokenizer.model"
    place.write_bytes(b"before")
    place.chmod(0o640)
    tokenizer.save(place)
    assert place.read_bytes() == tokenizer.model
    assert place.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [place]


def test_split_digits(tmp_path):
    (tmp_path / "years").write_text("2026 2026 2026 26 202\n" * 5, encoding="utf-8")
    whole = SubwordTokenizer.train(tmp_path / "years", 17)
    split = SubwordTokenizer.train(tmp_path / "years", 8, split_digits=True)
    assert whole.pieces(whole.encode(["2026"])[0]) == ["▁2026"]
    assert split.pieces(split.encode(["2026"])[0]) == ["▁", *"2026"]


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder" / "tokenizer.model")
    loaded = SubwordTokenizer.load(tmp_path / "new" / "folder" / "tokenizer.model")
    assert loaded.model == tokenizer.model
    assert loaded.encode(SENTENCES) == tokenizer.encode(SENTENCES)


def test_importing_the_room_loads_no_tokenizer_library():
    names = {"sentencepiece", "tensorflow_text", "keras_attention.text.tokenizer", "keras_attention.text.batching"}
    code = f"import sys, keras_attention.text; print({names} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_too_large_names_the_largest_and_that_one_works(files, model_type):
    with pytest.raises(ValueError, match=r"too large for this text, which gives at most \d+ pieces") as error:
        SubwordTokenizer.train(files, 9973, model_type)
    assert "Received: vocabulary_size=9973" in str(error.value)
    largest = int(str(error.value).split("at most ")[1].split()[0])
    assert SubwordTokenizer.train(files, largest, model_type).vocabulary_size == largest


def test_a_vocabulary_too_small_names_the_smallest_and_that_one_works(files):
    with pytest.raises(
        ValueError, match=r"too small: .* special pieces are \d+, so pass \d+ or more\. Received: .*=7"
    ) as error:
        SubwordTokenizer.train(files, 7)
    smallest = int(str(error.value).split("special pieces are ")[1].split(",")[0])
    assert SubwordTokenizer.train(files, smallest).vocabulary_size == smallest


@pytest.mark.parametrize("size", [-1, 0, 3, 4])
def test_a_vocabulary_without_room_for_pieces(files, size):
    with pytest.raises(
        ValueError, match=f"must be at least 5, since four pieces are special. Received: vocabulary_size={size}"
    ):
        SubwordTokenizer.train(files, size)


def test_training_errors(files, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of \('bpe', 'unigram'\)\. Received: model_type='word'"):
        SubwordTokenizer.train(files, 71, "word")
    with pytest.raises(FileNotFoundError, match=r"No text file at .*missing"):
        SubwordTokenizer.train(tmp_path / "missing", 71)
    (tmp_path / "blank").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`files` have no text to train on"):
        SubwordTokenizer.train([tmp_path / "blank"], 71)
    with pytest.raises(ValueError, match="`files` have no text to train on"):
        SubwordTokenizer.train([], 71)
    (tmp_path / "latin").write_bytes(b"cafe\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"latin:2: byte 0xe9 is not UTF-8"):
        SubwordTokenizer.train([tmp_path / "latin"], 71)


@pytest.mark.parametrize("damage", [b"", b"not a model", "half"])
def test_damaged_models(files, tmp_path, damage):
    model = SubwordTokenizer.train(files, 71).model
    data = model[: len(model) // 2] if damage == "half" else damage
    with pytest.raises(ValueError, match=rf"`model` must be a SentencePiece model, .* Received: {len(data)} bytes"):
        SubwordTokenizer(data)
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer\.model: `model` must be a SentencePiece model"):
        SubwordTokenizer.load(tmp_path / "tokenizer.model")


def test_a_model_with_other_special_ids(files, tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(files[0]), model_prefix=str(tmp_path / "other"), vocab_size=71, model_type="bpe", minloglevel=2
    )
    with pytest.raises(
        ValueError, match=r"trained with pad_id=0, .* Received: a model with pad_id=-1, unk_id=0, bos_id=1, eos_id=2$"
    ):
        SubwordTokenizer.load(tmp_path / "other.model")


def test_wrong_arguments(tokenizer, tmp_path):
    with pytest.raises(TypeError, match=r"SubwordTokenizer\.load\(path\)\. Received: model='tokenizer\.model'"):
        SubwordTokenizer("tokenizer.model")
    with pytest.raises(FileNotFoundError, match=r"No tokenizer file at .*nowhere"):
        SubwordTokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"must be a list of strings\. Received: texts='one'"):
        tokenizer.encode("one")
    with pytest.raises(ValueError, match=r"must have shape \(B,\)\. Received: texts\.shape=\(\)"):
        tokenizer.tokenize("one")
    with pytest.raises(ValueError, match=r"must have shape \(B, T\)\. Received: ids\.shape=\(3,\)"):
        tokenizer.detokenize([5, 6, 7])
    with pytest.raises(IndexError, match="out of range"):
        tokenizer.decode([[73]])
    with pytest.raises(IndexError, match="out of range"):
        tokenizer.pieces([73])


def test_a_seed_set_between_two_calls_breaks_neither_graph_nor_eager(tokenizer):
    graph = tf.function(lambda texts: tokenizer.tokenize(texts).to_tensor())
    before = graph(tf.constant(["the hat"])).numpy()
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(graph(tf.constant(["the hat"])), before)
    np.testing.assert_array_equal(tokenizer.tokenize(tf.constant(["the hat"])).to_tensor(), before)
