"""Triton functions on content vectors of queries or of tokens, with few or many channels.

Up to FEW_CHANNELS channels are a tuple with one tensor each, `[queries]` or `[tokens]`, and their
products are plain multiply-adds. More channels are one tensor, `[queries, channels]` or
`[channels, tokens]`. Its channels are padded to block_channels, a power of two of at least 16, and
products are matrix products in full float32.
"""

import triton
import triton.language as tl

FEW_CHANNELS = tl.constexpr(4)


@triton.jit
def load_queries(pointers, inside, channels: tl.constexpr, block_channels: tl.constexpr):
    """Load content queries from `pointers` `[queries]` to their starts; 0 unless `inside`."""
    if channels <= FEW_CHANNELS:
        vectors = ()
        for channel in tl.static_range(channels):
            vectors += (tl.load(pointers + channel, mask=inside, other=0.0),)
    else:
        channel = tl.arange(0, block_channels)[None, :]
        mask = inside[:, None] & (channel < channels)
        vectors = tl.load(pointers[:, None] + channel, mask=mask, other=0.0)
    return vectors


@triton.jit
def load_tokens(pointers, plane_size, channels: tl.constexpr, block_channels: tl.constexpr):
    """Load the content of tokens from `pointers` `[tokens]` into the first channel's plane."""
    if channels <= FEW_CHANNELS:
        vectors = ()
        for channel in tl.static_range(channels):
            vectors += (tl.load(pointers + channel * plane_size),)
    else:
        channel = tl.arange(0, block_channels)[:, None]
        address = pointers[None, :] + channel * plane_size
        vectors = tl.load(address, mask=channel < channels, other=0.0)
    return vectors


@triton.jit
def scaled(vectors, factor, channels: tl.constexpr):
    """Multiply the vectors by a number."""
    if channels <= FEW_CHANNELS:
        products = ()
        for channel in tl.static_range(channels):
            products += (vectors[channel] * factor,)
    else:
        products = vectors * factor
    return products


@triton.jit
def add_products(start, queries, tokens, channels: tl.constexpr):
    """Return start + queries · tokens, `[queries, tokens]`."""
    if channels <= FEW_CHANNELS:
        for channel in tl.static_range(channels):
            start = tl.fma(queries[channel][:, None], tokens[channel][None, :], start)
    else:
        start += tl.dot(queries, tokens, input_precision="ieee")
    return start


@triton.jit
def sum_by_four(pairs):
    """Sum four neighbouring tokens, which one thread holds: `[queries, tokens / 4]`."""
    return tl.sum(tl.reshape(pairs, [pairs.shape[0], pairs.shape[1] // 4, 4]), axis=2)


@triton.jit
def no_sums(
    queries: tl.constexpr,
    tokens: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Return zeros for `add_sums`. With few channels, the sum over tokens is still pending."""
    if channels <= FEW_CHANNELS:
        sums = ()
        for _ in tl.static_range(channels):
            sums += (tl.zeros([queries, tokens // 4], tl.float32),)
    else:
        sums = tl.zeros([queries, block_channels], tl.float32)
    return sums


@triton.jit
def add_sums(sums, weights, tokens, channels: tl.constexpr):
    """Add Σ weights tokens over the tokens, for each query."""
    if channels <= FEW_CHANNELS:
        new_sums = ()
        for channel in tl.static_range(channels):
            new_sums += (sums[channel] + sum_by_four(weights * tokens[channel][None, :]),)
    else:
        new_sums = sums + tl.dot(weights, tl.trans(tokens), input_precision="ieee")
    return new_sums


@triton.jit
def store_sums(pointers, sums, inside, channels: tl.constexpr, block_channels: tl.constexpr):
    """Store the sums at `pointers` `[queries]` to the start of each query's, if `inside`."""
    if channels <= FEW_CHANNELS:
        for channel in tl.static_range(channels):
            tl.store(pointers + channel, tl.sum(sums[channel], axis=1), mask=inside)
    else:
        channel = tl.arange(0, block_channels)[None, :]
        mask = inside[:, None] & (channel < channels)
        tl.store(pointers[:, None] + channel, sums, mask=mask)


@triton.jit
def no_grads(
    queries: tl.constexpr,
    tokens: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Return zeros for `add_grads`. With few channels, the sum over queries is still pending."""
    if channels <= FEW_CHANNELS:
        grads = ()
        for _ in tl.static_range(channels):
            grads += (tl.zeros([queries, tokens], tl.float32),)
    else:
        grads = tl.zeros([block_channels, tokens], tl.float32)
    return grads


@triton.jit
def add_grads(grads, weights, queries, channels: tl.constexpr):
    """Add Σ weights queries over the queries, for each token."""
    if channels <= FEW_CHANNELS:
        new_grads = ()
        for channel in tl.static_range(channels):
            new_grads += (tl.fma(weights, queries[channel][:, None], grads[channel]),)
    else:
        new_grads = grads + tl.dot(tl.trans(queries), weights, input_precision="ieee")
    return new_grads


@triton.jit
def store_grads(pointers, grads, scale, channels: tl.constexpr, block_channels: tl.constexpr):
    """Store scale · grads at `pointers` `[tokens]` to the start of each token's gradients."""
    if channels <= FEW_CHANNELS:
        for channel in tl.static_range(channels):
            tl.store(pointers + channel, scale * tl.sum(grads[channel], axis=0))
    else:
        channel = tl.arange(0, block_channels)[:, None]
        tl.store(pointers[None, :] + channel, scale[None, :] * grads, mask=channel < channels)
