"""Classifies made reviews by their verdict, against a bag of words; padding does not change a prediction.

Run it: python examples/classifier.py

A review is two opinions, some negated, and one of them is the verdict: "the soup was not bad but the staff was rude".
The same words in another order can mean the opposite, so counting words is not enough.
"""

import sys
from random import Random

import keras
import numpy as np

import keras_attention as ka

NOUNS = ["soup", "staff", "room", "view", "music", "bread", "price", "place", "coffee", "garden"]
GOOD = ["good", "kind", "fresh", "quick", "great", "lovely", "clean", "warm", "friendly", "excellent"]
BAD = ["bad", "rude", "stale", "slow", "awful", "dirty", "cold", "noisy", "boring", "terrible"]
LINKS = ("but", "although", "even though", "yet")  # the verdict is after "but" and "yet", before the others
SMOKE = {"reviews": 1500, "epochs": 12}


def make_reviews(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes different reviews (count,) and their labels (count,), 1 for a good verdict."""
    random = Random(seed)
    reviews: dict[str, int] = {}
    while len(reviews) < count:
        opinions, good = [], []
        for noun in random.sample(NOUNS, 2):
            is_good, negated = random.random() < 0.5, random.random() < 0.3
            adjective = random.choice(GOOD if is_good != negated else BAD)
            opinions.append(f"the {noun} was {random.choice(('not ', 'never ')) * negated}{adjective}")
            good.append(is_good)
        link = random.choice(LINKS)
        verdict = good[1] if link in ("but", "yet") else good[0]
        reviews[f"{opinions[0]} {link} {opinions[1]}"] = int(verdict)
    return np.array(list(reviews)), np.array(list(reviews.values()), "float32")


def build_model(vocabulary_size: int) -> keras.Model:
    """Builds a model of embedding, positions, two encoder layers, mean pooling and a sigmoid."""
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(vocabulary_size, 32, mask_zero=True)(ids)
    x = ka.PositionalEncoding()(x)
    for _ in range(2):
        x = ka.EncoderLayer(intermediate_dim=64, num_heads=4, dropout=0.1)(x)  # the mask flows
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(x))


def bag_of_words(vocabulary_size: int) -> keras.Model:
    """Builds a logistic regression on the number of times that each word, and each pair of neighbors, occurs."""
    return keras.Sequential([keras.Input((vocabulary_size,)), keras.layers.Dense(1, activation="sigmoid")])


def fit(model: keras.Model, train, valid, epochs: int) -> None:
    """Trains until the loss on validation data rises, and keeps the best weights."""
    model.compile(keras.optimizers.Adam(0.003), loss="binary_crossentropy", metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    model.fit(*train, validation_data=valid, batch_size=64, epochs=epochs, callbacks=[stop], verbose=0)


def main(reviews: int = 3000, epochs: int = 40) -> dict[str, float]:
    """Trains both models on the same reviews and returns their accuracies on others."""
    keras.utils.set_random_seed(1)
    texts, labels = make_reviews(reviews + 2000, seed=1)
    parts = np.split(np.arange(len(texts)), [reviews, reviews + 1000])  # training, validation, test

    accuracy = {}
    words = keras.layers.TextVectorization()
    counts = keras.layers.TextVectorization(output_mode="count", ngrams=2)
    for name, vectorize, build in (("bag of words", counts, bag_of_words), ("encoder", words, build_model)):
        vectorize.adapt(texts[parts[0]])
        train, valid, test = ((np.asarray(vectorize(texts[part])), labels[part]) for part in parts)
        model = build(vectorize.vocabulary_size())
        fit(model, train, valid, epochs)
        for part, data in (("training", train), ("test", test)):
            accuracy[f"{name}, {part}"] = model.evaluate(*data, verbose=0, return_dict=True)["accuracy"]

    ids = test[0]
    longer = np.pad(ids, ((0, 0), (0, 7)))
    change = np.abs(model.predict(ids, verbose=0) - model.predict(longer, verbose=0)).max()
    for name, value in accuracy.items():
        print(f"accuracy of the {name}: {value:.1%}")
    print(f"seven more columns of padding change the predictions by {change:.0e}")
    return accuracy


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
