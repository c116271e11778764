"""Answers questions on made stories with two supporting facts: a memory network next to the Transformer's encoder.

Run it: python examples/question_answering.py

"mary took the ball", …, "mary went to the garden": where is the ball? The answer needs both sentences, the second of
which follows from the first, and only Mary's last place counts (task 2 of bAbI, Weston et al. 2015, without
dropping).
"""

import sys
from itertools import pairwise
from random import Random
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_attention as ka

PEOPLE = ("mary", "john", "anna", "paul")
PLACES = ("kitchen", "garden", "office", "hall", "cellar", "attic")
THINGS = ("ball", "book", "lamp", "apple")
VOCABULARY = ["", *PEOPLE, *PLACES, *THINGS, "went", "took", "to", "the", "where", "is"]
FACTS, WORDS = 10, 5  # sentences of a story, words of a sentence
SMOKE = {"stories": 8000, "epochs": 5}


def make_stories(count: int, two_facts: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes stories, ids of their sentences with the question last (count, 11, 5), the answers, and guesses (count,).

    A part `two_facts` of the questions needs two sentences; the others ask for a person and need one.
    """
    random = Random(seed)
    stories, answers, guesses = [], [], []
    while len(stories) < count:
        where: dict[str, str] = {}
        owner: dict[str, str] = {}
        facts = []
        for _ in range(FACTS):
            person = random.choice(PEOPLE)
            free = [thing for thing in THINGS if thing not in owner]
            if free and random.random() < 0.3:
                owner[thing := random.choice(free)] = person
                facts.append(f"{person} took the {thing}")
            else:
                where[person] = random.choice(PLACES)
                facts.append(f"{person} went to the {where[person]}")
        things = [thing for thing in owner if owner[thing] in where]
        if things:
            asked = random.choice(things if random.random() < two_facts else list(where))
            stories.append([*facts, f"where is {'the ' * (asked in owner)}{asked}"])
            answers.append(PLACES.index(where[owner.get(asked, asked)]))
            guesses.append(PLACES.index([fact for fact in facts if "went" in fact][-1].split()[-1]))
    ids = [[[VOCABULARY.index(word) for word in sentence.split()] for sentence in story] for story in stories]
    padded = [[row + [0] * (WORDS - len(row)) for row in story] for story in ids]
    return np.array(padded), np.array(answers), np.array(guesses)


@keras.saving.register_keras_serializable("examples")
class SentenceEmbedding(keras.layers.Layer):
    """m_i = Σ_j l_j ∘ A x_ij + T(i): the words of a sentence, weighted by their position in it, and its position.

    Source: Sukhbaatar et al. 2015, section 4.1, position encoding and temporal encoding.
    """

    def __init__(self, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.embedding = ka.TokenEmbedding(len(VOCABULARY), width)
        self.position = ka.LearnedPositionalEncoding(FACTS + 1, scale=False)
        word, column = np.arange(1, WORDS + 1)[:, None] / WORDS, np.arange(1, width + 1) / width
        self.weights_of_words = ((1 - word) - column * (1 - 2 * word)).astype("float32")  # (words, M)

    def call(self, ids: Any) -> Any:
        words = self.embedding(ids) * ops.cast(ids != 0, "float32")[..., None]  # (B, sentences, words, M)
        return self.position(ops.sum(words * self.weights_of_words, axis=2))  # (B, sentences, M)


class Hop(keras.layers.Layer):
    """One hop through the memories: p = softmax(uᵀm), o = Σ p c, and u + o and p are returned.

    Source: Sukhbaatar et al. 2015, section 2.1.
    """

    def call(self, u: Any, m: Any, c: Any) -> Any:
        query = u * u.shape[-1] ** 0.5  # undoes the Transformer's scale 1/√M
        o, p = ka.ops.dot_product_attention(query[:, None], m[:, None], c[:, None])  # one head
        return u + o[:, 0], p[:, 0]  # (B, 1, M), (B, 1, facts)


def memory_network(hops: int = 3, width: int = 48) -> keras.Model:
    """Builds an end-to-end memory network, whose output memories of a hop are the input memories of the next.

    Source: Sukhbaatar et al. 2015, section 2.2, adjacent weight tying.
    """
    ids = keras.Input((FACTS + 1, WORDS), dtype="int32")
    memories = [SentenceEmbedding(width)(ids) for _ in range(hops + 1)]  # (B, facts + 1, M)
    u = memories[0][:, -1:]  # the question
    for m, c in pairwise(memories):
        u, _ = Hop()(u, m[:, :-1], c[:, :-1])
    return keras.Model(ids, keras.layers.Dense(len(PLACES))(u[:, 0]))


def encoder(num_layers: int = 3, width: int = 48) -> keras.Model:
    """Builds the encoder over the same embeddings of sentences; the answer is at the position of the question."""
    ids = keras.Input((FACTS + 1, WORDS), dtype="int32")
    x = ka.Encoder(num_layers, intermediate_dim=2 * width, num_heads=4)(SentenceEmbedding(width)(ids))
    return keras.Model(ids, keras.layers.Dense(len(PLACES))(x[:, -1]))


def show(model: keras.Model, story: np.ndarray) -> None:
    """Prints a story with the attention of each hop to its sentences."""
    attention = keras.Model(model.input, [layer.output[1] for layer in model.layers if isinstance(layer, Hop)])
    hops = np.concatenate(attention.predict(story[None], verbose=0), axis=1)[0]  # (hops, facts)
    print("\nattention of the memory network, hop by hop")
    for words, weights in zip(story[:-1], hops.T, strict=True):
        print(" ".join(f"{weight:4.2f}" for weight in weights), " ", " ".join(VOCABULARY[word] for word in words))
    question = " ".join(VOCABULARY[word] for word in story[-1])
    print(f"{question.strip()}? {PLACES[model.predict(story[None], verbose=0).argmax()]}")


def main(stories: int = 8000, epochs: int = 16) -> dict[str, float]:
    """Trains both on the same stories and returns their accuracies on others."""
    keras.utils.set_random_seed(1)
    ids, answers, _ = make_stories(stories, 0.5, seed=1)
    test_ids, test_answers, guesses = make_stories(1000, 1.0, seed=2)
    accuracy = {"the last place that is named": float((guesses == test_answers).mean())}
    models = {"memory network": memory_network(), "encoder": encoder()}
    for name, model in models.items():
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, epochs * -(-stories // 64), warmup_target=0.003, warmup_steps=100
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
        model.fit(ids, answers, batch_size=64, epochs=epochs, verbose=2)
        accuracy[name] = model.evaluate(test_ids, test_answers, verbose=0)[1]
    for name, value in accuracy.items():
        print(f"test accuracy of {name}: {value:.1%}")
    show(models["memory network"], test_ids[0])
    return accuracy


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
