"""Generation as the options say: against enumeration, and against the model without caches."""

import functools
import itertools

import keras
import numpy as np
import pytest
from backends import BACKEND, numpy
from model_options import CAUSAL_OPTIONS
from model_options import OPTIONS as OPTIONS_OF_MODELS

from keras_attention import CausalTransformer, Transformer, TransformerConfig, decoding
from keras_attention.decoding import DecodingOptions, Hypotheses, stream

PAD, BOS, EOS = 0, 2, 3
EOS_SIZE = 1.5
V = 6
ATOL = 1e-5 if BACKEND == "tensorflow" else 5e-5  # of scores in float32, against float64
SOURCES = np.array([[4, 5, 1, 3], [5, 3, 0, 0], [1, 4, 3, 0]], "int32")
PROMPTS = np.array([[4, 5], [5, 0], [0, 0]], "int32")
LONG_PROMPTS = np.array([[4, 5, 1], [5, 1, 0]], "int32")  # two tokens of each are read before the first step


def generate(*arguments, **options):
    """Hypotheses as arrays."""
    return Hypotheses(*map(numpy, decoding.generate(*arguments, **options)))


def in_a_graph(model, inputs, options):
    """Hypotheses, as arrays, from a graph on TensorFlow; other backends compile by themselves."""
    if BACKEND != "tensorflow":
        return generate(model, inputs, options)
    import tensorflow as tf

    graph = tf.function(lambda inputs: decoding.generate(model, inputs, options), autograph=False)
    return Hypotheses(*map(numpy, graph(tf.constant(inputs))))


def made(kind, seed=21, vocabulary=V, **changes):
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 2, "hidden_dim": 12, "intermediate_dim": 22, "num_heads": 2, "initialization": "glorot"}
    config = TransformerConfig(vocabulary, **{**sizes, **changes})
    model = kind(config)
    for weight in model.weights:  # larger weights: outputs that depend on the input
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * 2.1)
    return model


@pytest.fixture(scope="module")
def translator():
    return made(Transformer)


@pytest.fixture(scope="module")
def language_model():
    return made(CausalTransformer)


@functools.cache
def distributions(model, source, most):
    """Log probabilities of every next token after every prefix, from one call of the whole model without a cache."""
    prefixes = np.array(list(itertools.product(range(V), repeat=most)), "int32").reshape(-1, most)
    ids = np.concatenate([np.full((len(prefixes), 1), BOS, "int32"), prefixes], axis=1)
    inputs = ids if source is None else {"source": np.tile(np.array(source, "int32"), (len(ids), 1)), "target": ids}
    logits = keras.ops.convert_to_numpy(model(inputs)).astype("float64")  # (V ** most, most + 1, V)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def log_probs_after(model, source, tokens):
    """Log probabilities of every next token after these."""
    most = max(4, len(tokens))
    tables = distributions(model, None if source is None else tuple(map(int, source)), most)
    row = sum(token * V ** (most - 1 - index) for index, token in enumerate(tokens))
    return tables[row, len(tokens)]


def repeats(tokens, n):
    grams = [tuple(tokens[index : index + n]) for index in range(len(tokens) - n + 1)]
    return any(grams.count(gram) > 1 for gram in grams)


def ruled(log_probs, tokens, options, given=()):
    """The distribution of the next token with what the options forbid left out."""
    allowed = log_probs.copy()
    if len(tokens) + 1 < len(given) + options.min_length:
        allowed[EOS] = -np.inf
    if options.no_repeat_ngram:
        for token in range(V):
            if (
                token != EOS
                and repeats([*tokens, token], options.no_repeat_ngram)
                and not repeats(tokens, options.no_repeat_ngram)
            ):
                allowed[token] = -np.inf
    return allowed - np.log(np.exp(allowed).sum())


def divisor(length, options):
    if options.length_normalization == "average":
        return length**options.length_penalty
    return ((5 + length) / 6) ** options.length_penalty


def enumerated(model, source, options, given=(), most=4, forbidden=lambda tokens: []):
    """Every output that the options allow with its score, best first, without the tokens forbidden after others."""
    found = []

    def follow(tokens, total):
        if len(tokens) == most - 1:
            nexts = [EOS] if len(tokens) >= len(given) else [given[len(tokens)]]
        else:
            nexts = range(V) if len(tokens) >= len(given) else [given[len(tokens)]]
        logits = log_probs_after(model, source, tokens).copy()
        logits[forbidden(tokens)] = -np.inf
        log_probs = ruled(logits, tokens, options, given if source is None else ())
        for token in nexts:
            cost = 0.0 if len(tokens) < len(given) else log_probs[token]
            if not np.isfinite(cost):
                continue
            if token == EOS:
                found.append((total + cost) / divisor(len(tokens) + 1, options)), outputs.append([*tokens, token])
            else:
                follow([*tokens, token], total + cost)

    outputs = []
    follow([], 0.0)
    order = np.argsort(-np.array(found), kind="stable")
    return [(found[index], outputs[index]) for index in order]


def greedily(model, source, options):
    """The output whose every token is the likeliest, with its score, as a list of one."""
    tokens, total = [], 0.0
    while EOS not in tokens:
        log_probs = log_probs_after(model, source, tokens)
        token = EOS if len(tokens) == options.max_length - 1 else int(log_probs.argmax())
        tokens, total = [*tokens, token], total + log_probs[token]
    return [(total / divisor(len(tokens), options), tokens)]


def as_lists(found, index):
    rows = zip(*(x[index] for x in (found.scores, found.ids, found.lengths)), strict=True)
    return [(score, ids[:length].tolist()) for score, ids, length in rows if length]


OPTIONS = {
    "paper": {},
    "average": {"length_normalization": "average", "length_penalty": 1.0},
    "no penalty": {"length_penalty": 0.0},
    "long enough": {"min_length": 3},
    "no word twice": {"no_repeat_ngram": 1},
    "no pair twice": {"no_repeat_ngram": 2, "min_length": 4},
}


FORBIDDEN = np.array([4, 1, 5])  # a token of each sentence


def forbid_after_itself_or_first(logits, ids, sentences):
    """Forbids the token of a sentence as its first and its last token again anywhere."""
    ops = keras.ops
    last = ids[:, -1] if ids.shape[1] else ops.full((len(logits),), -1, "int32")  # on JAX, tokens follow -1's
    # On JAX, rows of padding follow the sentences.
    firsts = ops.repeat(ops.take(FORBIDDEN, sentences % 3), len(logits) // len(sentences))
    return ops.where(ops.one_hot(ops.where(last < 0, firsts, last), V) > 0, -np.inf, logits)


@pytest.mark.parametrize("beams", [1, 40])
def test_the_callers_processor_gets_tokens_and_sentences(beams, translator):
    """It follows the constraints of the options, in generation and in a stream."""
    options = DecodingOptions(beam_size=beams, max_length=4, min_length=3)
    result = generate(translator, SOURCES, options, logits_processor=forbid_after_itself_or_first)
    for sentence, source in enumerate(SOURCES):

        def forbidden(tokens, sentence=sentence):
            return [tokens[-1] if tokens else FORBIDDEN[sentence]]

        best = enumerated(translator, tuple(source), options, forbidden=forbidden)
        if beams == 1:
            tokens = []
            while EOS not in tokens:
                best = [(score, ids) for score, ids in best if ids[: len(tokens)] == tokens]
                logits = log_probs_after(translator, tuple(source), tokens).copy()
                logits[forbidden(tokens)] = -np.inf
                last = len(tokens) == options.max_length - 1
                tokens.append(EOS if last else int(ruled(logits, tokens, options).argmax()))
            best = [(score, ids) for score, ids in best if ids == tokens]
        [(score, ids, *_)] = as_lists(result, sentence)
        assert ids == best[0][1]
        assert score == pytest.approx(best[0][0], abs=ATOL)
    if beams == 1:
        streamed = list(stream(translator, SOURCES, options, logits_processor=forbid_after_itself_or_first))
        assert np.stack([token.ids for token in streamed], axis=1).tolist() == result.ids[:, 0].tolist()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wide_beam_finds_the_best_of_all_outputs(name, translator):
    options = DecodingOptions(beam_size=130, num_return=5, max_length=4, **OPTIONS[name])
    found = generate(translator, SOURCES, options)
    for index, source in enumerate(SOURCES):
        source = source[source != PAD]
        expected = enumerated(translator, source, options)[:5]
        got = as_lists(found, index)
        assert [tokens for _, tokens in got] == [tokens for _, tokens in expected]
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in expected], atol=ATOL)


@pytest.mark.parametrize("beams", [1, 130])
@pytest.mark.parametrize("name", OPTIONS_OF_MODELS)
def test_each_option_of_the_model_gives_the_outputs_of_its_layers(name, beams):
    """Greedy and with all beams, from the fused decoder and from the layers, against the model without a cache."""
    model, options = made(Transformer, **OPTIONS_OF_MODELS[name]), DecodingOptions(beam_size=beams, max_length=4)
    for each in (model, Unfused(model)) if BACKEND == "tensorflow" else (model,):  # others have no fused decoder
        found = generate(each, SOURCES, options)
        for index, source in enumerate(SOURCES):
            source = source[source != PAD]
            likeliest = greedily if beams == 1 else enumerated
            score, tokens = likeliest(model, source, options)[0]
            (got,) = as_lists(found, index)
            assert got[1] == tokens
            np.testing.assert_allclose(got[0], score, atol=ATOL)


@pytest.mark.parametrize("name", CAUSAL_OPTIONS)
def test_each_option_of_a_language_model_gives_the_outputs_of_its_layers(name):
    model, options = made(CausalTransformer, **CAUSAL_OPTIONS[name]), DecodingOptions(beam_size=40, max_length=2)
    for each in (model, UnfusedLanguageModel(model)) if BACKEND == "tensorflow" else (model,):
        found = generate(each, LONG_PROMPTS, options)
        for index, prompt in enumerate(LONG_PROMPTS):
            given = [token for token in prompt if token]
            score, tokens = enumerated(model, None, options, given, most=len(given) + 2)[0]
            (got,) = as_lists(found, index)
            assert got[1] == tokens
            np.testing.assert_allclose(got[0], score, atol=ATOL)


def test_outputs_start_with_the_prefix_which_costs_nothing(translator):
    options = DecodingOptions(beam_size=40, num_return=3, max_length=4)
    prefix = np.array([[5, 1], [4, 0], [0, 0]], "int32")
    found = generate(translator, SOURCES, options, prefix=prefix)
    for index, (source, given) in enumerate(zip(SOURCES, prefix, strict=True)):
        expected = enumerated(translator, source[source != PAD], options, [t for t in given if t])[:3]
        got = as_lists(found, index)
        assert [tokens for _, tokens in got] == [tokens for _, tokens in expected]
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in expected], atol=ATOL)


@pytest.mark.parametrize("prompts", [PROMPTS, LONG_PROMPTS], ids=["read a token a step", "read at once"])
def test_a_language_model_continues_its_prompts(prompts, language_model):
    options = DecodingOptions(beam_size=40, num_return=3, max_length=2, min_length=2)
    found = generate(language_model, prompts, options)
    for index, prompt in enumerate(prompts):
        given = [token for token in prompt if token]
        expected = enumerated(language_model, None, options, given, most=len(given) + 2)[:3]
        got = as_lists(found, index)
        assert [tokens for _, tokens in got] == [tokens for _, tokens in expected]
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in expected], atol=ATOL)


class Unfused:
    """A model of another make, with nothing but the three functions."""

    def __init__(self, model):
        self.encode, self.init_cache, self.decode_step = model.encode, model.init_cache, model.decode_step


class UnfusedLanguageModel:
    """A language model of another make."""

    def __init__(self, model):
        self.init_cache, self.decode_step = model.init_cache, model.decode_step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 1},
        {"beam_size": 3, "num_return": 3, "min_length": 7, "no_repeat_ngram": 2},
        {"sample": True, "num_return": 2, "top_k": 5, "seed": 4},
    ],
)
@pytest.mark.tensorflow
def test_long_outputs_are_those_of_a_model_without_a_fused_decoder(options):
    """Longer than a round of the search, while sentences end at different steps."""
    model = made(Transformer, vocabulary=89)
    sources = np.random.default_rng(2).integers(4, 89, (7, 11)).astype("int32")
    sources[[1, 4], 5:] = sources[3, 2:] = 0
    embeddings = model.get_layer("embedding").embeddings
    embeddings.assign(embeddings * np.where(np.arange(89) == EOS, EOS_SIZE, 1.0)[:, None])  # some end early
    options = DecodingOptions(max_length=23, **options)
    found, expected = (in_a_graph(each, sources, options) for each in (model, Unfused(model)))
    assert found.ids.shape[2] > 16 and len(set(found.lengths[:, 0])) > 1
    assert (found.ids == expected.ids).all()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("options", [{"beam_size": 1, "min_length": 3}, {"sample": True, "seed": 5, "top_k": 4}])
def test_a_stream_yields_the_tokens_of_generate(options, translator, language_model):
    options = DecodingOptions(max_length=5, **options)
    for model, inputs, read in (
        (translator, SOURCES, 0),
        (language_model, PROMPTS, 0),
        (language_model, LONG_PROMPTS, 2),
    ):
        tokens = list(stream(model, inputs, options))
        expected = generate(model, inputs, options).ids[:, 0, read:]
        assert (np.stack([token.ids for token in tokens], axis=1) == expected).all()
        assert [token.done.all() for token in tokens] == [False] * (len(tokens) - 1) + [True]


def test_a_stream_of_several_hypotheses_is_refused(translator):
    for options in (DecodingOptions(), DecodingOptions(sample=True, num_return=2)):
        with pytest.raises(ValueError, match=r"one hypothesis .*num_return="):
            stream(translator, SOURCES, options)
    assert list(stream(translator, SOURCES[:0])) == []


def test_an_output_may_be_longer_than_usual_where_it_must_be(translator):
    found = generate(translator, SOURCES, DecodingOptions(beam_size=2, min_length=70))
    assert (found.lengths >= 70).all() and np.isfinite(found.scores).all()


def test_outputs_follow_the_weights():
    """A program that is compiled once has them as arguments."""
    model, options = made(Transformer, num_layers=1), DecodingOptions(beam_size=2, max_length=4)
    generate(model, SOURCES, options)
    other = made(Transformer, seed=22, num_layers=1)
    expected = generate(other, SOURCES, options)
    model.set_weights(other.get_weights())
    result = generate(model, SOURCES, options)
    np.testing.assert_array_equal(result.ids, expected.ids)
    np.testing.assert_allclose(result.scores, expected.scores, atol=ATOL)


@pytest.mark.skipif(BACKEND != "jax", reason="is about JAX")
def test_jax_compiles_few_shapes(monkeypatch):
    traced, encode = [], Transformer.encode
    monkeypatch.setattr(Transformer, "encode", lambda self, source: traced.append(source.shape) or encode(self, source))
    model, options = made(Transformer, num_layers=1), DecodingOptions(beam_size=2, max_length=2)
    for rows, length in ((3, 4), (4, 16), (5, 3), (8, 9), (3, 17)):
        generate(model, np.full((rows, length), 4, "int32"), options)
    assert traced == [(4, 16), (8, 16), (4, 32)]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow raises its own error")
@pytest.mark.parametrize("unknown", [-1, V])
def test_unknown_ids_are_refused(unknown, translator, language_model):
    with pytest.raises(ValueError, match=f"`inputs` must be ids of the vocabulary, from 0 to below {V}. Received: "):
        generate(language_model, [[4, unknown]])
    with pytest.raises(ValueError, match="`target_ids` must be ids of the vocabulary"):
        decoding.score(translator, [[4, 3]], [[unknown, 3]])


def test_an_empty_batch(translator, language_model):
    for model, inputs in ((translator, SOURCES[:0]), (language_model, PROMPTS[:0])):
        found = generate(model, inputs, DecodingOptions(num_return=2))
        assert found.ids.shape[:2] == (0, 2)


def test_sampled_tokens_have_the_frequencies_of_the_model(translator):
    copies = 4000
    options = DecodingOptions(sample=True, num_return=copies, max_length=2, seed=9)
    found = generate(translator, SOURCES[:1], options)
    assert found.ids.shape[:2] == (1, copies)
    shares = np.bincount(found.ids[0, :, 0], minlength=V) / copies
    expected = np.exp(log_probs_after(translator, SOURCES[0], []))
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / copies))
    again = generate(translator, SOURCES[:1], options)
    assert (again.ids == found.ids).all()
    other = generate(translator, SOURCES[:1], DecodingOptions(sample=True, num_return=copies, max_length=2, seed=10))
    assert (other.ids != found.ids).any()


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.6}, {"temperature": 0.05}])
def test_truncated_tokens_are_not_sampled(cut, translator):
    options = DecodingOptions(sample=True, num_return=300, max_length=2, **cut)
    sampled = set(generate(translator, SOURCES[:1], options).ids[0, :, 0])
    everything = DecodingOptions(sample=True, num_return=300, max_length=2)
    assert sampled < set(generate(translator, SOURCES[:1], everything).ids[0, :, 0])
    assert int(np.argmax(log_probs_after(translator, SOURCES[0], []))) in sampled


def test_scores_of_sampled_outputs_are_those_of_the_model(translator):
    options = DecodingOptions(sample=True, num_return=5, max_length=4, temperature=2.0, length_penalty=0.0)
    for score, tokens in as_lists(generate(translator, SOURCES[:1], options), 0):
        steps = [log_probs_after(translator, SOURCES[0], tokens[:index])[token] for index, token in enumerate(tokens)]
        np.testing.assert_allclose(score, sum(steps), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, r"`beam_size` is 1 .*beam_size=0"),
        ({"num_return": 5}, r"`num_return` is between 1 and `beam_size`.*num_return=5, beam_size=4"),
        ({"num_return": 0}, r"`num_return` is 1 or more.*=0"),
        ({"length_penalty": -1.0}, r"`length_penalty`.*=-1.0"),
        ({"length_penalty": float("nan")}, r"`length_penalty`.*=nan"),
        ({"length_penalty": float("inf")}, r"`length_penalty`.*=inf"),
        ({"length_penalty": "0.6"}, r"`length_penalty`.*='0.6'"),
        ({"temperature": None, "sample": True}, r"`temperature` is a number above 0.*=None"),
        ({"top_p": "all", "sample": True}, r"`top_p` is above 0 .*='all'"),
        ({"min_p": True, "sample": True}, r"`min_p` is between 0 and 1.*=True"),
        ({"length_normalization": "mean"}, r"one of gnmt, average.*'mean'"),
        ({"min_length": 5, "max_length": 4}, r"min_length=5, max_length=4"),
        ({"max_length": 0}, r"`max_length` is 1 or more.*=0"),
        ({"max_length": 2.5}, r"`max_length` is 1 or more.*=2.5"),
        ({"no_repeat_ngram": -1}, r"`no_repeat_ngram`.*=-1"),
        ({"top_p": 2.0, "sample": True}, r"`top_p`.*=2.0"),
        ({"top_k": -1, "sample": True}, r"`top_k`.*=-1"),
        ({"min_p": 1.5, "sample": True}, r"`min_p`.*=1.5"),
        ({"temperature": 0.0, "sample": True}, r"`temperature`.*=0.0"),
        ({"temperature": 0.5}, r"`temperature` is for sampling, with `sample=True`.*=0.5"),
        ({"seed": 3}, r"`seed` is for sampling"),
        ({"sample": True, "beam_size": 4}, r"give no `beam_size` with `sample`.*beam_size=4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**options)


def test_bad_inputs(translator, language_model):
    with pytest.raises(TypeError, match=r"`inputs` must be integers.*inputs\.dtype=float32"):
        generate(translator, np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(B, length\).*inputs\.shape=\(3,\)"):
        generate(translator, np.ones(3, "int32"))
    with pytest.raises(ValueError, match=r"`prefix` must have shape \(B, length\)"):
        generate(translator, SOURCES, prefix=[4, 5, 5])
    with pytest.raises(ValueError, match="give no `prefix`"):
        generate(language_model, PROMPTS, prefix=PROMPTS)


@pytest.mark.parametrize("allowed", [{}, {"sample": True}], ids=["search", "sample"])
@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {"length_penalty": 0.0},
        {"min_length": 0},
        {"min_length": 5, "max_length": 5},
        {"min_length": 1, "max_length": 1},
        {"no_repeat_ngram": 0},
        {"no_repeat_ngram": 1},
        {"num_return": 4},
    ],
    ids=str,
)
def test_options_at_the_edge_of_their_range(options, allowed):
    for name, value in options.items():
        assert getattr(DecodingOptions(**options, **allowed), name) == value


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_p": 1}, {"min_p": 0}, {"min_p": 1}, {"temperature": 1e-3}])
def test_options_of_sampling_at_the_edge_of_their_range(options):
    assert DecodingOptions(sample=True, **options).beams == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return": True}, "`num_return` is 1 or more. Received: num_return=True"),
        ({"min_length": -1}, "`min_length` is 0 or more"),
        ({"min_length": 1.0}, "`min_length` is 0 or more.*min_length=1.0"),
        ({"top_p": 0, "sample": True}, "`top_p` is above 0 and at most 1. Received: top_p=0"),
        ({"min_p": -0.1, "sample": True}, "`min_p` is between 0 and 1"),
        ({"temperature": float("inf"), "sample": True}, "`temperature` is a number above 0. Received: temperature=inf"),
        ({"top_k": 1}, "`top_k` is for sampling"),
        ({"top_p": 0.5}, "`top_p` is for sampling"),
        ({"min_p": 0.5}, "`min_p` is for sampling"),
        ({"num_return": 2, "beam_size": 1}, "num_return=2, beam_size=1"),
    ],
)
def test_options_beyond_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**options)


def test_defaults_of_the_options():
    options = DecodingOptions()
    assert (options.beams, options.num_return, options.length_penalty) == (4, 1, 0.6)
    assert (options.length_normalization, options.min_length, options.max_length) == ("gnmt", 1, None)
    assert (options.no_repeat_ngram, options.sample, options.seed) == (0, False, 0)
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (1.0, 0, 1.0, 0.0)
    assert DecodingOptions(beam_size=3).beams == 3
    assert DecodingOptions(sample=True, beam_size=1).beams == 1


class Endless:
    """A model that never ends a sentence by itself."""

    def __init__(self, model):
        self.init_cache, self.model = model.init_cache, model
        if hasattr(model, "encode"):
            self.encode = model.encode

    def decode_step(self, *inputs):
        logits, cache = self.model.decode_step(*inputs)
        return logits - 1e4 * keras.ops.one_hot(EOS, V), cache


def test_outputs_have_50_tokens_more_than_their_inputs_at_most(translator, language_model):
    """The end of the source does not count, that of the output does."""
    greedily = DecodingOptions(beam_size=1)
    for model, inputs, expected in ((translator, SOURCES, [53, 51, 52]), (language_model, PROMPTS, [52, 51, 50])):
        found = in_a_graph(Endless(model), inputs, greedily)
        assert found.lengths[:, 0].tolist() == expected
        assert [int(row[length - 1]) for row, length in zip(found.ids[:, 0], expected, strict=True)] == [EOS] * 3


@pytest.mark.parametrize("kind", ["translator", "language_model"])
def test_other_special_ids(kind, request):
    """Greedy decoding with other ids, against the whole model run over all that is written."""
    model, (bos, eos, pad) = request.getfixturevalue(kind), (1, 5, 4)
    options = DecodingOptions(beam_size=1, min_length=3, max_length=6, no_repeat_ngram=2)
    inputs = np.array([[3, 2, 5], [2, 1, 5]]) if kind == "translator" else np.array([[3, 2], [2, pad]])
    expected = []
    for row in inputs:
        given = [] if kind == "translator" else [token for token in row if token != pad]
        tokens = list(map(int, given))
        while len(tokens) == len(given) or tokens[-1] != eos:
            target = np.array([[bos, *tokens]])
            logits = numpy(model({"source": row[None], "target": target} if kind == "translator" else target))[0, -1]
            logits = logits.copy()
            pairs = list(itertools.pairwise(tokens))
            for token in range(V):
                if token != eos and tokens and (tokens[-1], token) in pairs:
                    logits[token] = -np.inf
            if len(tokens) + 1 < len(given) + 3:
                logits[eos] = -np.inf
            tokens.append(eos if len(tokens) + 1 == len(given) + 6 else int(logits.argmax()))
        expected.append(tokens)
    found = generate(model, inputs, options, bos_id=bos, eos_id=eos, pad_id=pad)
    longest = max(map(len, expected))
    rows = [tokens + [pad] * (longest - len(tokens)) for tokens in expected]
    assert found.ids[:, 0].tolist() == rows
    assert found.lengths[:, 0].tolist() == list(map(len, expected))
    streamed = list(stream(model, inputs, options, bos_id=bos, eos_id=eos, pad_id=pad))
    read = 0 if kind == "translator" else 1  # tokens of each prompt that are read at once
    assert np.stack([token.ids for token in streamed], axis=1).tolist() == [row[read:] for row in rows]


@pytest.fixture(scope="module")
def five_positions():
    """A translator and a language model that have learned five positions."""
    return [made(kind, positions="learned", max_length=5) for kind in (Transformer, CausalTransformer)]


def test_an_output_ends_at_the_last_learned_position(five_positions):
    for model, inputs in zip(five_positions, (SOURCES, PROMPTS), strict=True):
        options = DecodingOptions(beam_size=3, length_penalty=3.0, length_normalization="average")
        found = generate(model, inputs, options)
        assert found.ids.shape[2] <= 5
        assert np.isfinite(found.scores).all()
    embeddings = five_positions[0].get_layer("embedding").embeddings
    unwilling = made(Transformer, positions="learned", max_length=5)
    unwilling.get_layer("embedding").embeddings.assign(embeddings * (np.arange(V) != EOS)[:, None] * 3)
    # On other backends, the random weights of the models are others.
    for each in (unwilling, Unfused(unwilling)) if BACKEND == "tensorflow" else (Endless(unwilling),):
        each.config = unwilling.config
        assert generate(each, SOURCES, DecodingOptions(beam_size=1)).lengths.tolist() == [[5]] * 3
        assert len(list(stream(each, SOURCES))) == 5


@pytest.mark.parametrize("options", [{"max_length": 6}, {"min_length": 6}])
def test_options_beyond_the_learned_positions_are_refused(options, five_positions):
    for model, inputs in zip(five_positions, (SOURCES, PROMPTS), strict=True):
        with pytest.raises(ValueError, match=r"give a smaller `max_length`.*_length=6.* model.config.max_length=5"):
            generate(model, inputs, DecodingOptions(**options))


def test_a_prompt_or_a_source_beyond_the_learned_positions_is_refused(five_positions):
    translator, language_model = five_positions
    with pytest.raises(ValueError, match=r"Received: max_length=4, .* prompt of 2 tokens, model.config.max_len"):
        generate(language_model, PROMPTS, DecodingOptions(max_length=4))
    with pytest.raises(ValueError, match=r"prompt of 5 tokens, model.config.max_length=5"):
        generate(language_model, np.full((1, 5), 4), DecodingOptions(max_length=1))
    for each in (translator, Unfused(translator)):
        with pytest.raises(ValueError, match=r"past the last learned position.* length=6, .* max_length=5"):
            generate(each, np.full((1, 6), 4, "int32"))


@pytest.mark.tensorflow
def test_a_graph_gives_nan_for_a_source_beyond_the_learned_positions(five_positions):
    import tensorflow as tf

    graph = tf.function(
        lambda source: decoding.generate(five_positions[0], source),
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
    )
    assert np.isfinite(graph(np.full((1, 5), 4, "int32")).scores.numpy()).all()
    assert np.isnan(graph(np.full((1, 6), 4, "int32")).scores.numpy()).all()
