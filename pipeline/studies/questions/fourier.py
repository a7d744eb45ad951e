"""Are Fourier features a scale-space prior? Bands, cut-offs, learned positions and none."""

from typing import Any

from pipeline.studies.image_data import BLURRED, UNPLACED
from pipeline.studies.point_data import POINTS
from pipeline.studies.questions.small import LARGE_CLOUDS, SMALL, SMALL_CLOUDS
from pipeline.studies.sound_data import NUM_SAMPLES, SAMPLE_RATE, SOUNDS
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

LEARNED, NONE = "learned positions", "no positions"
_LEARNED = {"model.positions": {"kind": "learned", "num_channels": 32, "projected_channels": None}}
_POSITIONS, _ADAPTER = "model.positions", "model.adapter"
LOW, HIGH, FEW, MANY = "cut-off ÷ 4", "cut-off × 4", "bands ÷ 4", "bands × 4"


def _changes(fields: str) -> dict[str, dict[str, float]]:
    bands, resolution = f"{fields}.num_bands", f"{fields}.max_resolution"
    return {
        LOW: {resolution: 0.25},
        HIGH: {resolution: 4},
        FEW: {bands: 0.25},
        MANY: {bands: 4},
    }


def _label(what: str, change: str | None = None) -> str:
    return f"{what}, {change}" if change else what


def _arms(what: str, data: str, fields: str, changes: tuple[str, ...]) -> tuple[Arm, ...]:
    factors = _changes(fields)
    return (
        Arm(what, data=data),
        *(Arm(_label(what, change), factors=factors[change], data=data) for change in changes),
    )


SHARP, SMOOTH, CLOUDS, NOTES = "images", "blurred images", "points", "sounds"
_IMAGES = (
    *_arms(SHARP, "plain", _POSITIONS, (LOW, HIGH, FEW, MANY)),
    Arm(_label(SHARP, LEARNED), _LEARNED),
    Arm(_label(SHARP, NONE), data=UNPLACED),
)
_BLURRED = _arms(SMOOTH, BLURRED, _POSITIONS, (LOW, HIGH))
_POINTS = _arms(CLOUDS, POINTS, _ADAPTER, (LOW, HIGH, FEW, MANY))
_SOUNDS = (
    *_arms(NOTES, SOUNDS, _POSITIONS, (LOW, HIGH, FEW, MANY)),
    Arm(_label(NOTES, LEARNED), _LEARNED, data=SOUNDS),
)


def _audio(sample_rate: int, num_samples: int, chunk_size: int, num_bands: int) -> dict[str, Any]:
    """Return the dotted fields for sounds, each token a chunk of samples."""
    return {
        "data.image": None,
        "data.audio": {"sample_rate": sample_rate, "seconds": num_samples / sample_rate},
        _ADAPTER: {"kind": "chunks", "chunk_size": chunk_size},
        _POSITIONS: {"num_bands": num_bands, "max_resolution": [num_samples // chunk_size]},
    }


_SMALL_SOUNDS = {**_audio(SAMPLE_RATE, NUM_SAMPLES, 8, 8), "training.epochs": 10}


def _small(epochs: int) -> dict[str, Any]:
    return {
        **SMALL,
        "data.image.height": 16,
        "data.image.width": 16,
        _ADAPTER: {"kind": "pixels"},
        _POSITIONS: {"num_bands": 8, "max_resolution": [16, 16]},
        "model.encoder.num_blocks": 2,
        "model.encoder.num_cross_attends": 2,
        "training.epochs": epochs,
    }


def answer(found: Found) -> str:
    """Return the answer in one line."""

    def told(what: str, change: str) -> str:
        each = found.difference(_label(what, change), what)
        clear = "" if each.is_clear else ", not clear"
        return f"{100 * each.mean:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f}{clear})"

    media = (SHARP, SMOOTH, CLOUDS, NOTES)
    low = ", ".join(f"{told(what, LOW)} on {what}" for what in media)
    high = ", ".join(f"{told(what, HIGH)} on {what}" for what in media)
    return (
        f"points of accuracy by a quarter of the highest frequency: {low}; by four times the "
        f"highest: {high}; on images by a quarter of the bands {told(SHARP, FEW)}, by learned "
        f"positions {told(SHARP, LEARNED)}, by none {told(SHARP, NONE)}"
    )


STUDY = Study(
    name="fourier",
    question="Are Fourier features a scale-space prior?",
    samples="sample",
    arms=(*_IMAGES, *_BLURRED, *_POINTS, *_SOUNDS),
    pairs=(
        *(Pair(arm.label, SHARP) for arm in _IMAGES[1:]),
        *(Pair(arm.label, SMOOTH) for arm in _BLURRED[1:]),
        *(Pair(arm.label, CLOUDS) for arm in _POINTS[1:]),
        *(Pair(arm.label, NOTES) for arm in _SOUNDS[1:]),
    ),
    scales={
        "tiny": Scale(
            "digits",
            {**_small(2), "training.batch_size": 256},
            seeds=2,
            by_data={POINTS: SMALL_CLOUDS, SOUNDS: {**_SMALL_SOUNDS, "training.epochs": 2}},
        ),
        "small": Scale(
            "digits",
            _small(8),
            seeds=5,
            by_data={POINTS: SMALL_CLOUDS, SOUNDS: _SMALL_SOUNDS},
        ),
        "full": Scale(
            "imagenet",
            {
                "data.validation": None,
                "data.image.encoding": "raw",
                "training.augment": {},
                "training.label_smoothing": 0.0,
                "training.gradient_accumulation_steps": 16,
            },
            seeds=5,
            needs_data=True,
            by_data={POINTS: LARGE_CLOUDS, SOUNDS: _audio(48_000, 61_440, 128, 64)},
        ),
    },
    answer=answer,
    notes=(
        "The frequencies of a position reach from one wave over the image to the cut-off, which "
        "the field `max_resolution` gives: at the image's own resolution it is the highest that "
        "pixels can tell apart. A scale-space prior would show in two ways: a low cut-off should "
        "cost where details count, and less where a Gaussian has taken them away; a high one "
        "should cost where neighbours ought to look alike. *Blurred images* are the same images "
        "after a Gaussian of a twelfth of their side.",
        "*Bands* change how densely the frequencies lie up to the same cut-off. *Learned "
        "positions* know nothing of places at the start. *No positions* are zeros in place of the "
        "features: the model sees which pixels there are, and not where.",
        "*Points* are the ink of the same digits, each a cloud of up to 128 points with three "
        "coordinates, moved and scaled into the unit cube. Each token holds the coordinates and "
        "their Fourier features, so that even a low cut-off leaves them.",
        "*Sounds* are quarters of a second at 8 kHz, 8 samples a token, of notes that ten "
        "instruments played: the recordings of the sound font that the package pretty_midi "
        "carries. Each sound begins at a random place of a recording, and is up to two semitones "
        "lower or higher. The test has other recordings of the same instruments. `--scale full` "
        "takes images from `--data FOLDER`, meshes from `FOLDER/points` and sounds from "
        "`FOLDER/sounds`.",
    ),
    paper=(
        "The paper (Jaegle et al. 2021, [arXiv 2103.03206](https://arxiv.org/abs/2103.03206)) "
        "reports on ImageNet 78.0 % with Fourier features and 70.9 % with learned positions "
        "(table 2), and that more bands and a higher maximum resolution tend to help (appendix B, "
        "figures 5 and 6), all without intervals. For ModelNet40 it takes 64 bands up to a "
        "frequency of 1120, ten times that of ImageNet (section 4.3)."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test images or data sets.",
        "The learning rate and the number of epochs were chosen once, for Fourier features of the "
        "image's own resolution, and not searched for any arm.",
        "A change of the bands changes the channels of a token, and with them parameters and "
        "FLOPs; a change of the cut-off changes neither.",
        "Each instrument has 6 to 11 recordings, of which 2 or 3 are the test's: other recordings "
        "may change the accuracy on sounds by much, and that of all arms alike.",
        "Digits fill their frames and are centred. Where objects move and turn, positions matter "
        "less or in another way.",
        "Blurring also takes away what tells some digits apart, so its arms are compared with one "
        "another, and not with those of sharp images.",
    ),
)
