"""Trains a language model on the lines of a text file, then continues a prompt, piece by piece.

Run it: python examples/language_model.py train.en "How do"
"""

import sys
from collections.abc import Iterator

import keras
import tensorflow as tf

import keras_attention as ka
from keras_attention.decoding.logits_processors import keep_top_p
from keras_attention.decoding.sampling import sample
from keras_attention.decoding.streaming import stream_tokens

BOS, EOS = ka.text.BOS_ID, ka.text.EOS_ID
LENGTH = 64  # maximum number of tokens of a line


def train(tokenizer: ka.text.SubwordTokenizer, lines: list[str], epochs: int) -> ka.CausalTransformer:
    """Trains a model to predict each piece of a line, and its end, from the pieces before it."""
    rows = [[BOS, *pieces, EOS] for pieces in tokenizer.encode(lines)]
    ids = keras.utils.pad_sequences(rows, maxlen=LENGTH + 1, padding="post", truncating="post")  # (lines, T + 1)
    model = ka.CausalTransformer.from_preset("tiny", vocabulary_size=tokenizer.vocabulary_size)
    model.compile(
        keras.optimizers.Adam(0.002), loss=ka.training.MaskedCrossEntropy(), metrics=[ka.training.Perplexity()]
    )
    model.fit(ids[:, :-1], ids[:, 1:], batch_size=32, epochs=epochs, verbose=2)
    return model


def continue_prompt(
    model: ka.CausalTransformer, tokenizer: ka.text.SubwordTokenizer, prompt: str, seed: int = 1
) -> Iterator[str]:
    """Yields each piece as soon as it is sampled, from the likeliest pieces that make up 90%."""
    ids = tf.constant([[BOS, *tokenizer.encode([prompt])[0]]])  # (1, P)
    _, cache = model.decode_step(ids[:, :-1], model.init_cache(1))

    def step(ids, cache):
        logits, cache = model.decode_step(ids[:, None], cache)
        return logits[:, 0], cache

    def choose(logits, written):
        return sample(keep_top_p(logits, 0.9), [seed, 0], written.shape[1])

    for token in stream_tokens(step, cache, ids[:, -1], max_length=LENGTH, eos_id=EOS, choose=choose):
        if token.ids[0] != EOS:
            yield tokenizer.pieces(token.ids.tolist())[0].replace("▁", " ")


def main(file: str, prompt: str, *, vocabulary_size: int = 2000, epochs: int = 10) -> str:
    """Trains on a file, prints a line that starts with the prompt, and returns it."""
    keras.utils.set_random_seed(1)
    tokenizer = ka.text.SubwordTokenizer.train(file, vocabulary_size)
    model = train(tokenizer, list(ka.text.read_lines(file)), epochs)
    line = prompt
    print(prompt, end="")
    for piece in continue_prompt(model, tokenizer, prompt):
        print(piece, end="", flush=True)
        line += piece
    print()
    return line


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
