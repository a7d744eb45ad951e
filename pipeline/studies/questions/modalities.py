"""Image and text in one byte array: one, both, one dropped at test time, wrong or mislabelled."""

from typing import Any

from pipeline.studies.caption_data import CAPTIONED, CAPTIONS, MAX_BYTES
from pipeline.studies.questions.small import LARGE_IMAGES, small_images
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

IMAGE, CAPTION, BOTH, DROPS = "image", "caption", "both", "both, dropout"
_OTHERS, _SWAPPED = "others' captions", "labels swapped"
_CONDITIONS = {
    "no caption": "without text",
    "no image": "without image",
    _OTHERS: "others' text",
    _SWAPPED: "labels swapped",
}
_NAMES, _DROPOUT = ("image", "text"), 0.3


def _label(model: str, condition: str) -> str:
    return f"{model}: {condition}"


def _arm(model: str) -> Arm:
    conditions = {_label(model, name): what for name, what in _CONDITIONS.items()}
    return Arm(
        model,
        {f"model.modalities.{name}.dropout": _DROPOUT * (model == DROPS) for name in _NAMES},
        data=CAPTIONED,
        work="modalities",
        options={"conditions": conditions},
        also=tuple(conditions),
    )


def _by_data(
    channels: int, num_bands: int, max_bytes: int = MAX_BYTES
) -> dict[str, dict[str, Any]]:
    """Return what the arms with captions change."""
    text = {"kind": "token_embedding", "num_channels": channels}
    given: dict[str, Any] = {"data.text": {"max_length": max_bytes}, "model.positions": {}}
    image = {
        "adapter": {"kind": "pixels"},
        "positions": {"kind": "fourier", "num_bands": num_bands},
    }
    return {
        CAPTIONS: {**given, "data.image": None, "model.adapter": text},
        CAPTIONED: {
            **given,
            "model.adapter": None,
            "model.modalities": {"image": image, "text": {"adapter": text}},
        },
    }


def answer(found: Found) -> str:
    """Return the answer in one line."""

    def told(arm: str, base: str) -> str:
        each = found.difference(arm, base)
        clear = "" if each.is_clear else ", not clear"
        return f"{100 * each.mean:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f}{clear})"

    def dropped(model: str) -> str:
        image = told(_label(model, "no caption"), IMAGE)
        caption = told(_label(model, "no image"), CAPTION)
        return f"{image} without the caption and {caption} without the image"

    return (
        f"points of accuracy of both in one array: {told(BOTH, IMAGE)} beside the image alone, "
        f"{told(BOTH, CAPTION)} beside the caption alone; dropped at test time, beside models that "
        f"had only the other: {dropped(BOTH)}, and after a training that drops modalities "
        f"{dropped(DROPS)}; with others' captions {told(_label(BOTH, _OTHERS), BOTH)}, with "
        f"swapped labels {told(_label(BOTH, _SWAPPED), BOTH)}"
    )


STUDY = Study(
    name="modalities",
    question="Image and text in one byte array: does it help, and what if one is missing?",
    samples="sample",
    arms=(Arm(IMAGE), Arm(CAPTION, data=CAPTIONS), _arm(BOTH), _arm(DROPS)),
    pairs=(
        Pair(BOTH, IMAGE),
        Pair(BOTH, CAPTION),
        Pair(DROPS, BOTH),
        *(
            Pair(_label(model, condition), alone)
            for model in (BOTH, DROPS)
            for condition, alone in (("no caption", IMAGE), ("no image", CAPTION))
        ),
        *(
            Pair(_label(model, condition), model)
            for model in (BOTH, DROPS)
            for condition in (_OTHERS, _SWAPPED)
        ),
    ),
    scales={
        "tiny": Scale(
            "digits",
            {**small_images(2), "training.batch_size": 256},
            seeds=2,
            by_data=_by_data(32, 8),
        ),
        "small": Scale("digits", small_images(10), seeds=5, by_data=_by_data(32, 8)),
        "full": Scale(
            "imagenet",
            {
                **LARGE_IMAGES,
            },
            seeds=5,
            needs_data=True,
            by_data=_by_data(256, 64, 64),
        ),
    },
    answer=answer,
    notes=(
        "The images are handwritten digits. A caption is the word of the digit in English, German, "
        "French or Spanish, in which each letter was replaced by a random one with a probability "
        "of 60 %, so that neither medium tells all. The model reads pixels and bytes as tokens of "
        "one array, padded to one width by vectors that are learned for each medium.",
        "*Dropout* loses each medium of a training sample with a probability of 30 %, never both. "
        "*No caption* and *no image* leave the tokens of one medium out at test time. With "
        "*others' captions* each image has the caption of another sample, which shows the same "
        "digit one time in ten. With *labels swapped*, "
        "tokens of pixels and of bytes end in the learned channels that say what the other is.",
        "The conditions test the weights of the same trainings, so that they differ in nothing "
        "else. `--scale full` takes images from `--data FOLDER`, and from `FOLDER/captioned` "
        "images with texts of the same names.",
    ),
    paper=(
        "The paper (Jaegle et al. 2021, [arXiv 2103.03206](https://arxiv.org/abs/2103.03206)) "
        "reports on AudioSet, without intervals (table 3): raw audio 38.3 mAP, video 25.8 and both "
        "43.5. It drops video in training with a probability of 0.3, since the model otherwise "
        "overfits to it (section 4.2), and does not test with one of them missing."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test samples or data sets.",
        "The captions are drawn, not written: how much they tell, and that their noise is "
        "independent of the image, was chosen. Real captions share causes with their images.",
        "An image has 256 tokens and a caption at most 8. With a longer text, or fewer pixels, "
        "the balance may be another.",
        "The learning rate and the number of epochs were chosen once, for the image alone, and not "
        "searched for any arm. The arm with dropout sees each medium less often.",
        "Of *labels swapped*, only the channels that both media learn are swapped; the rest of a "
        "token still shows what it is.",
    ),
)
