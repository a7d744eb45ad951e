"""Small random Perceivers of transformers, the same as ours, and inputs of both."""

import torch
from transformers import PerceiverConfig
from transformers.models.perceiver import modeling_perceiver

from perceiver_model.deepmind import from_transformers_state
from perceiver_model.deepmind.imagenet import MEAN, STD

FOURIER, LEARNED, CONV, LANGUAGE, TEXT = (
    "PerceiverForImageClassificationFourier",
    "PerceiverForImageClassificationLearned",
    "PerceiverForImageClassificationConvProcessing",
    "PerceiverForMaskedLM",
    "PerceiverForSequenceClassification",
)
SMALL = {
    "num_latents": 5,
    "d_latents": 16,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "self_attention_widening_factor": 2,
    "cross_attention_widening_factor": 3,
    "num_labels": 7,
}
# `multimodal_models.ENCODER`, in the words of transformers.
SMALL_ENCODER = {
    "num_latents": 8,
    "d_latents": 32,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}
WIDTHS = {"qk_channels": 8, "v_channels": 16, "num_cross_attention_heads": 4}
WORDS = {"d_model": 24, "max_position_embeddings": 20, "vocab_size": 50}
# Each case: transformers' class, its settings, and the images' (height, width) or None for text.
CASES = {
    "fourier": (FOURIER, SMALL, (14, 11)),
    "fourier-shaped-as-latents": (
        FOURIER, SMALL | {"cross_attention_shape_for_attention": "q"}, (9, 9),
    ),
    "learned": (LEARNED, SMALL | {"image_size": 6}, (6, 6)),
    "learned-tanh": (LEARNED, SMALL | {"image_size": 5, "hidden_act": "gelu_new"}, (5, 5)),
    "conv": (CONV, SMALL, (30, 23)),
    "conv-narrow-queries": (CONV, SMALL | WIDTHS, (16, 16)),
    "language": (LANGUAGE, SMALL | WIDTHS | WORDS, None),
    "language-unshaped": (LANGUAGE, SMALL | WORDS | {"num_blocks": 1}, None),
    "text": (TEXT, SMALL | WIDTHS | WORDS, None),
}  # fmt: skip


def random_transformers(case, **settings):
    """A model of transformers in which every tensor counts: none is 0, 1 or small."""
    name, small, _ = CASES[case]
    model = getattr(modeling_perceiver, name)(PerceiverConfig(**small | settings)).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var"):
            tensor.copy_(0.5 + noise.square())
        elif key.endswith("num_batches_tracked"):
            tensor.fill_(11)
        elif "embeddings" in key or tensor.ndim == 1:
            tensor.copy_((0.5 if tensor.ndim == 1 else 0.0) + 0.5 * noise)
        else:
            tensor.copy_(1.5 * noise * tensor[0].numel() ** -0.5)
    return model


def ours_of(theirs, case, **options):
    options = {"image_size": CASES[case][2]} | options
    return from_transformers_state(theirs.state_dict(), theirs.config.to_dict(), **options)


def inputs_of(case, dtype=torch.float32):
    """What transformers' model reads, and what ours reads: the same, by other conventions."""
    generator = torch.Generator().manual_seed(1)
    _, settings, size = CASES[case]
    if size is None:
        ids = torch.randint(0, settings["vocab_size"], (3, 13), generator=generator)
        return ids, ids
    pixels = torch.randn(3, 3, *size, generator=generator, dtype=dtype)
    images = pixels.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return pixels, images


@torch.no_grad()
def logits_of(theirs, inputs, **keywords):
    """transformers' logits, of as many places as there are ids."""
    logits = theirs(inputs, **keywords).logits
    return logits[:, : inputs.shape[1]] if logits.ndim == 3 else logits


def assert_alike(ours, theirs):
    """Equal to 1e-5, absolute, and to as much of the largest logit.

    Large logits may differ by a millionth of themselves: processors add in another order.
    """
    atol = 1e-5 * min(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=atol)


def randomised(model, gain=1.5):
    """Weights as large as trained ones, so that what differs shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
        torch.nn.init.normal_(parameter, std=gain * fan_in**-0.5, generator=generator)
    return model.eval()
