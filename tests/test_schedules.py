"""The learning rate and the optimizer of the paper."""

import keras
import numpy as np
import pytest
from backends import numpy

import keras_attention as ka
from keras_attention.training import InverseSqrtSchedule, MaskedCrossEntropy, Muon, paper_optimizer, preset_optimizer
from keras_attention.training.presets import TRAINING_PRESETS


@pytest.mark.parametrize("hidden_dim", [512, 97])
@pytest.mark.parametrize("warmup_steps", [4000, 7])
def test_equals_the_formula(hidden_dim, warmup_steps):
    schedule = InverseSqrtSchedule(hidden_dim, warmup_steps, scale=3.0)
    counter = keras.optimizers.SGD().iterations  # what optimizers count their steps with
    for step in (1, 2, 6, 7, 8, 3999, 4000, 4001, 100_000):
        expected = 3.0 * hidden_dim**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
        np.testing.assert_allclose(numpy(schedule(step - 1)), expected, rtol=1e-5)  # Keras counts the steps taken
        np.testing.assert_allclose(numpy(schedule(keras.ops.cast(step - 1, counter.dtype))), expected, rtol=1e-5)


def test_rises_to_its_top_at_the_end_of_the_warm_up_and_falls():
    rates = np.array([float(InverseSqrtSchedule(512, 11)(step)) for step in range(50)])
    assert rates.argmax() == 10  # the eleventh step
    assert np.all(np.diff(rates[:11]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[0] > 0, "the first step must move the weights"


def test_falls_to_zero_over_the_second_half_where_the_end_is_known():
    endless, ending = InverseSqrtSchedule(512, 11), InverseSqrtSchedule(512, 11, total_steps=90)
    for step in (1, 11, 44, 45):
        np.testing.assert_allclose(numpy(ending(step - 1)), numpy(endless(step - 1)), rtol=1e-5)
    for step, factor in ((46, 44 / 45), (75, 15 / 45)):
        np.testing.assert_allclose(numpy(ending(step - 1)), factor * float(endless(step - 1)), rtol=1e-5)
    for step in (90, 91, 1000):
        assert float(ending(step - 1)) == 0


def test_a_long_warm_up_ends_after_a_quarter_where_the_end_is_known():
    ending = InverseSqrtSchedule(512, 11, total_steps=36)
    peak = float(InverseSqrtSchedule(512, 11)(10))
    np.testing.assert_allclose(ending.peak, peak, rtol=1e-6)
    for step, factor in ((1, 1 / 9), (7, 7 / 9), (9, 1), (10, 1), (11, 1), (15, (11 / 15) ** 0.5)):
        np.testing.assert_allclose(numpy(ending(step - 1)), factor * peak, rtol=1e-5)


def test_survives_serialisation():
    arguments = {"hidden_dim": 97, "warmup_steps": 13, "scale": 2.5, "total_steps": 41, "batches_per_step": 3}
    schedule = InverseSqrtSchedule(**arguments)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(again) is InverseSqrtSchedule
    assert again.get_config() == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 0}, r"`hidden_dim` must be a positive integer. Received: hidden_dim=0"),
        ({"warmup_steps": 0}, r"`warmup_steps` must be a positive integer. Received: warmup_steps=0"),
        ({"warmup_steps": 1e3}, r"Received: warmup_steps=1000.0"),
        ({"total_steps": 0}, r"`total_steps` must be a positive integer. Received: total_steps=0"),
        ({"batches_per_step": 0}, r"`batches_per_step` must be a positive integer. Received: batches_per_step=0"),
        ({"scale": 0}, r"`scale` must be a number above zero. Received: scale=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InverseSqrtSchedule(**{"hidden_dim": 512, **arguments})


def test_optimizer_is_that_of_the_paper():
    optimizer = paper_optimizer(ka.TransformerConfig(37000))
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
    assert optimizer.global_clipnorm == 1.0
    np.testing.assert_allclose(numpy(optimizer.learning_rate), 512**-0.5 * 4000**-1.5, rtol=1e-5)
    other = paper_optimizer(ka.TransformerConfig(37000), warmup_steps=5, scale=2.0, global_clipnorm=None)
    assert other.global_clipnorm is None
    np.testing.assert_allclose(numpy(other.learning_rate), 2 * 512**-0.5 * 5**-1.5, rtol=1e-5)


def test_optimizer_follows_the_schedule_and_survives_serialisation():
    optimizer = paper_optimizer(ka.TransformerConfig(37000), warmup_steps=3, global_clipnorm=None)
    weight = keras.Variable(np.zeros(2, "float32"))
    optimizer.build([weight])
    moves = []
    for _ in range(5):
        before = weight.numpy()
        optimizer.apply([keras.ops.array([5.0, -0.01])], [weight])
        moves.append(weight.numpy() - before)
    # With a gradient that stays the same, Adam moves each weight by the learning rate.
    rates = [512**-0.5 * min(step**-0.5, step * 3**-1.5) for step in range(1, 6)]
    np.testing.assert_allclose(moves, [[-rate, rate] for rate in rates], rtol=1e-4)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_accumulated_gradients_make_one_step_of_optimizer_and_schedule():
    accumulating, plain = (
        paper_optimizer(ka.TransformerConfig(37000), warmup_steps=3, gradient_accumulation_steps=steps)
        for steps in (3, 1)
    )
    one, other = (keras.Variable(np.zeros(2, "float32")) for _ in range(2))
    accumulating.build([one])
    plain.build([other])
    for step in range(4):
        parts = np.random.normal(size=(3, 2)).astype("float32")
        for part in parts[:2]:
            before = one.numpy()
            accumulating.apply([keras.ops.array(part)], [one])
            np.testing.assert_array_equal(one.numpy(), before)
            assert int(accumulating.iterations) == step
            np.testing.assert_allclose(numpy(accumulating.learning_rate), numpy(plain.learning_rate), rtol=1e-6)
        accumulating.apply([keras.ops.array(parts[2])], [one])
        plain.apply([keras.ops.array(parts.mean(0))], [other])
        assert int(accumulating.iterations) == int(plain.iterations) == step + 1
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4)


def test_accumulation_survives_serialisation_and_is_checked():
    optimizer = paper_optimizer(ka.TransformerConfig(37000), gradient_accumulation_steps=5)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.gradient_accumulation_steps == 5
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match=r"`gradient_accumulation_steps` must be a positive integer\. Received: .*=0"):
        paper_optimizer(ka.TransformerConfig(37000), gradient_accumulation_steps=0)


@pytest.mark.parametrize("lengths", [[5, 3, 4, 4, 2, 6], [5, 3, 7, 2, 6, 7]], ids=["as_many_tokens", "others"])
def test_accumulated_batches_amount_to_one_large_batch(lengths):
    """Each batch counts the same: tokens of one with fewer weigh more than they would among those of all."""
    vocabulary_size = 17
    ids = np.where(np.arange(7) < np.array(lengths)[:, None], np.random.randint(1, vocabulary_size, (6, 7)), 0)
    tokens = np.array(lengths).reshape(3, 2).sum(1)
    shares = np.repeat(tokens.sum() / (3 * tokens), 2).astype("float32")  # all 1 where the tokens are as many
    weights = []
    for accumulate in (True, False):
        keras.utils.set_random_seed(3)
        sizes = {"num_layers": 1, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3, "dropout": 0.0}
        model = ka.Transformer(ka.TransformerConfig(vocabulary_size, **sizes))
        optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=3 if accumulate else None)
        model.compile(optimizer, loss=MaskedCrossEntropy())
        inputs, size = {"source": ids, "target": ids}, 2 if accumulate else 6
        model.fit(inputs, ids, sample_weight=None if accumulate else shares, batch_size=size, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert int(optimizer.iterations) == 1
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "kind", "warmup_steps", "scale"),
    [("tiny", "Adam", 300, 0.42), ("small", "Muon", 200, 1.5), ("base", "Adam", 4000, 1.0), ("big", "Adam", 4000, 1.0)],
)
def test_a_preset_trains_with_its_own_settings(preset, kind, warmup_steps, scale):
    config = ka.TransformerConfig.from_preset(preset, 101)
    optimizer = preset_optimizer(preset, config, total_steps=41, gradient_accumulation_steps=3)
    assert isinstance(optimizer, Muon if kind == "Muon" else keras.optimizers.Adam)
    assert optimizer.gradient_accumulation_steps == 3
    schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
    expected = InverseSqrtSchedule(config.hidden_dim, warmup_steps, scale, total_steps=41, batches_per_step=3)
    assert schedule.get_config() == expected.get_config()


@pytest.mark.parametrize(
    ("preset", "layers", "scale"),
    [
        ("small", {"num_layers": 2}, 1.5),
        ("small", {"num_layers": 16}, 0.75),
        ("small", {"num_layers": 16, "num_decoder_layers": 2}, 0.75),
        ("small", {"num_layers": 2, "num_decoder_layers": 9}, 1.0),
        ("base", {"num_layers": 16}, 1.0),
        ("tiny", {"num_layers": 16}, 0.42),
    ],
)
def test_deep_models_learn_with_lower_rates_of_muon(preset, layers, scale):
    config = ka.TransformerConfig.from_preset(preset, 101, **layers)
    schedule = keras.optimizers.schedules.deserialize(preset_optimizer(preset, config).get_config()["learning_rate"])
    assert schedule.scale == scale


def test_what_is_said_of_the_presets_is_so():
    for settings in TRAINING_PRESETS.values():
        tokens, steps, scale = (settings[name] for name in ("tokens_per_batch", "warmup_steps", "learning_rate_scale"))
        assert f"| {tokens:,} | {steps:,} | {scale:g} |" in preset_optimizer.__doc__


def test_muon_has_a_weight_decay_by_the_passes():
    for preset, decay in {"small": 0.25, "base": None}.items():
        config = ka.TransformerConfig.from_preset(preset, 101)
        assert preset_optimizer(preset, config, total_steps=7168, epochs=7).weight_decay == decay
        assert preset_optimizer(preset, config, total_steps=7168).weight_decay is None
    config = ka.TransformerConfig.from_preset("small", 101)
    with pytest.raises(ValueError, match=r"`epochs` must be a number above zero\. Received: epochs=0"):
        preset_optimizer("small", config, total_steps=7, epochs=0)
    with pytest.raises(ValueError, match=r"those of `total_steps`: give both\. Received: epochs=3, total_steps=None"):
        preset_optimizer("small", config, epochs=3)


def test_a_preset_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"`preset` is one of .*'small'.* Received: preset='large'"):
        preset_optimizer("large", ka.TransformerConfig(101))


def test_defaults_are_the_papers():
    schedule = InverseSqrtSchedule(512)
    assert schedule.get_config() == {
        "hidden_dim": 512,
        "warmup_steps": 4000,
        "scale": 1.0,
        "total_steps": None,
        "batches_per_step": 1,
    }
    assert paper_optimizer(ka.TransformerConfig(100)).gradient_accumulation_steps is None
    assert paper_optimizer(ka.TransformerConfig(100), gradient_accumulation_steps=2).gradient_accumulation_steps == 2


def test_the_end_that_is_known_reaches_the_optimizers_schedule():
    optimizer = paper_optimizer(ka.TransformerConfig(100), 3, 2.0, None, 5, 2)
    schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
    assert (schedule.warmup_steps, schedule.scale, schedule.total_steps, schedule.batches_per_step) == (3, 2.0, 5, 2)
    assert schedule.hidden_dim == 512
