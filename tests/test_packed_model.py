"""Several pairs in a row: each gives the logits, the loss and the gradients that it gives by itself."""

import itertools

import keras
import numpy as np
import pytest
from backends import HAS_XLA, compiled, gradients, numpy
from tensors import assert_close, largest_difference, randomize

import keras_attention as ka
from keras_attention.training import MaskedCrossEntropy

V, S, T = 17, 23, 19
SIZES = {"num_layers": 1, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3}
# Source and target tokens of each pair; two rows.
ROWS = [[(5, 3), (7, 11), (2, 2)], [(13, 5), (3, 7)]]


def make(**changes):
    model = ka.Transformer(ka.TransformerConfig(V, **{**SIZES, **changes}))
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def pairs():
    """For each row its pairs, as (source, target, labels)."""
    return [[tuple(np.random.randint(1, V, n) for n in (s, t, t)) for s, t in row] for row in ROWS]


def in_rows(pairs):
    """Inputs and labels with the pairs of a row one after the other."""
    arrays = {name: np.zeros((len(pairs), n), "int32") for name, n in (("source", S), ("target", T), ("labels", T))}
    segments = {name: np.zeros_like(each) for name, each in arrays.items()}
    for row, members in enumerate(pairs):
        ends = dict.fromkeys(arrays, 0)
        for number, member in enumerate(members, start=1):
            for name, ids in zip(arrays, member, strict=True):
                place = slice(ends[name], ends[name] + len(ids))
                arrays[name][row, place], segments[name][row, place] = ids, number
                ends[name] += len(ids)
    labels = arrays.pop("labels")
    return {**arrays, "source_segments": segments["source"], "target_segments": segments["target"]}, labels


def separately(pairs):
    """The same pairs, each in a row of its own, padded."""
    members = [member for row in pairs for member in row]
    arrays = [np.zeros((len(members), max(map(len, each))), "int32") for each in zip(*members, strict=True)]
    for row, member in enumerate(members):
        for array, ids in zip(arrays, member, strict=True):
            array[row, : len(ids)] = ids
    source, target, labels = arrays
    return {"source": source, "target": target}, labels


def split(logits, pairs):
    """The logits of each pair out of those of the rows."""
    found = []
    for row, members in zip(numpy(logits), pairs, strict=True):
        ends = np.cumsum([0, *(len(target) for _, target, _ in members)])
        found += [row[start:end] for start, end in itertools.pairwise(ends)]
    return found


@pytest.mark.parametrize("mode", ["eager", "function", "predict"])
@pytest.mark.parametrize("normalize_first", [False, True])
def test_each_pair_has_the_logits_that_it_has_by_itself(pairs, mode, normalize_first):
    model = make(normalize_first=normalize_first)
    packed = model.packed()
    run = {"eager": packed, "function": compiled(packed), "predict": lambda x: packed.predict(x, verbose=0)}[mode]
    together, single = split(run(in_rows(pairs)[0]), pairs), numpy(model(separately(pairs)[0]))
    for found, expected in zip(together, single, strict=True):
        assert_close(found, expected[: len(found)], atol=5e-5)


def test_loss_and_gradients_are_those_of_separate_pairs(pairs):
    model = make()
    loss = MaskedCrossEntropy(label_smoothing=0.1)

    def differentiate(model, inputs, labels):
        def total(scale):
            return loss(labels, scale * model(inputs))

        value = total(1.0)
        (by_scale,), by_weights = gradients(total, [np.float32(1)], model.trainable_variables)
        names = [weight.path for weight in model.trainable_variables]
        return numpy(value), by_scale, dict(zip(names, by_weights, strict=True))

    one, other = differentiate(model.packed(), *in_rows(pairs)), differentiate(model, *separately(pairs))
    assert_close(one, other, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
def test_a_pair_never_changes_the_logits_of_another(model, pairs, side):
    packed = model.packed()
    before = split(packed(in_rows(pairs)[0]), pairs)
    places = [(row, place) for row, members in enumerate(pairs) for place in range(len(members))]
    for changed, (row, place) in enumerate(places):
        member = list(pairs[row][place])
        member[side] = member[side] % (V - 1) + 1
        other = [list(members) for members in pairs]
        other[row][place] = tuple(member)
        after = split(packed(in_rows(other)[0]), pairs)
        differences = [largest_difference(*each) for each in zip(before, after, strict=True)]
        assert differences.pop(changed) > 1e-3
        assert max(differences) == 0


def test_the_weights_are_those_of_the_model(pairs, tmp_path):
    model = make(dropout=0.0)
    packed = model.packed()
    assert {id(weight) for weight in packed.weights} == {id(weight) for weight in model.weights}
    inputs, _ = separately(pairs)
    before = numpy(model(inputs))
    packed.compile("sgd", loss=MaskedCrossEntropy())
    packed.fit(*in_rows(pairs), batch_size=2, verbose=0)
    after = numpy(model(inputs))
    assert largest_difference(before, after) > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert sorted(again.input) == ["source", "target"]
    assert_close(again(inputs), after, atol=1e-6)
    assert_close(split(again.packed()(in_rows(pairs)[0]), pairs)[0], after[0, :3], atol=5e-5)


@pytest.mark.skipif(not HAS_XLA, reason="this backend compiles nothing")
def test_a_compiled_step_does_what_a_plain_one_does(pairs):
    histories = []
    for jit_compile in (False, True):
        np.random.seed(3)
        packed = make(dropout=0.0).packed()
        packed.compile("sgd", loss=MaskedCrossEntropy(), jit_compile=jit_compile)
        histories.append(packed.fit(*in_rows(pairs), batch_size=2, epochs=3, verbose=0).history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-4)


def test_the_policy_is_that_of_the_model():
    model = ka.Transformer(ka.TransformerConfig(V, **SIZES), dtype="mixed_bfloat16")
    packed = model.packed()
    assert packed.dtype_policy.name == "mixed_bfloat16"
    assert packed.output.dtype == "float32"
