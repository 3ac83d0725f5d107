"""open_clip's tokenizer behind one function."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

CONTEXT_LENGTH = 77


@lru_cache(maxsize=1)
def _tokenizer():
    import open_clip  # slow to import, so only when text is tokenised

    return open_clip.SimpleTokenizer()


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH) -> Tensor:
    """Token ids int64 [len(texts), context_length]: start of text, byte pairs, end of text, zeros.

    A caption that is too long is cut, and its end-of-text token kept. (The released demo's tokenizer drops it, so that such
    a row is pooled at whatever id happens to be the largest.) An empty caption is refused: its embedding would be that
    of nothing at all, and such a pair teaches a model noise.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Captions are strings; number {i} is of type {type(text).__name__}.")
        if not text.strip():
            raise ValueError(
                f"Caption number {i} is empty. Leave such pairs out of a corpus, or give the caption words."
            )
    if context_length < 3:
        raise ValueError(f"A context length of {context_length} has no room for a word between its two end tokens.")
    return _tokenizer()(texts, context_length=context_length)
