"""Generate with a Perceiver AR, token by token, from cached keys and values.

When a token is appended, the keys and values of earlier tokens do not change, because the model is
causal. But the set of latents must not change either: a latent sees earlier latents, so its value
depends on where the latents start. The latents therefore start at a fixed column, and each token
adds one. When there are `num_latents`, they start again at a later column, with `refill_latents`
latents. The released code does this with half of them. The states of the latents are then computed
again, from the cached keys and values of the cross-attend, which do not depend on the set of
latents.
"""

import torch

from perceiver_model.families.autoregressive import (
    LatentCache,
    PerceiverAR,
    check_tokens,
    token_positions,
)
from perceiver_model.families.causal_attend import KeyValueCache


class CachedDecoder:
    """A context that grows token by token, and the logits of its next token.

    At every moment, `logits` equals `model(token_ids, mask, num_latents=num_latents)[:, -1]` up to
    rounding, for the decoder's own `token_ids`, `mask` and `num_latents`.

    Args:
        model: The model, in evaluation mode.
        token_ids: The token ids, integers `[batch, length]`, with a length from 1 to `max_length`.
        mask: bool `[batch, length]`, True for tokens and False for padding on the left. None means
            that there is no padding.
        refill_latents: The number of latents at the start of a context, and each time the latents
            have grown to the configuration's `num_latents`. None means half of these. More latents
            see more of the past and cost more: with `num_latents`, all latents are computed for
            each token, exactly as `model(token_ids)` does.
        sliding: Whether a context of more than `max_length` columns drops its oldest columns and is
            then read again. It drops only enough for the latents to grow to `num_latents`. If
            False, such a context is refused.
        capacity: The number of columns to allocate. None means `max_length`.

    Raises:
        ValueError: If the model is in training mode, or the tokens, the mask or a number do not
            fit.
    """

    def __init__(
        self,
        model: PerceiverAR,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        refill_latents: int | None = None,
        sliding: bool = False,
        capacity: int | None = None,
    ) -> None:
        config = model.config
        if model.training:
            raise ValueError("model: in training mode; call model.eval() to generate")
        check_tokens(token_ids, mask, max_length=config.max_length)
        if refill_latents is None:
            refill_latents = max(1, config.num_latents // 2)
        if not 1 <= refill_latents <= config.num_latents:
            raise ValueError(
                f"refill_latents is {refill_latents}; must be from 1 to num_latents = "
                f"{config.num_latents}"
            )
        if mask is not None:
            mask = _left_padding(mask)
        self.model = model
        self.token_ids = token_ids
        self.mask = mask
        self.refill_latents = refill_latents
        self.sliding = sliding
        self._cache = LatentCache(
            KeyValueCache(capacity or config.max_length),
            tuple(KeyValueCache(config.num_latents) for _ in model.self_attends),
        )
        self._refill()

    @property
    def num_latents(self) -> int:
        """The number of latents, which are the last columns."""
        return self._cache.self_attends[0].length

    def append(self, tokens: torch.Tensor) -> None:
        """Append one token to each row.

        Args:
            tokens: The token ids, integers `[batch]`.

        Raises:
            ValueError: If the context is full and does not slide.
        """
        config, batch = self.model.config, self.token_ids.shape[0]
        if tokens.shape != (batch,):
            raise ValueError(f"tokens of shape {list(tokens.shape)}: expected [{batch}]")
        full = self.token_ids.shape[1] == config.max_length
        if full and not self.sliding:
            raise ValueError(f"the context has max_length = {config.max_length} columns")
        self.token_ids = torch.cat([self.token_ids, tokens.unsqueeze(1).to(self.token_ids)], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(batch, 1)], dim=1)
        if full:
            self._forget(config.max_length - (config.num_latents - self.refill_latents))
        if full or self.num_latents == config.num_latents:
            self._refill()
        else:
            self._read(1)

    def _forget(self, keep: int) -> None:
        """Cut the context to its last columns. Their positions change, and so do all keys."""
        self.token_ids = self.token_ids[:, -keep:]
        self.mask = None if self.mask is None else self.mask[:, -keep:]
        self._cache.cross_attend.clear()

    def _refill(self) -> None:
        """Start the latents again and compute them."""
        for cache in self._cache.self_attends:
            cache.clear()
        self._read(min(self.refill_latents, self.token_ids.shape[1]))

    @torch.no_grad()
    def _read(self, num_queries: int) -> None:
        """Turn the last columns into latents, and cache the new keys and values."""
        positions = token_positions(self.token_ids, self.mask)
        start = self._cache.cross_attend.length
        inputs = self.model.embed(self.token_ids[:, start:], positions[:, start:])
        queries = self.model.embed(self.token_ids[:, -num_queries:], positions[:, -num_queries:])
        latents = self.model.latents(queries, inputs, self.mask, self._cache)
        self.logits = self.model.logits(latents[:, -1:]).squeeze(1)


def _left_padding(mask: torch.Tensor) -> torch.Tensor | None:
    """Return the mask, or None if there is no padding.

    Raises:
        ValueError: If there is padding that is not on the left.
    """
    if not mask[:, -1].all() or (mask[:, :-1] & ~mask[:, 1:]).any():
        raise ValueError("mask: to generate, rows must be padded on the left and hold a token")
    return None if mask.all() else mask


def sample_tokens(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample one token id per row of logits.

    Args:
        logits: The logits `[batch, vocab_size]`.
        temperature: The number by which the logits are divided. 0 takes the most probable token.
        top_k: Keep only the k most probable tokens.
        top_p: Keep the smallest set of most probable tokens whose total probability is at least
            this, after temperature and top_k.
        generator: The random generator.

    Returns:
        The token ids, int64 `[batch]`.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered, token_ids = ordered[:, :top_k], token_ids[:, :top_k]
    probabilities = ((ordered - ordered[:, :1]) / temperature).softmax(dim=-1)
    if top_p is not None and top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)
    return token_ids.gather(1, drawn).squeeze(1)


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; must be at least 0 and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; must be above 0 and at most 1")


def generate(
    model: PerceiverAR,
    prompt_ids: torch.Tensor,
    max_new_tokens: int,
    *,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
    refill_latents: int | None = None,
    sliding: bool = False,
) -> torch.Tensor:
    """Return the prompts and their continuations, `[batch, length + new]`, in the prompts' dtype.

    The same generator state gives the same tokens on one device with one version of torch.

    Args:
        model: The model, in evaluation mode.
        prompt_ids: The token ids, integers `[batch, length]`, with a length from 1 to `max_length`.
        max_new_tokens: The largest number of tokens to generate.
        mask: bool `[batch, length]`, True for tokens and False for padding on the left.
        temperature: As in `sample_tokens`.
        top_k: As in `sample_tokens`.
        top_p: As in `sample_tokens`.
        generator: As in `sample_tokens`.
        eos_id: The token id that ends a row. The row is then filled with `pad_id`. When all rows
            have ended, generation stops before `max_new_tokens`.
        pad_id: The token id that fills a finished row. None means `eos_id`.
        refill_latents: As in `CachedDecoder`.
        sliding: As in `CachedDecoder`.

    Raises:
        ValueError: If the model is in training mode, an argument does not fit, or without
            `sliding`, the tokens exceed the model's `max_length`.
    """
    _check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; must be at least 1")
    max_length = model.config.max_length
    columns = prompt_ids.shape[-1] + max_new_tokens - 1  # The last token is not read.
    if columns > max_length and not sliding:
        raise ValueError(
            f"prompts of {prompt_ids.shape[-1]} columns and max_new_tokens = {max_new_tokens}: "
            f"exceed max_length = {max_length}; shorten them, or let the context slide"
        )
    decoder = CachedDecoder(
        model,
        prompt_ids,
        mask,
        refill_latents=refill_latents,
        sliding=sliding,
        capacity=min(columns, max_length),
    )
    finished = torch.zeros(prompt_ids.shape[0], dtype=torch.bool, device=prompt_ids.device)
    generated = [prompt_ids]
    for step in range(max_new_tokens):
        tokens = sample_tokens(
            decoder.logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        if eos_id is not None:
            tokens = tokens.masked_fill(finished, eos_id if pad_id is None else pad_id)
            finished = finished | (tokens == eos_id)
        generated.append(tokens.unsqueeze(1).to(prompt_ids))
        if step + 1 == max_new_tokens or (eos_id is not None and finished.all()):
            break
        decoder.append(tokens)
    return torch.cat(generated, dim=1)
