"""Is weight sharing better? How many latents, cross-attends, blocks and bands?"""

from pipeline.studies.questions.small import SMALL
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

BASE = "base"
_ENCODER = "model.encoder"
_LATENTS, _BANDS = f"{_ENCODER}.num_latents", "model.positions.num_bands"
_BLOCKS, _CROSS_ATTENDS = f"{_ENCODER}.num_blocks", f"{_ENCODER}.num_cross_attends"
_CHANGES = (
    Arm("blocks not shared", {f"{_ENCODER}.share_self_attends": False}),
    Arm(
        "nothing shared",
        {f"{_ENCODER}.share_self_attends": False, f"{_ENCODER}.share_cross_attends": "none"},
    ),
    Arm("latents ÷ 4", factors={_LATENTS: 0.25}),
    Arm("latents × 4", factors={_LATENTS: 4}),
    Arm("1 cross-attend", {_CROSS_ATTENDS: 1}),
    Arm("cross-attends ÷ 2", factors={_CROSS_ATTENDS: 0.5}),
    Arm("cross-attends all first", {f"{_ENCODER}.cross_attend_layout": "first"}),
    Arm("bands ÷ 4", factors={_BANDS: 0.25}),
    Arm("bands × 2", factors={_BANDS: 2}),
    Arm("half of the depth", factors={_BLOCKS: 0.5, _CROSS_ATTENDS: 0.5}),
)


def _small(epochs: int) -> dict[str, object]:
    return {
        **SMALL,
        "model.adapter": {"kind": "conv", "num_channels": 16},
        f"{_ENCODER}.num_blocks": 4,
        f"{_ENCODER}.num_cross_attends": 4,
        f"{_ENCODER}.share_cross_attends": "after_first",
        "training.epochs": epochs,
    }


def answer(found: Found) -> str:
    """Return the answer in one line."""

    def told(name: str) -> str:
        each = found.difference(name, BASE)
        ends = f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
        clear = "" if each.is_clear else ", not clear"
        return f"{name} {100 * each.mean:+.1f} points ({ends}{clear})"

    clear = [each.arm for each in found.differences if each.is_clear]
    text = f"without sharing: {told('blocks not shared')}, {told('nothing shared')}"
    others = [told(name) for name in clear if "shared" not in name]
    return f"{text}; other clear changes: {', '.join(others) or 'none'}"


STUDY = Study(
    name="ablations",
    question="Is weight sharing better? How many latents, cross-attends, blocks, bands?",
    arms=(Arm(BASE), *_CHANGES),
    pairs=tuple(Pair(each.label, BASE) for each in _CHANGES),
    scales={
        "tiny": Scale("digits", {**_small(2), "training.batch_size": 256}, seeds=2),
        "small": Scale("digits", _small(6), seeds=5),
        "full": Scale(
            "imagenet",
            {"data.validation": None, "training.gradient_accumulation_steps": 32},
            seeds=5,
            needs_data=True,
        ),
    },
    answer=answer,
    notes=(
        "One field changes at a time around a base model. At the small scale the base has 4 blocks "
        "of one self-attend that share weights, 4 cross-attends of which the last 3 share weights, "
        "32 latents of 64 channels, and 8 bands for each dimension. × and ÷ change these numbers.",
    ),
    paper=(
        "The paper (Jaegle et al. 2021, [arXiv 2103.03206](https://arxiv.org/abs/2103.03206)) "
        "reports single trainings on ImageNet, without intervals. Sharing weights: 78.0 % on "
        "validation and 79.5 % on training with 44.9 M parameters; without any sharing 72.9 % and "
        "87.7 % with 326.2 M. Interleaved cross-attends (appendix B, table 6): 76.7 % with 1, "
        "76.5 % with 2, 76.5 % with 4, 78.0 % with 8; with all 8 at the start 73.7 %. Around a "
        "smaller base model (appendix B, figures 5 and 6) a larger size tends to be better, except "
        "where the largest model overfits, and more bands and a higher resolution tend to help."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test images or data sets.",
        "The learning rate and the number of epochs were chosen once, for the base model, and not "
        "searched for any arm. A larger arm may need other ones.",
        "A change of one field also changes parameters and FLOPs; the table has both. A comparison "
        "at equal FLOPs may have another result.",
        "Nothing here overfits as the paper's large models on ImageNet do. What sharing gains by "
        "less overfitting shows only in a larger model that is trained for longer.",
    ),
)
