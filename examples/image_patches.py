"""Classifies scikit-learn's handwritten digits with a small vision Transformer, against logistic regression.

Run it: python examples/image_patches.py    (needs scikit-learn: pip install 'keras-attention-transformer[examples]')

An image of 8 × 8 pixels is a sequence of 16 patches of 2 × 2: a dense layer embeds each patch, learned positions are
added, and the encoder is that of the paper (Dosovitskiy et al. 2020).
"""

import sys

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import keras_attention as ka

SIDE, PATCH = 8, 2
NUM_PATCHES = (SIDE // PATCH) ** 2
SMOKE = {"epochs": 3, "num_layers": 1}


def patches_of(images: np.ndarray) -> np.ndarray:
    """Cuts images (B, 8, 8) into rows of patches (B, 16, 4)."""
    blocks = images.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).swapaxes(2, 3)
    return blocks.reshape(-1, NUM_PATCHES, PATCH * PATCH)


def shifted(images: np.ndarray) -> np.ndarray:
    """Images (B, 8, 8) and the same, moved by one pixel up, down, left and right: (5B, 8, 8)."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    return np.concatenate([padded[:, row : row + SIDE, column : column + SIDE] for row, column in corners])


def build_model(num_layers: int, width: int = 48) -> keras.Model:
    """Builds the embedding of patches, learned positions, the encoder, mean pooling and the logits of ten digits."""
    patches = keras.Input((NUM_PATCHES, PATCH * PATCH))
    x = keras.layers.Dense(width)(patches)
    x = ka.LearnedPositionalEncoding(NUM_PATCHES, scale=False)(x)
    x = ka.Encoder(num_layers, intermediate_dim=2 * width, num_heads=4, dropout=0.1)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(patches, keras.layers.Dense(10)(x))


def main(epochs: int = 25, num_layers: int = 3) -> dict[str, float]:
    """Trains both on the same images and returns their accuracies on the others."""
    keras.utils.set_random_seed(1)
    images, digits = load_digits(return_X_y=True)
    images = images.reshape(-1, SIDE, SIDE).astype("float32") / 16
    train, test, train_digits, test_digits = train_test_split(
        images, digits, test_size=600, random_state=1, stratify=digits
    )
    more, more_digits = shifted(train), np.tile(train_digits, 5)

    accuracy = {}
    for name, data in (("logistic regression", (train, train_digits)), ("with shifted images", (more, more_digits))):
        baseline = LogisticRegression(max_iter=1000).fit(data[0].reshape(len(data[0]), -1), data[1])
        accuracy[name] = baseline.score(test.reshape(len(test), -1), test_digits)

    model = build_model(num_layers)
    steps = epochs * -(-len(more) // 64)
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=0.002, warmup_steps=50)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(patches_of(more), more_digits, batch_size=64, epochs=epochs, verbose=2)
    result = model.evaluate(patches_of(test), test_digits, verbose=0, return_dict=True)
    accuracy["encoder, with shifted images"] = result["accuracy"]
    print(f"{len(train)} images for training, {len(test)} for testing, {model.count_params():,} weights")
    for name, value in accuracy.items():
        print(f"test accuracy of {name}: {value:.1%}")
    return accuracy


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
