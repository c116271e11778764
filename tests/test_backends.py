"""The same numbers and hypotheses on each backend, and models that move between them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import one_backend
import pytest
from backends import BACKEND, gradient, numpy

from keras_attention.training import MaskedCrossEntropy

BACKENDS = ["tensorflow", "jax", "torch"]
# Each pair once, whichever backend this process has.
OTHERS = BACKENDS[BACKENDS.index(BACKEND) + 1 :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models saved by this backend."""
    folder = tmp_path_factory.mktemp("backends")
    one_backend.save_models(folder)
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """What this backend computes."""
    return one_backend.answers(folder)


@pytest.fixture(scope="module", params=OTHERS)
def other(request):
    """The name of another backend."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}: install the extra `backends`")
    return request.param


@pytest.fixture(scope="module")
def there(other, folder):
    """What another backend makes of the models saved here."""
    environment = {**os.environ, "KERAS_BACKEND": other, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling takes longer than computing here
    command = [sys.executable, one_backend.__file__, str(folder)]
    paths = [str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / f"answers_of_{other}.npz") as file:
        return dict(file)


def test_caches_grow_or_not_and_any_loop_gives_the_full_pass(here):
    ways = [name for name in here if name.startswith("decoding/")]
    assert len(ways) == {"tensorflow": 5, "jax": 4, "torch": 2}[BACKEND]
    for name in ways:
        np.testing.assert_allclose(here[name], here["logits"], atol=5e-5, err_msg=name)


def test_loops_of_the_other_backend_give_the_full_pass(there, other):
    ways = [name for name in there if name.startswith("decoding/")]
    assert len(ways) == {"jax": 4, "torch": 2}[other]
    for name in ways:
        np.testing.assert_allclose(there[name], there["logits"], atol=5e-5, err_msg=name)


def test_models_saved_here_give_the_same_numbers_there(here, there):
    for name in ("logits", "encoder", "loss"):
        np.testing.assert_allclose(there[name], here[name], atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["beams", "best of each", "language model", "score", "table", "stream"])
def test_searches_give_the_same_hypotheses(name, here, there):
    for number in range(3):
        mine, other = here[f"{name}/{number}"], there[f"{name}/{number}"]
        if mine.ndim == 3 and mine.dtype == "int32":  # ids may be longer than the longest hypothesis
            width = min(mine.shape[2], other.shape[2])
            assert not mine[:, :, width:].any() and not other[:, :, width:].any()
            mine, other = mine[:, :, :width], other[:, :, :width]
        assert mine.shape == other.shape
        if mine.dtype == "float32":
            np.testing.assert_allclose(other, mine, atol=5e-5, rtol=1e-5)
        else:
            np.testing.assert_array_equal(other, mine)


def test_texts_have_the_same_translations(here, there):
    assert there["translations"].tolist() == here["translations"].tolist()
    assert len(set(here["translations"].tolist())) > 5  # the outputs depend on the inputs


def test_a_training_step_is_the_same(here, there):
    assert set(name for name in here if not name.startswith("decoding/")) <= set(there)
    names = [name for name in here if name.startswith(("fit/", "trained/"))]
    assert {"fit/loss", "fit/accuracy", "fit/perplexity", "trained/logits"} < set(names)
    for name in names:
        np.testing.assert_allclose(there[name], here[name], atol=5e-5, rtol=1e-5, err_msg=name)
    assert np.abs(here["trained/logits"] - here["logits"]).max() > 1e-2, "the step changed nothing"


def test_a_model_trained_there_goes_on_here(there, other, folder):
    # On torch, Keras saves its optimizers as classes that no other backend can use.
    with_optimizer = other != "torch"
    model = keras.models.load_model(folder / f"trained_on_{other}.keras", compile=with_optimizer)
    if not with_optimizer:
        one_backend.compile_model(model)
    inputs, labels = one_backend.batch()
    np.testing.assert_allclose(numpy(model(inputs)), there["trained/logits"], atol=2e-5, rtol=1e-5)
    for weight in model.weights:
        np.testing.assert_array_equal(numpy(weight), there[f"trained/{weight.path}"], err_msg=weight.path)
    assert int(model.optimizer.iterations) == with_optimizer
    before = model.evaluate(inputs, labels, verbose=0)[0]
    model.fit(inputs, labels, verbose=0)
    assert int(model.optimizer.iterations) == with_optimizer + 1
    assert model.evaluate(inputs, labels, verbose=0)[0] < before


@pytest.mark.skipif(BACKEND != "jax", reason="is about JAX")
def test_the_loss_can_be_differentiated_around_a_compiled_function():
    import jax

    (_, labels), logits = one_backend.batch(), np.random.normal(size=(2, 3, 17)).astype("float32")
    loss = MaskedCrossEntropy(label_smoothing=0.1)
    inside = jax.jit(jax.grad(lambda logits: loss(labels, logits)))(logits)
    around = gradient(jax.jit(lambda logits: loss(labels, logits)), logits)
    np.testing.assert_allclose(around, inside, atol=1e-6)
