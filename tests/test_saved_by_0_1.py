"""Models that version 0.1 saved load and compute the same: weight order, paths and registered names are kept."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_attention as ka

FOLDER = Path(__file__).parent / "saved_by_0_1"
FILES = sorted(FOLDER.glob("*.keras"))


def read(file: Path):
    """The model, its inputs and the outputs that it had."""
    arrays = dict(np.load(file.with_suffix(".npz")))
    outputs = arrays.pop("outputs")
    return keras.models.load_model(file), arrays.get("inputs", arrays), outputs


def test_the_models_are_there_and_small():
    assert len(FILES) == 6
    assert all(file.stat().st_size < 200_000 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_saved_model_computes_the_same(file):
    model, inputs, expected = read(file)
    # XLA, JAX and torch add in another order.
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, rtol=2e-4, atol=2e-5)


def test_the_numbers_tell_models_apart():
    """Outputs depend on the weights: with one matrix changed, they are others."""
    model, inputs, expected = read(FOLDER / "transformer.keras")
    kernel = model.get_layer("decoder").weights[0]
    kernel.assign(kernel + 0.1)
    assert np.abs(model.predict(inputs, verbose=0) - expected).max() > 1e-2


def test_training_resumes_with_the_saved_optimizer():
    model, inputs, _ = read(FOLDER / "transformer.keras")
    assert int(model.optimizer.iterations) == 3
    moments = [variable for variable in model.optimizer.variables if variable.path.endswith("_momentum")]
    assert moments and all(np.abs(keras.ops.convert_to_numpy(moment)).max() > 0 for moment in moments)
    losses = model.fit(inputs, inputs["target"], epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert isinstance(model, ka.Transformer)
