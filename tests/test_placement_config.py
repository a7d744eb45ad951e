"""What the section `cluster` takes about where work runs."""

import pytest

from cluster.placement import matches
from pipeline.config.load import load_config
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["gpus_per_worker=0.5"], "gpus_per_worker is 0.5 without a GPU; set use_gpu=true"),
        (["gpus_per_worker=0.5", "use_gpu=true", "num_workers=2"], "NCCL cannot connect"),
        (["gpus_per_worker=2", "use_gpu=true"], "gpus_per_worker"),
        (["workers_per_node=2", "placement=spread"], "both say where processes run; give one"),
        (["workers_per_node=2", "num_workers={min: 1, max: 2}"], "needs a fixed num_workers"),
        (["placement=near"], "placement"),
        (["resources={GPU: 1}"], "names 'GPU'; give a resource of your own or memory"),
        (["resources={link: 0}"], "link is 0; give more than 0"),
        (["resources={link: 1.5}"], "link is 1.5; above 1, Ray takes whole numbers"),
        (["environment={AWS_SECRET_ACCESS_KEY: x}"], "it takes variables of communication"),
        (["environment={CUDA_VISIBLE_DEVICES: '0'}"], "it takes variables of communication"),
        (["timeout_seconds=0"], "timeout_seconds"),
        (["preprocess={cpus: 0}"], "cpus"),
        (["decode={cpus: 1}"], "workers"),
        (["decode={workers: 1}", "training.loader_workers=2"], "decodes in other processes; give"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], told: str) -> None:
    named = [each if each.startswith("training.") else f"cluster.{each}" for each in overrides]
    with pytest.raises(UserError, match=told) as caught:
        load_config("digits", ["training.loader_workers=0", *named])
    assert "cluster" in str(caught.value)


def test_a_study_of_several_processes_shares_no_gpu() -> None:
    shared = ["cluster.num_workers=1", "cluster.use_gpu=true", "cluster.gpus_per_worker=0.25"]
    assert load_config("digits", [*shared, "study.num_workers=1"]).study is not None
    with pytest.raises(UserError, match="NCCL cannot connect"):
        load_config("digits", [*shared, "study.num_workers=2"])


@pytest.mark.parametrize(
    ("wanted", "fitting"),
    [
        ("cpu", {"cpu"}),
        ("!cpu", {"gpu", "tpu", None}),
        ("in(cpu, gpu)", {"cpu", "gpu"}),
        ("!in(cpu,gpu)", {"tpu", None}),
    ],
)
def test_a_label_is_compared_as_ray_does(wanted: str, fitting: set[str | None]) -> None:
    assert {label for label in ("cpu", "gpu", "tpu", None) if matches(label, wanted)} == fitting
