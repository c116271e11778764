"""Recognizes made words from their spectrogram, in noise, against the mean spectrum of the sound.

Run it: python examples/spoken_words.py

A word is two or three vowels, each with three formants (resonances of the mouth), and every sound has its own pitch,
speed and size of the mouth. "ai" and "ia" are the same vowels in another order, and have the same mean spectrum.
"""

import sys

import keras
import numpy as np

import keras_attention as ka

RATE, SAMPLES, FRAME = 8000, 4000, 256  # half a second; a frame is 32 ms, and the next one starts 16 ms later
BANDS = 32
FORMANTS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240), "e": (530, 1840, 2480)}  # Hz
WORDS = ("ai", "ia", "au", "ua", "eu", "ue", "aia", "iai", "uau", "eie")
NOISES = (20, 0, -10)  # signal-to-noise ratios in dB
SMOKE = {"sounds": 400, "epochs": 8}


def say(word: str, random: np.random.Generator) -> np.ndarray:
    """Makes the sound (samples,) of a word: harmonics of the pitch, strong where they are close to a formant."""
    time = np.arange(SAMPLES) / SAMPLES
    start, end = random.uniform(0, 0.2), random.uniform(0.7, 1)
    vowels = np.array([FORMANTS[vowel] for vowel in word]) * random.normal(1, 0.07)  # (vowels, 3), size of the mouth
    middles = np.linspace(start, end, 2 * len(word) + 1)[1::2]  # of the vowels, in time
    formants = [np.interp(time, middles, vowels[:, index]) for index in range(3)]  # glide from vowel to vowel
    pitch = random.uniform(90, 240) * (1 + random.uniform(-0.2, 0.2) * time)
    harmonics = np.arange(1, int(3600 / pitch.max()) + 1)[:, None]
    strength = sum(1 / (1 + ((harmonics * pitch - formant) / 80) ** 2) for formant in formants)  # (harmonics, samples)
    loudness = np.clip(np.minimum(time - start, end - time) * 20, 0, 1)
    return loudness * (strength * np.sin(harmonics * 2 * np.pi * np.cumsum(pitch) / RATE)).sum(0)


def make_sounds(words: np.ndarray, random: np.random.Generator, noise: tuple[float, float]) -> np.ndarray:
    """Makes the sounds (B, samples) of words, indices (B,), with a signal-to-noise ratio between these two, in dB."""
    sounds = np.stack([say(WORDS[word], random) for word in words])
    ratio = 10 ** (random.uniform(*noise, (len(words), 1)) / 20)
    return sounds / sounds.std(-1, keepdims=True) + random.normal(size=sounds.shape) / ratio


def spectrogram(sounds: np.ndarray) -> np.ndarray:
    """The log energies (B, frames, bands) of sounds (B, samples)."""
    frames = np.lib.stride_tricks.sliding_window_view(sounds, FRAME, axis=-1)[:, :: FRAME // 2]
    energies = np.abs(np.fft.rfft(frames * np.hanning(FRAME))[..., 1:]) ** 2  # (B, frames, 128)
    return np.log(energies.reshape(*energies.shape[:2], BANDS, -1).mean(-1) + 1e-3).astype("float32")


def build_model(frames: int, width: int = 64) -> keras.Model:
    """Builds the embedding of frames, positions, three encoder layers, mean pooling and the logits of the words."""
    inputs = keras.Input((frames, BANDS))
    x = keras.layers.Dense(width)(keras.layers.LayerNormalization()(inputs))
    x = ka.PositionalEncoding(scale=False)(x)
    x = ka.Encoder(3, intermediate_dim=2 * width, num_heads=4, dropout=0.1)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(len(WORDS))(x))


def mean_spectrum(frames: int) -> keras.Model:
    """Builds a network with a hidden layer on the mean of the frames."""
    inputs = keras.Input((frames, BANDS))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(inputs))
    x = keras.layers.Dense(128, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(len(WORDS))(x))


def main(sounds: int = 2000, epochs: int = 15) -> dict[str, list[float]]:
    """Trains both on the same sounds and returns their accuracies on others, one for each level of noise."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    words = random.integers(0, len(WORDS), sounds)
    frames = spectrogram(make_sounds(words, random, (-10, 25)))
    test_words = np.arange(500) % len(WORDS)
    tests = [spectrogram(make_sounds(test_words, random, (noise, noise))) for noise in NOISES]

    accuracy = {}
    print("words right at", ", ".join(f"{noise} dB" for noise in NOISES))
    for name, build in (("mean spectrum", mean_spectrum), ("encoder", build_model)):
        model = build(frames.shape[1])
        rate = keras.optimizers.schedules.CosineDecay(0.002, epochs * -(-sounds // 32))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
        model.fit(frames, words, batch_size=32, epochs=epochs, verbose=0)
        accuracy[name] = [model.evaluate(test, test_words, verbose=0)[1] for test in tests]
        print(f"{name}: " + ", ".join(f"{value:.1%}" for value in accuracy[name]))
    return accuracy


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
