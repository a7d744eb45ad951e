"""Do attention maps depend on the input at all? And what do later cross-attends read?"""

from pipeline.studies.metrics import ACCURACY, Metric
from pipeline.studies.questions.small import LARGE_IMAGES, SMALL
from pipeline.studies.study import Arm, Found, Pair, Scale, Study
from pipeline.studies.works import attention as work

OWN, SHARED, ONE = "own weights", "shared weights", "1 cross-attend"
_ENCODER = "model.encoder"
_SEEN = (work.POSITIONS, work.MEAN, work.OTHER)
_CURVES = (work.UNTRAINED, work.SHUFFLED, work.SAME)
_NUM_ATTENDS = 4
DIVERGENCE = Metric(
    "divergence",
    "divergence of maps",
    "bits",
    spec=".4f",
    along="cross-attend",
    told="The Jensen-Shannon divergence between the attention maps of two of 16 test images, the "
    "mean over pairs, heads and latents. At 0 the maps are the same whatever the image is; at 1 "
    "they have no pixel in common. *Before training* has the weights that the training began with. "
    "*An image and its shuffled pixels* are compared with each other: what is left of a map if "
    "the same contents stand elsewhere. *Of one class* compares images of the same class only.",
)


def _arm(label: str, **values: object) -> Arm:
    also = (
        *(_later(label, what) for what in _SEEN),
        _label(label, work.FIRST),
        *(_label(label, what) for what in _CURVES),
    )
    dotted = {f"{_ENCODER}.{name}": value for name, value in values.items()}
    return Arm(label, dotted, work="attention", options={"label": label}, also=also)


def _label(arm: str, what: str) -> str:
    return f"{arm}, {what}"


def _later(arm: str, what: str) -> str:
    return _label(arm, f"later see {what}")


def answer(found: Found) -> str:
    """Return the answer in one line."""
    curves = found.curves(DIVERGENCE.name)

    def curve(label: str) -> str:
        return ", ".join(DIVERGENCE.shown(mean.mean) for mean in curves[label].values())

    def told(arm: str, base: str) -> str:
        each = found.difference(arm, base)
        clear = "" if each.is_clear else ", not clear"
        shown = (ACCURACY.shown_difference(e, ".1f") for e in (each.mean, each.low, each.high))
        return "{} ({} to {}{})".format(*shown, clear)

    trained = [
        found.difference(OWN, _label(OWN, work.UNTRAINED), DIVERGENCE.name, at)
        for at in curves[OWN]
    ]
    more = sum(each.is_clear and each.mean > 0 for each in trained)
    later = ", ".join(f"{told(_later(OWN, what), OWN)} with {what}" for what in _SEEN)
    return (
        f"maps of two images differ by {curve(OWN)} bits, cross-attend by cross-attend (before "
        f"training {curve(_label(OWN, work.UNTRAINED))}; clearly more than before training in "
        f"{more} of {len(trained)}); points of accuracy when all cross-attends but the first see "
        f"something else than the image: {later}; trained with one cross-attend {told(ONE, OWN)}"
    )


def _small(epochs: int) -> dict[str, object]:
    return {
        **SMALL,
        "data.image.height": 16,
        "data.image.width": 16,
        "model.adapter": {"kind": "pixels"},
        f"{_ENCODER}.num_blocks": _NUM_ATTENDS,
        f"{_ENCODER}.num_cross_attends": _NUM_ATTENDS,
        f"{_ENCODER}.share_cross_attends": "none",
        "training.epochs": epochs,
    }


STUDY = Study(
    name="attention",
    question="Attention maps look static: do they depend on the input at all?",
    arms=(
        _arm(OWN),
        _arm(SHARED, share_cross_attends="all"),
        Arm(ONE, {f"{_ENCODER}.num_cross_attends": 1}),
    ),
    pairs=(
        *(
            Pair(label, arm)
            for arm in (OWN, SHARED)
            for label in (*(_later(arm, what) for what in _SEEN), _label(arm, work.FIRST))
        ),
        Pair(ONE, OWN),
        *(
            Pair(arm, _label(arm, what), DIVERGENCE.name, at)
            for arm in (OWN, SHARED)
            for what in _CURVES
            for at in range(1, _NUM_ATTENDS + 1)
        ),
    ),
    scales={
        "tiny": Scale("digits", {**_small(2), "training.batch_size": 256}, seeds=2),
        "small": Scale("digits", _small(6), seeds=5),
        "full": Scale(
            "imagenet",
            {
                **LARGE_IMAGES,
                f"{_ENCODER}.num_blocks": _NUM_ATTENDS,
                f"{_ENCODER}.num_cross_attends": _NUM_ATTENDS,
                f"{_ENCODER}.share_cross_attends": "none",
            },
            seeds=5,
            needs_data=True,
        ),
    },
    answer=answer,
    notes=(
        f"The Perceiver has {_NUM_ATTENDS} cross-attends, each before a block of self-attends, "
        "with weights of their own or the same for all. After the training, the test is repeated "
        "with all cross-attends but the first reading something else: tokens whose content is zero "
        "(*positions only*), the mean of the training images, or the next image of the batch. "
        "*The first sees positions only* is the reverse. No weights change. What is lost is what "
        "these cross-attends had read from the image, and also what the model makes of contents "
        "that it has never seen; the arm of one cross-attend, trained so, has only the former.",
    ),
    paper=(
        "The paper (Jaegle et al. 2021, [arXiv 2103.03206](https://arxiv.org/abs/2103.03206)) "
        "shows maps of ImageNet models (section 4.1, figure 3) and says of them that those of the "
        "first cross-attend look at the image and scan it, and that later ones show repeating "
        "patterns of high frequency, like those of the position features. It measures no "
        "dependence on the input."
    ),
    uncontrolled=(
        "The interval is over seeds of the training, not over other test images. The images whose "
        "maps are compared are the same for all seeds.",
        "A divergence says that maps differ, not that the difference matters. The test with other "
        "contents says that.",
        "Layer normalisation divides positions and content by one standard deviation, so that even "
        "a query that looks only at positions has maps that differ a little: compare with the "
        "curve before training.",
        "Handwritten digits are centred and alike: with objects anywhere in an image, maps may "
        "have more to gain by following them.",
        "Content that is zero, or a mean, was never seen in training. A model trained with such "
        "inputs may lose less.",
    ),
    metrics=(ACCURACY, DIVERGENCE),
)
