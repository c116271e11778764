"""Trains a translator on two text files and exports it as a SavedModel.

Run it: python examples/train_translator.py train.en train.de saved_models/en-de
"""

import sys

import keras

import keras_attention as ka


def main(source: str, target: str, folder: str, *, epochs: int = 10) -> ka.Transformer:
    """Trains on two files with one sentence per line and exports the model for TF Serving."""
    corpus = ka.text.ParallelCorpus(source, target)
    size, subwords = ka.text.recommended_vocabulary_size(corpus.pairs), ka.training.recommended_subword_dropout(epochs)
    tokenizer = ka.text.SubwordTokenizer.train([source, target], vocabulary_size=size)
    data = corpus.batches(tokenizer, tokens_per_batch=2048, seed=1, subword_dropout=subwords)
    dropout = ka.training.recommended_dropout(epochs, subword_dropout=subwords)
    model = ka.Transformer.from_preset("small", vocabulary_size=tokenizer.vocabulary_size, dropout=dropout)
    model.compile(
        ka.training.preset_optimizer("small", model.config, total_steps=epochs * len(data), epochs=epochs),
        loss=ka.training.MaskedCrossEntropy(label_smoothing=0.1),
        metrics=[ka.training.MaskedAccuracy(), ka.training.Perplexity()],
    )
    callbacks = [ka.training.ProgressLine(), keras.callbacks.TensorBoard("logs")]
    model.fit(data, epochs=epochs, shuffle=False, callbacks=callbacks)
    translator = ka.serving.Translator(model, tokenizer, beam_size=4, length_penalty=0.6)
    print(translator(["How are you?"]))
    print(ka.serving.export(translator, folder))
    return model


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
