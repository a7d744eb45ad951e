"""Which tensors of a source fit a model, by their names and shapes, and the table of them."""

from typing import Any

import pytest

from pipeline.config.init import InitConfig
from pipeline.errors import UserError
from pipeline.training.initial_weights.matching import InitPlan, TensorKind, plan_init
from pipeline.training.initial_weights.report import table_rows

MODEL = {
    "encoder.latents": TensorKind((4, 8)),
    "encoder.blocks.0.weight": TensorKind((8, 8)),
    "encoder.blocks.0.bias": TensorKind((8,)),
    "norm.count": TensorKind((), is_floating=False),
    "head.weight": TensorKind((3, 8)),
    "head.bias": TensorKind((3,)),
}
PARAMETERS = [name for name in MODEL if name != "norm.count"]


def plan(source: dict[str, TensorKind] | None = None, **init: Any) -> InitPlan:
    section = InitConfig.model_validate({"from": "/x", **init}, strict=False)
    return plan_init(section, MODEL if source is None else source, MODEL, PARAMETERS)


def test_each_tensor_is_loaded_skipped_or_new() -> None:
    source = {
        "encoder.latents": TensorKind((4, 8)),
        "encoder.blocks.0.weight": TensorKind((8, 9)),
        "norm.count": TensorKind(()),
        "head.bias": TensorKind((3,)),
        "head.weight": TensorKind((3, 8)),
        "old.weight": TensorKind((2,)),
    }
    found = plan(source, strict=False)
    assert [(tensor.name, tensor.state, tensor.reason) for tensor in found.tensors] == [
        ("encoder.latents", "loaded", ""),
        ("encoder.blocks.0.weight", "skipped", "[8, 9] in the source"),
        ("encoder.blocks.0.bias", "new", "the source has none"),
        ("norm.count", "skipped", "floating-point numbers in the source"),
        ("head.weight", "loaded", ""),
        ("head.bias", "loaded", ""),
        ("old.weight", "skipped", "the model has none"),
    ]


@pytest.mark.parametrize("odd", ["encoder.blocks.0.bias", "old.weight"])
def test_strict_refuses_a_tensor_on_either_side(odd: str) -> None:
    plan()
    source = {name: kind for name, kind in MODEL.items() if name != odd}
    if odd not in MODEL:
        source[odd] = TensorKind((2,))
    with pytest.raises(UserError, match=f"1 tensors do not fit the model: {odd} "):
        plan(source)
    plan(source, strict=False)


def test_a_source_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of its 1 tensors fits.*head\.weight"):
        plan({"head.weight": TensorKind((5, 5))}, strict=False)


def test_patterns_choose_parameters_by_their_whole_names() -> None:
    found = plan(freeze=["encoder.b*"], learning_rate_scale={"*.bias": 2.0, "encoder.latents": 1})
    assert found.frozen == {"encoder.blocks.0.weight", "encoder.blocks.0.bias"}
    assert found.rate_scales == {"head.bias": 2.0}
    for name in ("head", "norm.count", "HEAD.*"):
        with pytest.raises(UserError, match=r"matches no parameter.*encoder\.\*, head\.\*"):
            plan(freeze=[name])


def test_what_is_frozen_must_have_been_loaded() -> None:
    source = MODEL | {"head.bias": TensorKind((4,))}
    with pytest.raises(UserError, match=r"head\.bias cannot be loaded from /x"):
        plan(source, strict=False, freeze=["head.*"])


def test_the_table_joins_what_was_loaded_and_names_the_rest() -> None:
    source = {name: kind for name, kind in MODEL.items() if name != "head.bias"}
    source["head.weight"] = TensorKind((7, 8))
    init = {"freeze": ["encoder.blocks.*"], "learning_rate_scale": {"head.*": 10}}
    assert table_rows(plan(source, strict=False, **init)) == [
        ("encoder.latents", 1, 32, "loaded", "", ""),
        ("encoder.blocks.*", 2, 72, "loaded", "", "frozen"),
        ("norm.count", 1, 1, "loaded", "", ""),
        ("head.weight", 1, 24, "skipped", "[7, 8] in the source", "10 x learning rate"),
        ("head.bias", 1, 3, "new", "the source has none", "10 x learning rate"),
    ]
    heads = {name: kind for name, kind in MODEL.items() if not name.startswith("encoder.blocks.")}
    names = [row[0] for row in table_rows(plan(heads, strict=False)) if row[3] == "new"]
    assert names == ["encoder.blocks.0.weight", "encoder.blocks.0.bias"]
