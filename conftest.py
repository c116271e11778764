"""What every test and every example in a docstring finds: the usual names, a fixed seed."""

import gc
import random

import keras
import numpy as np
import pytest

import keras_attention as ka


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same numbers whatever ran before: Keras 3 draws its own seeds from Python's generator."""
    random.seed(1)
    np.random.seed(1)


@pytest.fixture(autouse=True)
def small_heap():
    """Keeps garbage collections fast: TensorFlow never frees the graphs of custom gradients."""
    import hypothesis  # noqa: F401  its plugins, when imported, look for references that `gc.freeze` hides

    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets JAX's compiled programs: each has memory maps of its own, and a process that has too many crashes."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace, tmp_path, monkeypatch, request):
    """Names the docstrings' examples may use; an example that writes files does so in its folder."""
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace.update(keras=keras, ka=ka, np=np)
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokenizer():
    """A small tokenizer of made-up words, for examples."""
    from tiny_translator import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture
def translator():
    """A small translator with untrained weights, for examples."""
    from tiny_translator import tiny_translator

    return tiny_translator()
