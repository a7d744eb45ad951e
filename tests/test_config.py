"""The configuration tree, and reading it from YAML with dotted overrides."""

import dataclasses

import pytest
from config_files import MINIMAL, write
from pydantic import ValidationError

from perceiver_model import PRESETS
from perceiver_model.adapters.configs import AudioInput, ImageInput, MelConvConfig
from perceiver_model.config_checks import flatten
from perceiver_model.flops import forward_flops
from pipeline.config.load import load_config, shipped_configs, validate, with_values
from pipeline.errors import UserError
from pipeline.training.schedule import learning_rate

# --- what ships ---


def test_shipped_names():
    assert shipped_configs() == [
        "audio", "autoencode", "autoregressive", "backbone", "digits", "fine-tune", "imagenet",
        "images",
        "masked-language", "multi-label", "perceiver-imagenet", "perceiver-io-imagenet", "points",
        "regress", "segment", "sequence", "stream", "table", "text", "video",
    ]  # fmt: skip


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_resolves(name):
    config = load_config(name)
    assert config.name == name
    assert config.micro_batch_size(config.cluster.max_workers) >= 1
    assert config.trained_for is not None
    config.trained_for.check(config)
    assert forward_flops(config.trained_for.model(config, num_classes=3)) > 0
    assert validate(config.tree(), name) == config


@pytest.mark.parametrize(
    ("name", "preset"),
    [("imagenet", "imagenet"), ("perceiver-imagenet", "imagenet"),
     ("perceiver-io-imagenet", "io-imagenet-fourier"), ("fine-tune", "io-imagenet-fourier")],
)  # fmt: skip
def test_imagenet_is_the_papers_model(name, preset):
    assert load_config(name).classifier(num_classes=1000) == PRESETS[preset]


def test_the_papers_recipes():
    perceiver = load_config("perceiver-imagenet").training
    epochs = [0, 83, 84, 101, 102, 113, 114, 119]
    rates = [learning_rate(epoch * 10, 10, perceiver) for epoch in epochs]
    assert rates == pytest.approx([4e-3] * 2 + [4e-4] * 2 + [4e-5] * 2 + [4e-6] * 2)
    io = load_config("perceiver-io-imagenet").training
    rates = [learning_rate(epoch * 10, 10, io) for epoch in (0, 30, 55, 82.5, 110)]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3, 1e-3, 0])
    assert (io.epochs, io.batch_size, io.label_smoothing) == (110, 1024, 0.1)
    for recipe in (perceiver, io):
        assert (recipe.optimizer, recipe.betas, recipe.eps) == ("lamb", (0.9, 0.999), 1e-6)
        assert (recipe.weight_decay, recipe.gradient_clipping) == (0.1, 10.0)
        augment = recipe.augment
        assert (augment.randaugment_layers, augment.randaugment_magnitude) == (4, 5.0)
        assert (augment.flip, augment.crop_area) == (True, (0.08, 1.0))
    assert (perceiver.augment.mixup, perceiver.augment.cutmix) == (0.0, 0.0)
    assert (io.augment.mixup, io.augment.cutmix) == (0.2, 0.2)


def test_eps_is_the_optimizers_unless_given():
    found = {
        name: load_config("digits", [f"training.optimizer={name}", "training.zero_stage=auto"])
        for name in ("adamw", "lamb", "muon")
    }
    assert {name: config.training.eps for name, config in found.items()} == {
        "adamw": 1e-8, "lamb": 1e-6, "muon": 1e-8,
    }  # fmt: skip
    assert all(validate(config.tree(), "x") == config for config in found.values())
    given = load_config("digits", ["training.optimizer=lamb", "training.eps=1e-8"])
    assert given.training.eps == 1e-8


@pytest.mark.parametrize(
    ("overrides", "workers", "stage"),
    [
        ([], "1", 0),
        ([], "0", 0),
        ([], "2", 2),
        ([], "{min: 1, max: 4}", 2),
        (["training.optimizer=muon"], "4", 0),
        (["training.offload.optimizer=cpu"], "1", 2),
        (["training.offload.parameters=cpu"], "1", 3),
        (["training.offload={optimizer: nvme, nvme_path: /nvme}"], "1", 3),
        (["training.overlap_communication=true"], "1", 2),
        (["training.deepspeed.zero_optimization.reduce_bucket_size=1000000"], "1", 2),
        (["training.deepspeed.wall_clock_breakdown=true"], "1", 0),
        (["training.zero_stage=1"], "1", 1),
    ],
)
def test_auto_takes_the_lowest_zero_stage_that_shares_what_can_be_shared(overrides, workers, stage):
    chosen = ["training.zero_stage=auto", f"cluster.num_workers={workers}", *overrides]
    assert load_config("digits", chosen).zero_stage == stage


def test_the_models_input_follows_from_the_data():
    digits = load_config("digits", ["data.image.width=20", "model.pixel_std=[0.25]"])
    source = digits.classifier(10).input
    assert source == ImageInput(height=28, width=20, channels=1, mean=(0.5,), std=(0.25,))
    sound = ["data.audio.seconds=1.5", "data.audio.mel=null", "training.augment={gain_db: 6}"]
    audio = load_config("audio", sound)
    assert audio.classifier(2).input == AudioInput(sample_rate=16_000, num_samples=24_000)
    assert isinstance(audio.model.adapter, MelConvConfig)


def test_places_follow_from_output_and_name(tmp_path):
    config = load_config("digits", [f"output={tmp_path}", "name=mine"])
    assert config.folder == tmp_path / "mine"
    assert config.shards_folder == str(tmp_path / "mine" / "shards")
    assert config.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    elsewhere = with_values(config, {"shards": "s3://a/b", "tracking.uri": "http://host:5000"})
    assert elsewhere.shards_folder == "s3://a/b"
    assert elsewhere.tracking_uri == "http://host:5000"


# --- reading ---


def test_a_file_takes_defaults_for_all_it_leaves_out(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.seed, config.training.epochs, config.study) == (0, 10, None)
    assert config.data.media.channels == 3


def test_a_file_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, MINIMAL, "digits")
    assert load_config("digits").name == "tiny"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("3E-4", 0.0003), ("2.5e-3", 0.0025), ("1e+1", 10.0), (".5e1", 5.0),
     ("0.1", 0.1), ("1", 1.0)],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, value):
    learning_rate = load_config("digits", [f"training.learning_rate={text}"]).training.learning_rate
    assert (learning_rate, type(learning_rate)) == (value, float)
    source = write(tmp_path, f"{MINIMAL}training: {{learning_rate: {text}}}\n")
    assert load_config(source).training.learning_rate == value


def test_overrides_reach_nested_sections_and_leave_their_neighbours():
    before = load_config("digits")
    after = load_config("digits", ["training.augment.flip=true", "model.encoder.num_latents=8"])
    changed = {
        path: value
        for path, value in flatten(after.tree()).items()
        if flatten(before.tree())[path] != value
    }
    assert changed == {"training.augment.flip": True, "model.encoder.num_latents": 8}


def test_the_last_override_wins():
    config = load_config("digits", ["seed=1", "training.epochs=3", "seed=2"])
    assert (config.seed, config.training.epochs) == (2, 3)


def test_an_override_may_replace_or_open_a_whole_section():
    config = load_config(
        "digits",
        ["model.adapter={kind: patches, patch_size: 7}", "study=null", "data.image.resize=pad",
         "tracking.experiment=trials"],
    )  # fmt: skip
    assert config.classifier(2).token_grid == (4, 4)
    assert config.study is None
    assert config.tracking.experiment == "trials"
    opened = load_config("imagenet", ["study.space.training.weight_decay={uniform: [0.0, 0.2]}"])
    assert opened.study.space["training.weight_decay"].bounds == (0.0, 0.2)


def test_a_study_space_keeps_dotted_paths_as_keys():
    config = load_config("digits", ["study.space.training.batch_size={choice: [32, 64]}"])
    assert config.study.space["training.batch_size"].choice == (32, 64)
    assert "model.encoder.num_latents" in config.study.space


def test_with_values_gives_another_configuration_and_checks_it():
    config = load_config("digits", ["training.epochs=10"])
    assert with_values(config, {"training.epochs": 4, "seed": 9}).training.epochs == 4
    assert config.training.epochs == 10
    with pytest.raises(UserError, match=r"^digits: training\.epochs: is 0; must be greater"):
        with_values(config, {"training.epochs": 0})


@pytest.mark.parametrize(
    ("section", "field"),
    [("", "seed"), ("training", "epochs"), ("training.schedule", "kind"), ("data", "train"),
     ("data.image", "height"), ("model.encoder", "num_latents"), ("model.adapter", "kind")],
)  # fmt: skip
def test_no_section_can_be_changed(section, field):
    node = load_config("digits")
    for name in filter(None, section.split(".")):
        node = getattr(node, name)
    with pytest.raises((ValidationError, dataclasses.FrozenInstanceError)):
        setattr(node, field, getattr(node, field))
