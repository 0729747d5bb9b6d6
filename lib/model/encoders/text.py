"""Prompts to tokens: the text around a prompt, padding, and prompts that are too long."""

import torch
from torch import Tensor
from transformers import AutoTokenizer

from lib.errors import InputError

# The reference's, for Florence-2.
INSTRUCTION = (
    "Here's an AI image generated with prompt: {prompt}. \n"
    "Identify unusual or implausible areas in the image and rate the implausibility score, focusing on distorted "
    "objects, distorted human part, unnatural lighting, or illogical spatial relationships.\n"
)
REFERENCE_LENGTH = 1024  # tokens to which the reference pads


def load_tokenizer(source, rows: int, revision: str | None = None):
    """The tokenizer of a checkpoint's folder or hub id, for an encoder with so many rows of word embeddings.

    Raises InputError when its files are missing, it cannot pad, or it gives ids that the encoder has no row for.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    highest = max(tokenizer.get_vocab().values())
    problems = {
        # Without its files transformers makes one that knows no words.
        "it holds no tokenizer (tokenizer.json)": len(tokenizer(INSTRUCTION).input_ids) < 10,
        "its tokenizer has no pad_token": tokenizer.pad_token_id is None,
        f"its tokenizer gives ids up to {highest}, but the encoder has {rows} word embeddings": highest >= rows,
    }
    if problem := next((problem for problem, found in problems.items() if found), ""):
        raise InputError(f"{source}: {problem}; copy tokenizer and config.json from the same checkpoint")
    return tokenizer


class TextEncoder:
    """Prompts to token batches, with the model's text around each prompt.

    Arguments: `max_tokens` that fit beside the image; `padding` "longest" (of the batch) or "max_length", which
    pads to `REFERENCE_LENGTH` tokens and attends to the padding, as the reference did; `template` with `{prompt}`.
    """

    def __init__(self, tokenizer, max_tokens: int, padding: str = "longest", template: str = INSTRUCTION):
        self.tokenizer, self.template, self.padding = tokenizer, template, padding
        self.max_tokens = max_tokens if padding == "longest" else min(REFERENCE_LENGTH, max_tokens)
        self.behind = len(tokenizer(template.partition("{prompt}")[2]).input_ids) - 1  # tokens, without the first, <s>
        [row] = self._rows([""])
        if len(row) > self.max_tokens:
            raise InputError(
                f"input_size: its image tokens leave room for {self.max_tokens} text tokens in this checkpoint, but "
                f"the instruction takes {len(row)}; choose a smaller input_size or input_width"
            )

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """-> input_ids and attention_mask, int64 [B, T]. A prompt that does not fit is cut, the instruction never."""
        # The last tokens are the text behind the prompt; what goes are the prompt's own before them.
        rows = [
            row if len(row) <= self.max_tokens else row[: self.max_tokens - self.behind] + row[-self.behind :]
            for row in self._rows(prompts)
        ]
        length = self.max_tokens if self.padding == "max_length" else max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.full_like(ids, int(self.padding == "max_length"))
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _rows(self, prompts: list[str]) -> list[list[int]]:
        return self.tokenizer([self.template.format(prompt=prompt) for prompt in prompts]).input_ids
