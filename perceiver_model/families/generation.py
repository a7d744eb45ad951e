"""Generation with a Perceiver AR, token by token, from cached keys and values.

When a token is appended, keys and values of earlier tokens stay as they are, for all is causal. But
which tokens are latents may not change: a latent sees earlier latents, so what it holds depends on
where they begin. So the latents begin at a fixed column, and grow in number with each token. When
they are `num_latents`, they begin anew at a later column, as `refill_latents` latents: the released
code's way, which takes half. Their states are computed again, from the cached keys and values of
the cross-attend, which do not depend on which tokens are latents.
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

    At every moment, up to rounding, `logits` equals
    `model(token_ids, mask, num_latents=num_latents)[:, -1]` of the decoder's own `token_ids`,
    `mask` and `num_latents`.

    Args:
        model: in evaluation mode.
        token_ids: integers `[batch, length]`, length from 1 to `max_length`.
        mask: bool `[batch, length]`, True for tokens and False for padding on the left; None for
            tokens only.
        refill_latents: with how many latents a context starts, and continues when they have grown
            to the configuration's `num_latents`; None is half of them. Many see more of the past
            and are dear: `num_latents` computes all of them for each token, `model(token_ids)`
            exactly.
        sliding: whether a context of more than `max_length` columns forgets the oldest, as few as
            let the latents grow to `num_latents`, and is then read anew; otherwise it is refused.
        capacity: columns to make room for; None is `max_length`.

    Raises ValueError for a model in training mode, and for tokens, masks or numbers that don't fit.
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
                f"refill_latents = {refill_latents}: must be from 1 to num_latents = "
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
        """How many of the last columns are latents."""
        return self._cache.self_attends[0].length

    def append(self, tokens: torch.Tensor) -> None:
        """Adds one token to each row, integers `[batch]`; raises ValueError where none fits."""
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
        """Cuts the context to its last columns; their positions change, so do all keys."""
        self.token_ids = self.token_ids[:, -keep:]
        self.mask = None if self.mask is None else self.mask[:, -keep:]
        self._cache.cross_attend.clear()

    def _refill(self) -> None:
        for cache in self._cache.self_attends:
            cache.clear()
        self._read(min(self.refill_latents, self.token_ids.shape[1]))

    @torch.no_grad()
    def _read(self, num_queries: int) -> None:
        """Makes the last columns latents and caches what is new."""
        positions = token_positions(self.token_ids, self.mask)
        start = self._cache.cross_attend.length
        inputs = self.model.embed(self.token_ids[:, start:], positions[:, start:])
        queries = self.model.embed(self.token_ids[:, -num_queries:], positions[:, -num_queries:])
        latents = self.model.latents(queries, inputs, self.mask, self._cache)
        self.logits = self.model.logits(latents[:, -1:]).squeeze(1)


def _left_padding(mask: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None if there is no padding; raises ValueError unless it is on the left."""
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
    """One token id for each row of logits `[batch, vocab_size]`: int64 `[batch]`.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keeps the k most probable tokens.
        top_p: keeps the fewest most probable tokens that together have at least this probability,
            after temperature and top_k.

    Raises ValueError for numbers out of range.
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
        raise ValueError(f"temperature = {temperature}: must be at least 0 and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k = {top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: must be above 0 and at most 1")


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
    """The prompts and their continuations, `[batch, length + new]` of the prompts' dtype.

    Args:
        prompt_ids: integers `[batch, length]`, length from 1 to `max_length`.
        mask: bool `[batch, length]`, True for tokens and False for padding on the left.
        temperature, top_k, top_p, generator: as of `sample_tokens`; on one device, with one torch
            version, the same generator state gives the same tokens.
        eos_id: ends its row, which is filled with `pad_id` (None is `eos_id`) from then on; when
            all rows have ended, so does generation, after fewer than `max_new_tokens`.
        refill_latents, sliding: as of `CachedDecoder`.

    Raises ValueError for a model in training mode, for arguments that don't fit, and unless
    `sliding`, for more tokens than the model's `max_length`.
    """
    _check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
    max_length = model.config.max_length
    columns = prompt_ids.shape[-1] + max_new_tokens - 1  # the last token is not read
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
