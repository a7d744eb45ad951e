"""The forward FLOPs of a Perceiver's parts, without torch. `flops.py` adds them up for each model.

Only matrix products count, at 2 FLOPs per multiply-add, for the plain algorithm and one sample. The
papers report the same count. Faster paths to the same result use fewer FLOPs.
"""

from collections.abc import Sequence

from perceiver_model.config import DecoderConfig, EncoderConfig


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """Return the FLOPs of `[rows, inner]` times `[inner, columns]`, such as a linear layer.

    Args:
        rows: The number of rows, or the number of tokens of a linear layer.
        inner: The inner dimension, or the input channels of a linear layer.
        columns: The number of columns, or the output channels of a linear layer.
    """
    return 2 * rows * inner * columns


def mlp_flops(tokens: int, channels: int, widening: int) -> int:
    """Return the FLOPs of an MLP with one hidden layer.

    Args:
        tokens: The number of tokens.
        channels: The number of channels of a token.
        widening: The hidden width, in multiples of `channels`.
    """
    return 2 * matmul_flops(tokens, channels, widening * channels)


def attention_flops(queries: int, keys: int, qk_channels: int, value_channels: int) -> int:
    """Return the FLOPs of the scores and of the weighted sum.

    Args:
        queries: The number of queries.
        keys: The number of keys.
        qk_channels: The width of queries and keys over all heads.
        value_channels: The width of values over all heads.
    """
    scores = matmul_flops(queries, qk_channels, keys)
    return scores + matmul_flops(queries, keys, value_channels)


def cross_attend_flops(
    *,
    queries: int,
    query_channels: int,
    tokens: int,
    input_channels: int,
    qk_channels: int | None = None,
    value_channels: int | None = None,
    widening: int = 1,
) -> int:
    """Return the FLOPs of a cross-attend and its MLP.

    Args:
        queries: The number of queries.
        query_channels: The number of channels of a query.
        tokens: The number of tokens of the input array.
        input_channels: The number of channels of a token.
        qk_channels: The width of queries and keys over all heads. None means `input_channels`.
        value_channels: The width of values over all heads. None means `qk_channels`.
        widening: The hidden width of the MLP, in multiples of `query_channels`.
    """
    qk_channels = qk_channels or input_channels
    value_channels = value_channels or qk_channels
    return (
        matmul_flops(queries, query_channels, qk_channels)
        + matmul_flops(tokens, input_channels, qk_channels + value_channels)
        + attention_flops(queries, tokens, qk_channels, value_channels)
        + matmul_flops(queries, value_channels, query_channels)
        + mlp_flops(queries, query_channels, widening)
    )


def self_attend_flops(
    *,
    tokens: int,
    channels: int,
    qk_channels: int | None = None,
    value_channels: int | None = None,
    widening: int = 1,
) -> int:
    """Return the FLOPs of a self-attend and its MLP.

    Args:
        tokens: The number of tokens.
        channels: The number of channels of a token.
        qk_channels: The width of queries and keys over all heads. None means `channels`.
        value_channels: The width of values over all heads. None means `qk_channels`.
        widening: The hidden width of the MLP, in multiples of `channels`.
    """
    return cross_attend_flops(
        queries=tokens,
        query_channels=channels,
        tokens=tokens,
        input_channels=channels,
        qk_channels=qk_channels,
        value_channels=value_channels,
        widening=widening,
    )


def encoder_flops(
    config: EncoderConfig, *, tokens: int | Sequence[int], input_channels: int
) -> int:
    """Return the FLOPs of all cross-attends and self-attends, whether or not they share weights.

    Args:
        config: The configuration of the encoder.
        tokens: The number of tokens of the input array, or of each of several arrays that the
            cross-attends read in turn.
        input_channels: The number of channels of a token.
    """
    arrays = [tokens] if isinstance(tokens, int) else tokens
    cross_attends = sum(
        cross_attend_flops(
            queries=config.num_latents,
            query_channels=config.latent_dim,
            tokens=arrays[index % len(arrays)],
            input_channels=input_channels,
            qk_channels=config.cross_channels,
            value_channels=config.cross_value_channels,
            widening=config.cross_widening,
        )
        for index in range(config.num_cross_attends)
    )
    num_self_attends = config.num_blocks * config.num_self_attends
    return cross_attends + num_self_attends * latent_self_attend_flops(config)


def latent_self_attend_flops(config: EncoderConfig) -> int:
    """Return the FLOPs of one self-attend of an encoder's latents."""
    return self_attend_flops(
        tokens=config.num_latents,
        channels=config.latent_dim,
        qk_channels=config.self_channels,
        value_channels=config.self_value_channels,
        widening=config.self_widening,
    )


def decoder_flops(
    config: DecoderConfig,
    *,
    queries: int,
    query_channels: int,
    num_latents: int,
    latent_dim: int,
    output_channels: int | None,
) -> int:
    """Return the FLOPs of a `PerceiverDecoder`.

    Args:
        config: The configuration of the decoder.
        queries: The number of output queries.
        query_channels: The number of channels of a query.
        num_latents: The number of latents.
        latent_dim: The number of channels of a latent.
        output_channels: The number of channels of the result. None means no linear layer.
    """
    cross_attend = cross_attend_flops(
        queries=queries,
        query_channels=query_channels,
        tokens=num_latents,
        input_channels=latent_dim,
        qk_channels=config.qk_channels,
        value_channels=config.value_channels,
        widening=config.widening,
    )
    return cross_attend + matmul_flops(queries, query_channels, output_channels or 0)
