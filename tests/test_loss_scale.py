"""A step's gradient is that of the mean loss, by hand; Adam's first step hides its scale."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gate_runs import CLASSES, new_model, some_rows, table_config, write_table_set
from saved_checkpoints import load
from trainings import cut_off_after

from pipeline.config.load import with_values
from pipeline.inputs.collate import collate
from pipeline.inputs.model_input import fitted_media
from pipeline.media import FittedTableFormat
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.launch import run_training

ROWS = some_rows(0, 48)
SMOOTHING = 0.2


@pytest.mark.parametrize(("stage", "accumulation"), [(0, 1), (2, 4)])
def test_the_loop_s_gradient_is_that_of_the_mean_loss_by_hand(
    tmp_path: Path, stage: int, accumulation: int
) -> None:
    config = with_values(
        table_config(tmp_path, "scale"),
        {
            "training.batch_size": len(ROWS),
            "training.epochs": 1,
            "training.schedule.warmup_epochs": 0,
            "training.gradient_accumulation_steps": accumulation,
            "training.gradient_clipping": None,  # it would hide the scale, too
            "training.label_smoothing": SMOOTHING,
            "training.zero_stage": stage,
        },
    )
    shard_set = write_table_set(config, ROWS, some_rows(48, 60))
    run_training(config, tmp_path, None)
    last = last_checkpoint(tmp_path / "checkpoints")
    assert last is not None and last.state.step == 1
    # After one step, Adam's first moments are this share of the gradients.
    share = 1 - config.training.betas[0]
    moments = load(last, "optimizer")

    torch.manual_seed(config.seed)
    model = new_model(config, shard_set)
    media = fitted_media(config.data.media, shard_set.manifest.config)
    assert isinstance(media, FittedTableFormat)
    inputs, mask = collate([media.encode_row(row) for row in ROWS], media)
    targets = torch.tensor([CLASSES.index(row["label"]) for row in ROWS])
    loss = F.cross_entropy(model(inputs, mask), targets, label_smoothing=SMOOTHING)
    loss.backward()
    assert last.state.metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            moments[f"exp_avg.{name}"] / share, parameter.grad, rtol=1e-3, atol=1e-6
        )


def test_a_resumed_epoch_reports_what_an_uninterrupted_one_would(
    tmp_path: Path,
) -> None:
    """To the last bit: the sums in a checkpoint are float64."""
    config = with_values(
        table_config(tmp_path, "sums"),
        {
            "training.batch_size": 8,
            "training.epochs": 1,
            "training.schedule.warmup_epochs": 0,
            "training.checkpoint_steps": 2,
        },
    )
    write_table_set(config, ROWS, some_rows(48, 60))
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    run_training(config, folders[0], None)
    with cut_off_after(4):
        run_training(config, folders[1], None)
    run_training(config, folders[1], None)
    whole, resumed = (last_checkpoint(folder / "checkpoints") for folder in folders)
    assert whole is not None and resumed is not None
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert resumed.state.metrics[name] == whole.state.metrics[name]
