"""Our layers among Keras' own: a text classifier whose padding never changes an answer.

Run it: python examples/classifier.py
"""

import keras
import numpy as np

import keras_attention as ka

VOCABULARY_SIZE, LENGTH = 50, 12


def make_data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 3 to 12 ids, padded with 0; the answer is 1 if the first id appears again."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, VOCABULARY_SIZE, (count, LENGTH))
    again = random.random(count) < 0.5
    lengths = random.integers(3, LENGTH + 1, count)
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    ids[:, 1:][ids[:, 1:] == ids[:, :1]] = VOCABULARY_SIZE  # nowhere else ...
    place = 1 + random.integers(0, lengths - 1)
    ids[again, place[again]] = ids[again, 0]  # ... but where it is meant to be
    return ids, again.astype("float32")


def build_model() -> keras.Model:
    """Embedding, positions, three encoder layers, a mean over real tokens, one probability."""
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(VOCABULARY_SIZE + 1, 32, mask_zero=True)(ids)
    x = ka.PositionalEncoding()(x)
    for _ in range(3):
        x = ka.EncoderLayer(intermediate_dim=64, num_heads=4)(x)  # the mask flows
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(x))


def main(epochs: int = 15) -> float:
    """Trains the classifier and returns its accuracy on new sequences."""
    keras.utils.set_random_seed(1)
    model = build_model()
    model.compile("adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(*make_data(8000, seed=1), batch_size=64, epochs=epochs)
    ids, answers = make_data(1000, seed=2)
    accuracy = model.evaluate(ids, answers, verbose=0, return_dict=True)["accuracy"]
    longer = np.pad(ids, ((0, 0), (0, 7)))
    change = np.abs(model.predict(ids, verbose=0) - model.predict(longer, verbose=0)).max()
    print(f"accuracy on new sequences {accuracy:.1%}; seven columns of padding change the answers by {change:.0e}")
    return accuracy


if __name__ == "__main__":
    main()
