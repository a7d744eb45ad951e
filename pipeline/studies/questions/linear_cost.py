"""Others read linearly, too: Performer and Set Transformer, beside full attention."""

import math
from typing import Any

from pipeline.studies.image_sizes import images_of_side
from pipeline.studies.metrics import ACCURACY, COLUMNS, Metric
from pipeline.studies.questions.small import LARGE_IMAGES, SMALL
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

OURS = "Perceiver"
PEERS = {
    "Performer": "performer",
    "Set Transformer": "set-transformer",
    "full attention": "transformer",
}
TIME = Metric(
    "step_ms",
    "time of a step",
    "ms",
    spec=",.1f",
    higher_is_better=False,
    is_ratio=True,
    along="tokens",
    log_along=True,
    told="Forward and backward pass of one image with new weights, on the resources of one trial: "
    "the median of three steps after one that warms up.",
)
MEMORY = Metric(
    "step_mib",
    "memory of a step",
    "MiB",
    spec=",.1f",
    higher_is_better=False,
    is_ratio=True,
    along="tokens",
    log_along=True,
    told="The most that the tensors of these passes take at once, without weights and finished "
    "gradients of weights.",
)
_ACCURACY = Metric(
    ACCURACY.name,
    ACCURACY.title,
    ACCURACY.unit,
    ACCURACY.factor,
    step=ACCURACY.step,
    along="tokens",
    log_along=True,
    axis=ACCURACY.axis,
    told="Each point is a training of its own on the same images, drawn with so many pixels.",
)


def _arms(sides: tuple[int, ...], cost_sides: tuple[int, ...], limit_s: float) -> tuple[Arm, ...]:
    """Return the trainings at some sides, and the measurements at others."""
    arms = []
    for label, peer in {OURS: None, **PEERS}.items():
        arms += [
            Arm(
                f"{label}, {side**2:,} tokens",
                data=images_of_side(side),
                peer=peer,
                line=(label, side**2),
            )
            for side in sides
        ]
        options = {"peer": peer, "sides": list(cost_sides), "limit_s": limit_s}
        arms.append(Arm(label, data=images_of_side(sides[0]), work="ladder", options=options))
    return tuple(arms)


def _pairs(sides: tuple[int, ...], cost_sides: tuple[int, ...]) -> tuple[Pair, ...]:
    first, last, third = cost_sides[0] ** 2, cost_sides[-1] ** 2, cost_sides[2] ** 2
    return (
        *(Pair(peer, OURS, at=side**2) for side in reversed(sides) for peer in PEERS),
        *(
            Pair(peer, OURS, metric.name, at)
            for metric in (TIME, MEMORY)
            for at in dict.fromkeys((first, third, last))
            for peer in PEERS
        ),
    )


def answer(found: Found) -> str:
    """Return the answer in one line."""
    last = max(each.at or 0 for each in found.differences if each.metric == _ACCURACY.name)

    def told(peer: str) -> str:
        each = found.difference(peer, OURS, at=last)
        low, high = (_ACCURACY.shown_difference(end, ".1f") for end in (each.low, each.high))
        clear = "" if each.is_clear else ", not clear"
        return f"{peer} {_ACCURACY.shown_difference(each.mean, '.1f')} ({low} to {high}{clear})"

    ours = found.curves(_ACCURACY.name)[OURS][last].mean
    parts = [
        f"at {last:,} tokens and as many parameters, points of accuracy beside the Perceiver's "
        f"{100 * ours:.1f} %: {', '.join(map(told, PEERS))}"
    ]
    for metric, what in ((TIME, "time"), (MEMORY, "memory")):
        grown = [f"{label} {_told(found, metric, label)}" for label in (OURS, *PEERS)]
        parts.append(f"{what} of a training step: {', '.join(grown)}")
    return "; ".join(parts)


def _told(found: Found, metric: Metric, label: str) -> str:
    """Return a metric where a curve ends, and the power of the tokens with which it grew last."""
    curve = found.curves(metric.name).get(label, {})
    if len(curve) < 2:
        return "not measured"
    (before, earlier), (last, mean) = list(curve.items())[-2:]
    power = math.log(mean.mean / earlier.mean) / math.log(last / before)
    return f"{metric.shown(mean.mean)} {metric.unit} at {last:,} tokens (growing as N^{power:.1f})"


def _small(epochs: int) -> dict[str, Any]:
    return {
        **SMALL,
        "model.adapter": {"kind": "pixels"},
        "model.encoder.num_blocks": 2,
        "model.encoder.num_cross_attends": 2,
        "training.epochs": epochs,
    }


_SIDES, _COST_SIDES = (8, 12, 16), (32, 64, 128, 224, 316)
_FULL_SIDES = (64, 112, 224)

STUDY = Study(
    name="linear-cost",
    question="Performers and Set Transformers grow linearly already: what does it do better?",
    arms=_arms(_SIDES, _COST_SIDES, 20.0),
    pairs=_pairs(_SIDES, _COST_SIDES),
    scales={
        "tiny": Scale(
            "digits",
            {**_small(2), "training.batch_size": 256},
            seeds=2,
            arms=_arms((4, 8), (8, 12, 16), 20.0),
            pairs=_pairs((4, 8), (8, 12, 16)),
        ),
        "small": Scale("digits", _small(4), seeds=5),
        "full": Scale(
            "imagenet",
            {
                **LARGE_IMAGES,
                "model.positions": {"num_bands": 64},
            },
            seeds=5,
            needs_data=True,
            arms=_arms(_FULL_SIDES, _COST_SIDES, 60.0),
            pairs=_pairs(_FULL_SIDES, _COST_SIDES),
        ),
    },
    answer=answer,
    notes=(
        "All read one token for each pixel, with the Fourier features of its position, and have as "
        "many parameters as the Perceiver within 5 %, the same batches, optimizer, schedule and "
        "clipping. *Performer* is a Transformer whose attention is FAVOR+ (Choromanski et al. "
        "2020, [arXiv 2009.14794](https://arxiv.org/abs/2009.14794)): positive orthogonal random "
        "features, d log d of them for heads of d channels, drawn once. *Set Transformer* (Lee et "
        "al. 2018, [arXiv 1810.00825](https://arxiv.org/abs/1810.00825)) has induced set attention "
        "blocks (ISAB) and pools by one learned query (PMA). *Full attention* is the same "
        "Transformer with torch's fused attention, which needs no memory for the matrix of "
        "weights.",
        "All four models but full attention are linear in the tokens. They differ in what "
        "happens there: a Performer and an ISAB compute a layer for each token, so that depth "
        "costs as many times as there are tokens; in a Perceiver, only the cross-attends see the "
        "tokens, and depth is of latents.",
        "DETR's object queries (Carion et al. 2020, [arXiv 2005.12872]"
        "(https://arxiv.org/abs/2005.12872)) are the output queries of Perceiver IO: learned "
        "arrays that read what was encoded. They say what comes out, and not what reading costs, "
        "so no arm has them.",
    ),
    paper=(
        "The Perceiver paper (Jaegle et al. 2021, [arXiv 2103.03206]"
        "(https://arxiv.org/abs/2103.03206)) discusses both among related work and trains neither. "
        "The Long Range Arena ([arXiv 2011.04006]"
        "(https://arxiv.org/abs/2011.04006)) reports Performer 51.4 and a Transformer 54.4 as "
        "means of five tasks, without intervals."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test images or data sets. That of times is over trials, which share the machine.",
        "The learning rate and the number of epochs were chosen once, for the Perceiver, and not "
        "searched for any arm.",
        "Accuracy is measured on far fewer tokens than time and memory. That a model affords many "
        "tokens does not say that it learns from them.",
        "Parameters are equal, and depths are not: at the small scale the Perceiver has two "
        "cross-attends and two self-attends, and each of the others has two layers of tokens.",
        "A Performer gains by more random features, and a Set Transformer by more inducing points; "
        "both cost time in proportion.",
    ),
    metrics=(_ACCURACY, TIME, MEMORY),
    columns=COLUMNS,
    measured="Every accuracy is on test images that no training has seen, of the weights after the "
    "last epoch. Time and memory are of one training step of one image.",
)
