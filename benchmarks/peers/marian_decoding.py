"""Hugging Face's `MarianMTModel`, decoding ids through torch, with its caches."""

import torch
from transformers import MarianConfig, MarianMTModel

from benchmarks.peers.rows import DecodedRows
from benchmarks.tools.sentences import PAD
from benchmarks.tools.workers import Work, serve

BEGIN, END = 2, 3


class Marian:
    """The side."""

    def __init__(self, task: DecodedRows):
        torch.manual_seed(1)
        layers = {f"{stack}_layers": task.num_layers for stack in ("encoder", "decoder")}
        layers |= {f"{stack}_ffn_dim": task.intermediate_dim for stack in ("encoder", "decoder")}
        layers |= {f"{stack}_attention_heads": task.num_heads for stack in ("encoder", "decoder")}
        config = MarianConfig(
            vocab_size=task.vocabulary_size, d_model=task.hidden_dim, activation_function="relu", scale_embedding=True,
            pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=BEGIN, forced_eos_token_id=None,
            max_position_embeddings=512, **layers,
        )  # fmt: skip
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.task, self.model = task, MarianMTModel(config).to(device, torch.bfloat16).eval()
        self.sources = torch.from_numpy(task.sources()).long().to(device)

    def search(self, beam: int) -> Work:
        """Exactly as many tokens as the task says."""
        count = self.task.tokens_out
        options = {"num_beams": beam, "do_sample": False, "min_new_tokens": count, "max_new_tokens": count}
        mask = torch.ones_like(self.sources)

        def generate() -> list[int]:
            with torch.inference_mode():
                ids = self.model.generate(self.sources, attention_mask=mask, **options)
            return list(ids[:, 1:].cpu().shape)  # without the token that begins a sentence

        return Work(generate, lambda shape: shape)


if __name__ == "__main__":
    serve(lambda task: Marian(DecodedRows(**task)))
