"""`training.deepspeed` and `training.offload`: passed on, read back, or refused by name."""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
from cli_commands import perceiver
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from cluster import deepspeed_keys
from cluster.deepspeed_keys import OFFLOAD_REFUSED, REFUSED, ZERO_REFUSED
from cluster.deepspeed_values import merged, read_back
from pipeline.config.load import load_config, with_values
from pipeline.errors import UserError

GIVEN: dict[str, Any] = {
    "zero_optimization": {"stage3_max_live_parameters": 5000, "reduce_bucket_size": 2048},
    "communication_data_type": "fp16",
    "gradient_predivide_factor": 2.0,
    "wall_clock_breakdown": True,
    "comms_logger": {"enabled": False, "prof_ops": ["all_reduce"]},
    "flops_profiler": {"profile_step": 3},
    "timers": {"throughput": {"enabled": False}},
}
"""Keys that are passed on, of every kind of section."""


class ReadKeys(dict[str, Any]):
    """A configuration that notes which of its keys DeepSpeed looks for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.looked_for: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.looked_for.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.looked_for.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_for.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "ReadKeys":
        return self


def test_every_key_that_deepspeed_reads_is_passed_on_or_refused() -> None:
    config = ReadKeys({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1})
    DeepSpeedConfig(config)
    assert "zero_optimization" in config.looked_for and len(config.looked_for) > 40
    from deepspeed.runtime import config as module

    removed = module._REMOVED_TOP_LEVEL_CONFIG_KEYS
    known = {*deepspeed_keys._models(), *REFUSED}
    assert config.looked_for - known - {*removed} == set()
    assert {*ZERO_REFUSED} - {
        name for n, each in DeepSpeedZeroConfig.model_fields.items() for name in (n, each.alias)
    } == set()


def test_keys_are_merged_and_read_back_from_deepspeed_s_own_configuration() -> None:
    own = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    parsed = DeepSpeedConfig(merged(own, GIVEN))
    assert parsed.zero_config.stage == 3
    assert read_back(parsed, GIVEN) == GIVEN
    parsed.zero_config.max_live_parameters = 4
    parsed.comms_config.comms_logger.prof_ops = []
    found = read_back(parsed, GIVEN)
    assert found["zero_optimization"]["stage3_max_live_parameters"] == 4
    assert found["comms_logger"]["prof_ops"] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("deepspeed.zero_optimization.stage=1", "zero_optimization.stage: set training.zero_stage"),
        ("deepspeed.zero_optimization.overlap_comm=true", "set training.overlap_communication"),
        ("deepspeed.zero_optimization.reduce_bucket_siz=9", "DeepSpeed 0.* has no such key"),
        ("deepspeed.zero_optimization.reduce_bucket_size=auto", "is 'auto'; Input should be"),
        ("deepspeed.zero_optimization.stage3_max_live_parameters=9", "no effect here at training"),
        ("deepspeed.zero_optimization.round_robin_gradients=true", "could not be told apart"),
        ("deepspeed.zero_optimization.offload_optimizer.device=cpu", "without training.offload.op"),
        ("deepspeed.zero_optimization.zero_quantized_weights=true", "it rounds weights"),
        ("deepspeed.wall_clock_brekdown=true", "did you mean 'wall_clock_breakdown'"),
        ("deepspeed.wall_clock_breakdown=1", "is 1; Input should be a valid boolean"),
        ("deepspeed.fp16.enabled=true", "fp16: set training.precision instead"),
        ("deepspeed.train_batch_size=8", "train_batch_size: set training.batch_size"),
        ("deepspeed.optimizer.type=Adam", "optimizer: set training.optimizer"),
        ("deepspeed.aio.block_size=4096", "aio: has no effect here unless training.offload"),
        ("offload.optimizer=disk", "must be 'none', 'cpu' or 'nvme'"),
        ("offload.nvme_path=/nvme", "nvme_path is /nvme, but neither"),
    ],
)
def test_what_contradicts_or_is_unknown_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError, match=f"training.*{message}"):
        load_config("digits", [f"training.{override}"])


def test_offloading_needs_a_stage_that_has_it_and_a_path() -> None:
    with pytest.raises(UserError, match=r"optimizer is cpu, which needs zero_stage 1, 2 or"):
        load_config("digits", ["training.zero_stage=0", "training.offload.optimizer=cpu"])
    with pytest.raises(UserError, match="parameters is cpu, which needs zero_stage 3; it is 2"):
        load_config("digits", ["training.zero_stage=2", "training.offload.parameters=cpu"])
    with pytest.raises(UserError, match="optimizer lamb sums norms on the device"):
        load_config("digits", ["training.optimizer=lamb", "training.offload.optimizer=cpu"])
    with pytest.raises(UserError, match="overlap_communication is for zero_stage 1 to 3"):
        load_config("digits", ["training.zero_stage=0", "training.overlap_communication=true"])
    offloaded = ["training.zero_stage=3", "training.offload={optimizer: cpu, parameters: cpu}"]
    for key, reason in OFFLOAD_REFUSED.items():
        given = f"training.deepspeed.zero_optimization.offload_optimizer.{key}=1"
        with pytest.raises(UserError, match=rf"offload_optimizer\.{key}: {reason[:20]}"):
            load_config("digits", [*offloaded, given])


def test_deepspeed_prints_nothing_before_our_line(tmp_path: Path) -> None:
    key = "training.deepspeed.zero_optimization.reduce_bucket_size"
    refused = perceiver("config", "digits", f"{key}=many", folder=tmp_path)
    assert not refused.stdout
    assert refused.stderr.startswith("perceiver config: digits: training: deepspeed.zero_opt")
    assert refused.stderr.count("\n") == 1


def test_a_key_may_be_given_by_an_override_by_a_trial_and_searched_by_a_study() -> None:
    path = "training.deepspeed.zero_optimization.reduce_bucket_size"
    config = load_config("digits", [f"{path}=4096"])
    assert config.training.deepspeed == {"zero_optimization": {"reduce_bucket_size": 4096}}
    other = with_values(config, {path: 8192})
    assert other.training.deepspeed["zero_optimization"]["reduce_bucket_size"] == 8192
    study = {"num_trials": 1, "space": {path: {"choice": [4096, 8192]}}}
    assert with_values(config, {"study": study}).study is not None
    study["space"] = {path: {"choice": [4096, "many"]}}
    with pytest.raises(UserError, match="reduce_bucket_size: is 'many'"):
        with_values(config, {"study": study})


def test_the_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "__version__", "0.99")
    with pytest.raises(UserError, match=r"deepspeed\.nebula: DeepSpeed 0\.99 has no such key"):
        load_config("digits", ["training.deepspeed.nebula.enabled=true"])
