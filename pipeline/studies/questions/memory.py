"""Latents carried from part to part: a long-term memory?"""

from typing import Any

from pipeline.studies.image_sizes import images_of_side
from pipeline.studies.metrics import PARAMETERS, SECONDS, Metric
from pipeline.studies.questions.small import SMALL
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

_LATENTS = "model.encoder.num_latents"
BASE, FEW, MANY = "16 latents", "4 latents", "64 latents"
CUT = "16 latents, no gradient between parts"
TRUNCATED, GRU, SLOTS = "nothing carried, last 4 parts", "GRU", "slot memory"
RECALL = Metric(
    "recall",
    "recall",
    "%",
    100,
    ".1f",
    step="points",
    along="parts ago",
    told="The share of the parts of test streams whose digit the model names so many parts later. "
    "Guessing names 10 %. At 0 it names the digit that it has just read.",
)


def _arms(parts: int, lags: tuple[int, ...]) -> tuple[Arm, ...]:
    options = {
        "lags": list(lags), "parts": parts, "tested_parts": 2 * parts, "context": 4, "slots": 16,
    }  # fmt: skip

    def arm(label: str, model: str, **values: Any) -> Arm:
        return Arm(
            label,
            {_LATENTS: values["latents"]} if values else {},
            data=images_of_side(8),
            work="recall",
            options={**options, "model": model},
        )

    return (
        arm(BASE, "carried"),
        arm(FEW, "carried", latents=4),
        arm(MANY, "carried", latents=64),
        arm(CUT, "cut"),
        arm(TRUNCATED, "truncated"),
        arm(GRU, "gru"),
        arm(SLOTS, "slots"),
    )


def _pairs(lags: tuple[int, ...]) -> tuple[Pair, ...]:
    others = (FEW, MANY, CUT, TRUNCATED, GRU, SLOTS)
    return tuple(Pair(other, BASE, at=lag) for lag in reversed(lags) for other in others)


def answer(found: Found) -> str:
    """Return the answer in one line."""
    curves = found.curves(RECALL.name)
    last = max(curves[BASE])

    def told(label: str) -> str:
        each = found.difference(label, BASE, at=last)
        clear = "" if each.is_clear else ", not clear"
        shown = [RECALL.shown_difference(e, ".1f") for e in (each.mean, each.low, each.high)]
        return f"{label} {shown[0]} ({shown[1]} to {shown[2]}{clear})"

    ours = ", ".join(
        f"{RECALL.shown(mean.mean)} % {at} parts ago" for at, mean in curves[BASE].items()
    )
    others = ", ".join(map(told, (FEW, MANY, CUT, TRUNCATED, GRU, SLOTS)))
    best = max(curves, key=lambda label: curves[label][last].mean)
    return (
        f"latents carried over parts recall {ours}, where guessing has 10 %; {last} parts ago, in "
        f"points beside {BASE}: {others}; the best there is {best} with "
        f"{RECALL.shown(curves[best][last].mean)} %"
    )


def _small(epochs: int, parts: int) -> dict[str, Any]:
    return {
        **SMALL,
        "model.adapter": {"kind": "pixels"},
        "model.positions": {"num_bands": 4},
        _LATENTS: 16,
        "model.encoder.num_blocks": 1,
        "model.encoder.num_cross_attends": 1,
        "model.encoder.latent_init_std": 1.0,
        "training.batch_size": 8 * parts,
        "training.epochs": epochs,
    }


_LAGS, _PARTS = (0, 1, 2, 4, 8), 12
_FULL_LAGS, _FULL_PARTS = (0, 1, 2, 4, 8, 16, 32), 48

STUDY = Study(
    name="memory",
    question="Latents carried from part to part: are they a long-term memory?",
    arms=_arms(_PARTS, _LAGS),
    pairs=_pairs(_LAGS),
    scales={
        "tiny": Scale(
            "digits",
            {**_small(2, 4), "training.batch_size": 128},
            seeds=2,
            arms=_arms(4, (0, 2)),
            pairs=_pairs((0, 2)),
        ),
        "small": Scale("digits", _small(40, _PARTS), seeds=5),
        "full": Scale(
            "digits",
            {
                **_small(2000, _FULL_PARTS),
                "model.encoder.latent_dim": 256,
                "model.encoder.cross_channels": 128,
                "model.encoder.num_self_attends": 2,
                "training.learning_rate": 1e-3,
            },
            seeds=5,
            arms=_arms(_FULL_PARTS, _FULL_LAGS),
            pairs=_pairs(_FULL_LAGS),
        ),
    },
    answer=answer,
    notes=(
        "A stream is a sequence of handwritten digits, one for each part, in random order. After "
        "each part the model names the digit that it sees and those of some parts ago, all by "
        "learned output queries of its state. So its memory has to keep the last digits in order, "
        "and to drop older ones. Training streams grow from one part to 12 in the first half of "
        "the epochs (48 at the full scale), and test streams have twice as many.",
        "The Perceiver starts each part from the latents after the part before, as `state` does in "
        "`PerceiverClassifier.forward_state` and `training.stream` in trainings. Gradients reach "
        "back through all parts of a training stream. *No gradient between parts* carries the same "
        "latents and cuts the gradient after each part, as a stream does that is trained part by "
        "part. *Nothing carried* reads the pixels of the last parts again, as one input: a context "
        "that is truncated.",
        "*GRU* is torch's over vectors of whole images. *Slot memory* is as in Memformer (Wu et "
        "al. 2020, [arXiv 2010.06891](https://arxiv.org/abs/2010.06891)): 16 slots, each of which "
        "attends to itself and the part's tokens, and not to other slots. Both have as many "
        "parameters as the Perceiver of 16 latents within 5 %, and the same batches, optimizer, "
        "schedule and clipping.",
    ),
    paper=(
        "The Perceiver papers carry no latents from input to input. Memformer reports a lower "
        "perplexity of text than Transformer-XL at less memory. Perceiver AR (Hawthorne et al. "
        "2022, [arXiv 2202.07765](https://arxiv.org/abs/2202.07765)) takes the other way: it reads "
        "all of a long context again for each step."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights, order and streams), not over other "
        "test images.",
        "The learning rate and the number of epochs were chosen once, for 16 latents, and not "
        "searched for any arm. A slower learner may recall more after more epochs.",
        "Streams are short, and what is to be kept is little: a class of ten for each part. "
        "Longer or richer streams may need more latents.",
        "What is asked for is known in advance: the distances are the same in training and test. "
        "A memory that must guess what will matter has a harder task.",
        "Parameters are equal but for the number of latents, which adds a few. Time is not: the "
        "table has it.",
    ),
    samples="stream",
    metrics=(RECALL,),
    columns=(PARAMETERS, SECONDS),
    measured="Every recall is on streams of test images that no training has seen, of the weights "
    "after the last epoch.",
)
