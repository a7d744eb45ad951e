"""Which configurations are refused, and in what words."""

import pytest
from config_files import refusal, write

from pipeline.config.load import load_config, shipped_configs

AUTO = "training.zero_stage=auto"
UNKNOWN_KEYS = [
    ("trainig.epochs=1", "trainig", "'training'"),
    ("training.learning_rat=1", "training.learning_rat", "'learning_rate'"),
    ("training.schedule.warmup=1", "training.schedule.warmup", "'warmup_epochs'"),
    ("training.augment.crop=1", "training.augment.crop", "'crop_area'"),
    ("data.image.heigth=3", "data.image.heigth", "'height'"),
    ("model.encoder.num_latent=3", "model.encoder.num_latent", "'num_latents'"),
    ("model.adapter.num_chanels=3", "model.adapter.num_chanels", "'num_channels'"),
    ("model.positions.bands=3", "model.positions.bands", "'num_bands'"),
    ("study.space.training.eps={chioce: [1]}", "study.space.training.eps.chioce", "'choice'"),
]


@pytest.mark.parametrize(("override", "path", "meant"), UNKNOWN_KEYS)
def test_an_unknown_key_is_named_in_full_with_the_nearest_one(override, path, meant):
    assert refusal("digits", override) == [f"digits: {path}: unknown key; did you mean {meant}?"]


def test_an_unknown_key_like_no_other_gets_all_that_are_allowed():
    (line,) = refusal("digits", "registry.zzz=1")
    assert line == (
        "digits: registry.zzz: unknown key; allowed: model_name, alias, min_gain, alpha, "
        "worse_slices, slice_alpha, set_digest, licence, onnx"
    )


WRONG_VALUES = [
    ("training.epochs=ten", "training.epochs: is 'ten'; must be a valid integer"),
    ("training.epochs=1.5", "training.epochs: is 1.5; must be a valid integer"),
    ("training.epochs=true", "training.epochs: is True; must be a valid integer"),
    ("training.epochs='5'", "training.epochs: is '5'; must be a valid integer"),
    ("training.epochs=0", "training.epochs: is 0; must be greater than or equal to 1"),
    ("training.learning_rate=fast", "training.learning_rate: is 'fast'; must be a valid number"),
    ("training.learning_rate=0", "training.learning_rate: is 0; must be greater than 0"),
    (
        "training.precision=fp4",
        "training.precision: is 'fp4'; must be 'float32', 'bf16', 'bf16_autocast', 'fp16' or 'fp8'",
    ),
    ("training.zero_stage=4", "training.zero_stage: is 4; must be 'auto', 0, 1, 2 or 3"),
    ("training.augment.flip=1", "training.augment.flip: is 1; must be a valid boolean"),
    ("training.betas=0.9", "training.betas: is 0.9; must be a valid array"),
    ("training=3", "training: is 3; must be an object"),
    ("seed=-1", "seed: is -1; must be greater than or equal to 0"),
    ("seed=1e1", "seed: is 10.0; must be a valid integer"),
    ("name=a b", "name: is 'a b'; must match ^[A-Za-z0-9]"),
    ("data.train=null", "data.train: is None; must be a valid string"),
    ("data.validation=1.5", "data.validation: is 1.5; must be a valid string or less than 1"),
    ("data.image.channels=2", "data.image.channels: is 2; must be 1 or 3"),
    ("data.image.resize=zoom", "data.image.resize: is 'zoom'; must be 'crop', 'pad' or 'stretch'"),
    ("data.image.height=0", "data.image.height: is 0; must be greater than or equal to 1"),
    ("model.adapter.kind=mell", "model.adapter: kind is 'mell'; must be 'pixels', 'patches'"),
    ("model.adapter={}", "model.adapter: is {}, without a kind; kind must be 'pixels', 'patches'"),
    ("model.positions=null", "model.positions: is None, without a kind; kind must be "),
    (
        "model.adapter={kind:conv_stem}",
        "model.adapter: is {'kind:conv_stem': None}, without a kind; write 'kind: conv_stem', "
        "with a space after the colon; kind must be 'pixels', 'patches', 'conv', 'conv_stem', ",
    ),
    (
        "training.schedule={kind:cosine}",
        "training.schedule.kind:cosine: unknown key; write 'kind: cosine', with a space after the",
    ),
    ("model.positions.num_bands=0", "model.positions.num_bands: is 0; must be greater than or eq"),
    ("model.pixel_std=[0]", "model: std.0 is 0.0; must be greater than 0"),
    ("output=nope://a/b", "output: is 'nope://a/b', and fsspec knows no 'nope'"),
    ("output=http://a/b", "output: is 'http://a/b', which cannot be written"),
    ("output=s3://", "output: is 's3://', without a bucket"),
    ("data={}", "data.train: is missing"),
]


@pytest.mark.parametrize(("override", "told"), WRONG_VALUES)
def test_a_wrong_value_is_told_with_its_path_and_what_is_allowed(override, told):
    (line,) = refusal("digits", override)
    assert line.startswith(f"digits: {told}")


@pytest.mark.parametrize(
    "override",
    ["data.image.height='28'", "data.image.height=true", "data.image.height=28.0",
     "model.encoder.num_latents='32'", "model.encoder.num_latents=true",
     "model.encoder.share_self_attends='yes'", "model.encoder.dropout='0.1'",
     "model.adapter.num_channels='32'", "model.positions.num_bands=8.0"],
)  # fmt: skip
def test_sections_that_are_dataclasses_coerce_no_type_either(override):
    (line,) = refusal("digits", override)
    path = override.partition("=")[0]
    assert line.startswith(f"digits: {path}: is ") and "; must be a valid " in line


@pytest.mark.parametrize("path", ["training.learning_rate", "training.augment.shift_pixels"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_are_finite(path, value):
    (line,) = refusal("digits", f"{path}={value}")
    assert line.startswith(f"digits: {path}: is ")


IMPOSSIBLE = [
    (["cluster.num_workers=65"], ["training.batch_size is 64", "workers fit: 1 to 64"]),
    (["cluster.num_workers={min: 1, max: 65}"], ["is 65; these numbers of workers fit: 1 to 64"]),
    (["cluster.num_workers={min: 3, max: 2}"], ["cluster.num_workers", "min is 3, and max is 2"]),
    (["cluster.num_workers=-1"], ["cluster: num_workers is -1; give 0 or more"]),
    (
        ["training.gradient_accumulation_steps=5"],
        ["training.batch_size is 64", "multiple of gradient_accumulation_steps = 5"],
    ),
    (
        ["model.adapter={kind: mel, num_mels: 8}"],
        ["model: adapter is Mel", "must be pixels, patches"],
    ),
    (["model.adapter={kind: patches, patch_size: 5}"], ["model: ", "patch_size is 5", "28 × 28"]),
    (["model.encoder.latent_dim=97"], ["model.encoder: latent_dim is 97", "num_self_heads = 4"]),
    (["model.encoder.cross_channels=62"], ["cross_channels is 62", "num_cross_heads = 4"]),
    (["model.adapter={kind: conv_stem}"], ["model.adapter.norm is 'batch'", "give 'group'"]),
    (["model.positions.precision=float32"], ["model.positions.precision: shard sets hold"]),
    (["training.compile=default", "training.zero_stage=3"], ["compile is for zero_stage 0 to 2"]),
    (["model.encoder.num_cross_attends=3"], ["num_cross_attends is 3", "at most num_blocks = 2"]),
    (["model.positions.max_resolution=[28]"], ["model: max_resolution is (28.0,)", "tuple of 2"]),
    (["model.pixel_mean=[0.1, 0.2]"], ["model: mean is (0.1, 0.2)", "tuple of 1"]),
    (["training.schedule.warmup_epochs=10"], ["training: schedule.warmup_epochs", "10 epochs"]),
    (
        ["training.schedule.kind=flat_cosine", "training.schedule.flat_epochs=9.5"],
        ["training: schedule", "is 10.5", "10 epochs"],
    ),
    (["training.schedule.flat_epochs=1"], ["training.schedule: flat_epochs", "flat_cosine"]),
    (["training.optimizer=adam"], ["training.optimizer: is 'adam'", "'adamw' or 'lamb' or 'muon'"]),
    (["training.momentum=0.9"], ["training: momentum is 0.9, which optimizer adamw does not have"]),
    (["training.optimizer=lamb", "training.momentum=0"], ["momentum is 0.0", "lamb does not have"]),
    (
        ["training.optimizer=muon", "training.zero_stage=2"],
        ["training: zero_stage is 2", "muon needs; set zero_stage to 0 or auto"],
    ),
    (
        ["training.optimizer=muon", AUTO, "training.overlap_communication=true"],
        ["overlap_communication is for zero_stage 1 to 3; zero_stage is 0"],
    ),
    (
        ["training.offload.parameters=cpu", AUTO, "training.compile=default"],
        ["compile is for zero_stage 0 to 2; zero_stage is 3"],
    ),
    (["training.schedule.kind=steps"], ["training.schedule: step_epochs is missing"]),
    (["training.schedule.step_epochs=[2]"], ["step_epochs is for kind steps; the kind is cosine"]),
    (["training.schedule.factor=0.5"], ["factor is for kind steps; the kind is cosine"]),
    (
        ["training.schedule={kind: steps, flat_epochs: 1, step_epochs: [2]}"],
        ["training.schedule: flat_epochs is for kind flat_cosine; the kind is steps"],
    ),
    (["training.schedule={kind: steps, step_epochs: [2, 2]}"], ["is [2.0, 2.0]", "above 0 and ri"]),
    (["training.schedule={kind: steps, step_epochs: [0, 2]}"], ["is [0.0, 2.0]", "above 0 and ri"]),
    (["training.schedule={kind: steps, step_epochs: [0.5]}"], ["begins at 0.5", "1 warmup_epochs"]),
    (
        ["training.schedule={kind: steps, step_epochs: [2, 10]}"],
        ["training: schedule.step_epochs ends at 10, but there are only 10 epochs"],
    ),
    (["training.betas=[0.9, 1.0]"], ["training: betas holds 1.0", "below 1"]),
    (["training.augment.scale=[2, 1]"], ["training.augment: scale is [2.0, 1.0]", "low <= high"]),
    (["training.augment.rotate_degrees=181"], ["training.augment.rotate_degrees", "equal to 180"]),
    (["training.augment.gain_db=-1"], ["training.augment.gain_db", "equal to 0"]),
    (["training.augment.mask_bands=-1"], ["training.augment.mask_bands", "equal to 0"]),
    (["training.augment.crop_area=[0.5, 2]"], ["training.augment: crop_area ends at 2.0"]),
    (["data.audio={}"], ["model: data has several modalities: image, audio"]),
    (["data.image=null"], ["data: give at least one of the sections image, audio, video, points"]),
    (
        ["data.image=null", "data.audio={seconds: 0.01}"],
        ["data.audio: min_seconds is 0.02; must be at most seconds = 0.01"],
    ),
]


@pytest.mark.parametrize(("overrides", "told"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused(overrides, told):
    (line,) = refusal("digits", "training.epochs=10", *overrides)
    assert line.startswith("digits: ")
    assert all(part in line for part in told), line


def test_a_batch_need_not_divide_where_training_runs_in_the_calling_process():
    config = load_config("digits", ["cluster.num_workers=0", "training.batch_size=63"])
    assert config.training.batch_size == 63


SPACES = [
    ("model.encoder.num_latent={choice: [1]}", "no such field; did you mean 'model.encoder.num_l"),
    ("zzz={choice: [1]}", "no such field"),
    ("training.schedule={choice: [1]}", "no such field; did you mean 'training.schedule."),
    ("data.train={choice: [a]}", "a study searches model.encoder.*, model.decoder.*, model.au"),
    ("model.adapter.kind={choice: [pixels]}", "a study searches model.encoder.*, model.decoder.*"),
    ("model.adapter.num_channels={choice: [8, 0]}", "model.adapter.num_channels: is 0; must be"),
    ("model.encoder.num_latents={choice: [16, 0]}", "model.encoder.num_latents: is 0; must be"),
    ("model.encoder.num_latents={choice: [16, '32']}", "model.encoder.num_latents: is '32'; must"),
    ("model.encoder.latent_dim={choice: [96, 97]}", "model.encoder: latent_dim is 97; must be a m"),
    (
        "training.zero_stage={choice: [7]}",
        "training.zero_stage: is 7; must be 'auto', 0, 1, 2 or 3",
    ),
    ("training.gradient_accumulation_steps={choice: [1, 5]}", "training.batch_size is 64; must"),
    ("training.eps={choice: [1], uniform: [0, 1]}", "give exactly one of 'choice', 'uniform'"),
    ("training.eps={}", "give exactly one of 'choice', 'uniform'"),
    ("training.eps={uniform: [1, 1]}", "is [1, 1]; low < high is needed"),
    ("training.eps={loguniform: [0, 1]}", "is [0, 1]; a logarithm needs 0 < low"),
    ("training.learning_rate={uniform: [0, 1]}", "training.learning_rate: is 0.0; must be greater"),
    ("model.encoder.num_latents={uniform: [16, 32]}", "model.encoder.num_latents: is 16.0; must"),
    ("training.batch_size={uniform: [32, 64]}", "training.batch_size: is 32.0; must be a valid"),
]


@pytest.mark.parametrize(("space", "told"), SPACES)
def test_a_study_searches_only_what_it_can(space, told):
    (line,) = refusal("digits", "study.search=random", f"study.space.{space}")
    path = space.partition("=")[0]
    assert line.startswith(f"digits: study.space.{path}: {told}")
    assert not line.endswith("; ")


def test_a_grid_needs_choices():
    (line,) = refusal("digits", "study.space.training.eps={uniform: [1e-9, 1e-7]}")
    assert line.startswith("digits: study: space.training.eps: search 'grid' needs choice, integer")


def test_a_searched_value_must_suit_the_studys_own_epochs():
    (line,) = refusal(
        "digits", "study.epochs=3", "study.space.training.schedule.warmup_epochs={choice: [1, 4]}"
    )
    assert "study.space.training.schedule.warmup_epochs: training: schedule" in line


def test_every_problem_has_a_line_of_its_own():
    lines = refusal("digits", "training.epochs=0", "training.bach_size=3", "data.train=null")
    assert sorted(lines) == [
        "digits: data.train: is None; must be a valid string",
        "digits: training.bach_size: unknown key; did you mean 'batch_size'?",
        "digits: training.epochs: is 0; must be greater than or equal to 1",
    ]


@pytest.mark.parametrize("override", ["training.epochs", "=3", "--fresh"])
def test_an_override_is_a_path_and_a_value(override):
    assert refusal("digits", override) == [f"{override!r}: overrides are section.field=value"]


def test_an_overrides_value_is_yaml():
    (line,) = refusal("digits", "training.betas=[0.9")
    assert line.startswith("'training.betas=[0.9': not YAML: ")


BROKEN = [
    ("a: [1", "not YAML: while parsing a flow sequence"),
    ("name: a\nname: b\n", "not YAML: key 'name' is given twice"),
    ("data: {train: a, train: b}\n", "not YAML: key 'train' is given twice"),
    ("a: !!python/object:os.system {}\n", "not YAML: could not determine a constructor"),
    ("? [1, 2]\n: 3\n", "not YAML: "),
    ("a: &loop {b: *loop}\n", ""),
    ("2024-01-01: 3\n", ""),
    ("- 1\n", "holds list, not sections with fields"),
    ("", "holds NoneType, not sections with fields"),
    (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
]


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, told):
    source = write(tmp_path, text)
    lines = refusal(source)
    assert lines[0].startswith(f"{source}: {told}")


@pytest.mark.parametrize(
    ("source", "hint"),
    [("digts", "did you mean 'digits'?"), ("image-net", "did you mean 'imagenet'?"),
     ("qqq", f"shipped ones: {', '.join(shipped_configs())}")],
)  # fmt: skip
def test_a_missing_file_gets_the_nearest_shipped_name(source, hint):
    assert refusal(source) == [f"{source}: no such configuration file, nor a shipped name; {hint}"]
