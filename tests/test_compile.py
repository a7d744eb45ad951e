"""torch.compile takes a whole model as one graph, on every path, and changes nothing."""

import dataclasses
import shutil

import pytest
import torch
from small_presets import example, example_mask, small_preset

from perceiver_model.adapters.configs import (
    ImageInput,
    PixelsConfig,
    TextInput,
    TokenEmbeddingConfig,
)
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.training.compiled import compiled

CONFIG = ClassifierConfig(
    input=ImageInput(height=6, width=5, channels=2),
    adapter=PixelsConfig(),
    positions=FourierConfig(num_bands=3),
    encoder=EncoderConfig(
        num_latents=4,
        latent_dim=16,
        num_blocks=1,
        num_cross_attends=2,
        cross_attend_layout="first",
        num_self_attends=1,
        num_self_heads=2,
        share_cross_attends="all",
        latent_init_std=1.0,
    ),
    num_classes=3,
)
PATHS = ["reference", "fused", "factored", "separable"]


def classifier(path="auto", config=CONFIG):
    torch.manual_seed(0)
    model = PerceiverClassifier(config)
    set_attention_path(model, path)
    return model


def batch(size=3, masked=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(size, 6, 5, 2, generator=generator)
    mask = torch.rand(size, 6, 5, generator=generator) < 0.7
    mask[0] = False
    return images, mask if masked else None


def result_and_gradients(model, forward, *inputs, autocast=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = forward(*inputs)
    if isinstance(result, tuple):
        result, _ = result
    result.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {"result": result.detach(), **gradients}


def check_equal(compiled, eager, tolerance):
    """Relative to the largest number of all, since some gradients are rounding errors of 0."""
    scale = max(tensor.abs().max().item() for tensor in eager.values())
    for name, expected in eager.items():
        assert (compiled[name] - expected).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize(
    ("masked", "checkpointed", "autocast"),
    [(False, 0.0, False), (True, 0.5, False), (True, 0.0, True)],
)
@pytest.mark.parametrize("path", PATHS)
def test_training_compiles_into_one_graph(path, masked, checkpointed, autocast):
    model = classifier(path).train()
    model.encoder.checkpointed_share = checkpointed
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = [
        result_and_gradients(model, forward, *batch(masked=masked), autocast=autocast)
        for forward in (compiled, model)
    ]
    check_equal(*results, tolerance=0.02 if autocast else 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("modelnet40", "audioset-audio-video", "io-mlm-bytes", "ar-bytes"),
        *("io-flow", "io-kinetics-autoencoder"),
    ],
)
def test_every_family_trains_as_one_graph(name):
    torch.manual_seed(0)
    model, media = small_preset(name)
    inputs = example(media, 2)
    mask = example_mask(media, inputs, 2)
    learn = []
    for forward in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        results = forward(inputs, mask)
        results = results.values() if isinstance(results, dict) else [results]
        torch.stack([result.square().mean() for result in results]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        learn.append({name for name, gradient in gradients.items() if gradient is not None})
        assert all(gradients[name].isfinite().all() for name in learn[-1])
    assert learn[0] == learn[1]


def test_one_graph_serves_every_batch_size():
    model = classifier("separable").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        compiled(*batch(3, masked=True))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in (2, 7):
                inputs = batch(size, masked=True)
                torch.testing.assert_close(compiled(*inputs), model(*inputs))


def test_an_io_decoder_dropout_and_a_state_compile_into_one_graph():
    encoder = dataclasses.replace(CONFIG.encoder, dropout=0.5)
    model = classifier(config=dataclasses.replace(CONFIG, encoder=encoder, decoder=DecoderConfig()))
    model.encoder.checkpointed_share = 1.0
    forward_state = torch.compile(model.forward_state, fullgraph=True, backend="aot_eager")
    state = torch.randn(3, 4, 16)
    logits, new_state = forward_state(*batch(), state=state)
    logits.sum().backward()
    assert new_state.shape == state.shape and new_state.grad_fn is not None
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            forward_state(*batch(), state=state), model.forward_state(*batch(), state=state)
        )


needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("g++") is None,
    reason="inductor writes C++, and there is no compiler for it here",
)


@needs_compiler
def test_inductor_trains_the_separable_cross_attend_as_eager_does():
    model = classifier("separable")
    cross_attend, latents = model.encoder.cross_attends[0], model.encoder.latents[None].detach()
    inputs = model.input_array(*batch())
    results = [
        result_and_gradients(cross_attend, read, latents, inputs)
        for read in (torch.compile(cross_attend, fullgraph=True), cross_attend)
    ]
    check_equal(*results, tolerance=1e-4)


@needs_compiler
def test_gradients_that_several_threads_add_repeat_their_bits():
    """Those of an embedding, which inductor adds atomically if it is let."""
    config = dataclasses.replace(
        CONFIG,
        input=TextInput(max_length=200),
        adapter=TokenEmbeddingConfig(num_channels=16),
        positions=None,
    )
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(6, 12, (64, 200), generator=generator)
    mask = torch.ones(64, 200, dtype=torch.bool)
    model, threads = classifier(config=config), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with compiled(model, "default"):
            first, *others = (result_and_gradients(model, model, texts, mask) for _ in range(20))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)
    assert not torch.are_deterministic_algorithms_enabled()
