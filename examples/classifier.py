"""The layers among Keras' own: a text classifier whose predictions do not depend on padding.

Run it: python examples/classifier.py
"""

import keras
import numpy as np

import keras_attention as ka

VOCABULARY_SIZE, LENGTH = 50, 12


def make_data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 3 to 12 ids, padded with 0, with label 1 if the first id occurs again."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, VOCABULARY_SIZE, (count, LENGTH))
    again = random.random(count) < 0.5
    lengths = random.integers(3, LENGTH + 1, count)
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    ids[:, 1:][ids[:, 1:] == ids[:, :1]] = VOCABULARY_SIZE  # no repetition by chance
    position = 1 + random.integers(0, lengths - 1)
    ids[again, position[again]] = ids[again, 0]
    return ids, again.astype("float32")


def build_model() -> keras.Model:
    """Builds a model of embedding, positions, three encoder layers, mean pooling and a sigmoid."""
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(VOCABULARY_SIZE + 1, 32, mask_zero=True)(ids)
    x = ka.PositionalEncoding()(x)
    for _ in range(3):
        x = ka.EncoderLayer(intermediate_dim=64, num_heads=4)(x)  # the mask flows
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(x))


def main(epochs: int = 15) -> float:
    """Trains the classifier and returns its accuracy on test sequences."""
    keras.utils.set_random_seed(1)
    model = build_model()
    model.compile("adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(*make_data(8000, seed=1), batch_size=64, epochs=epochs)
    ids, labels = make_data(1000, seed=2)
    accuracy = model.evaluate(ids, labels, verbose=0, return_dict=True)["accuracy"]
    longer = np.pad(ids, ((0, 0), (0, 7)))
    change = np.abs(model.predict(ids, verbose=0) - model.predict(longer, verbose=0)).max()
    print(f"test accuracy {accuracy:.1%}; seven more columns of padding change the predictions by {change:.0e}")
    return accuracy


if __name__ == "__main__":
    main()
