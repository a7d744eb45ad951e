"""A small Perceiver AR, its tokens, and its formulas written out."""

import dataclasses
import math

import torch

from perceiver_model.families.autoregressive import PerceiverAR
from perceiver_model.families.autoregressive_config import ARConfig

TINY = ARConfig(
    vocab_size=11,
    max_length=16,
    num_latents=5,
    channels=16,
    num_self_attends=2,
    num_heads=2,
    widening=2,
    dropout=0.0,
)
VARIANTS = {
    "rotary": TINY,
    "rotary-all-gelu": dataclasses.replace(TINY, rotary_fraction=1.0, activation="gelu_tanh"),
    "learned-tied": dataclasses.replace(
        TINY, positions="learned", tied_logits=True, activation="gelu_erf"
    ),
}


def tiny_model(config=TINY, dtype=torch.float64, seed=0):
    """A model with every weight and bias random, so that none can be forgotten unnoticed."""
    torch.manual_seed(seed)
    model = PerceiverAR(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def random_ids(*shape, seed=1):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(rows):
    """Rows of different lengths as ids `[batch, longest]`, padded with an id, and their mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), 3)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = True
    return ids, mask


def plain_logits(model, ids, num_latents):
    """The formulas of one sequence `[length]`, position by position and head by head."""
    config, weights = model.config, model.state_dict()
    width = config.channels // config.num_heads

    def norm(name, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def turned(vector, position):
        if config.positions == "learned":
            return vector
        vector, pairs = vector.clone(), int(width * config.rotary_fraction) // 2
        for pair in range(pairs):
            angle = position * config.max_length ** (-pair / (pairs - 1))
            cosine, sine = (torch.tensor(f(angle)).float().item() for f in (math.cos, math.sin))
            x, y = vector[2 * pair].item(), vector[2 * pair + 1].item()
            vector[2 * pair] = x * cosine - y * sine
            vector[2 * pair + 1] = y * cosine + x * sine
        return vector

    def attend(name, latents, query, key, value, query_positions, key_positions):
        attended = torch.zeros_like(latents)
        for row, position in enumerate(query_positions):
            for head in range(config.num_heads):
                part = slice(head * width, (head + 1) * width)
                asked = turned(query[row, part], position)
                seen = [index for index, other in enumerate(key_positions) if other <= position]
                scores = [asked @ turned(key[i, part], key_positions[i]) for i in seen]
                shares = (torch.stack(scores) / width**0.5).softmax(dim=0)
                attended[row, part] = sum(
                    share * value[index, part] for share, index in zip(shares, seen, strict=True)
                )
        latents = latents + linear(f"{name}.output", attended)
        hidden = linear(f"{name}.mlp.expand", norm(f"{name}.mlp_norm", latents))
        if config.activation == "squared_relu":
            hidden = hidden.clamp(min=0) ** 2
        else:
            approximate = {"gelu_tanh": "tanh", "gelu_erf": "none"}[config.activation]
            hidden = torch.nn.functional.gelu(hidden, approximate=approximate)
        return latents + linear(f"{name}.mlp.contract", hidden)

    positions = list(range(len(ids)))
    tokens = weights["token_embedding.weight"][ids]
    if config.positions == "learned":
        tokens = tokens + weights["position_embedding.weight"][: len(ids)]
    late = positions[-num_latents:]
    query = linear("cross_attend.query", norm("cross_attend.query_norm", tokens[late]))
    inputs = norm("cross_attend.input_norm", tokens)
    key, value = linear("cross_attend.key_value", inputs).chunk(2, dim=-1)
    latents = attend("cross_attend", tokens[late], query, key, value, late, positions)
    for index in range(config.num_self_attends):
        name = f"self_attends.{index}"
        normed = norm(f"{name}.attention_norm", latents)
        parts = linear(f"{name}.query_key_value", normed).chunk(3, dim=-1)
        latents = attend(name, latents, *parts, late, late)
    normed = norm("output_norm", latents)
    if config.tied_logits:
        return normed @ weights["token_embedding.weight"].T / config.channels**0.5
    return linear("output", normed)
