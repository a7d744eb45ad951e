"""Feature maps of a pretrained ResNet as keys and values at each attend?"""

from typing import Any

from pipeline.studies.questions.small import LARGE_IMAGES, small_images
from pipeline.studies.study import Arm, Found, Pair, Scale, Study
from pipeline.studies.works.backbones import EARLY, LATE, MIDDLE, PIXELS

_MAPS = (EARLY, MIDDLE, LATE)
_NUM_ATTENDS = 4
_ADAPTER, _ENCODER = "model.adapter", "model.encoder"
RAW, ALL, BOTH = "pixels", "three maps", "pixels and three maps"
LINEAR = "linear layer on the late map"
TRAINED, NEW = "trained", "new"


def _map(name: str) -> str:
    return f"{name} map"


def _label(what: str, *how: str) -> str:
    return ", ".join((what, *how))


def _arm(label: str, outputs: tuple[str, ...], *, frozen: bool = True, new: bool = False) -> Arm:
    return Arm(
        label,
        {f"{_ADAPTER}.outputs": list(outputs)},
        work="features",
        options={"pretrained": not new, "frozen": frozen},
    )


_ARMS = (
    _arm(RAW, (PIXELS,)),
    *(_arm(_map(name), (name,)) for name in _MAPS),
    _arm(ALL, _MAPS),
    _arm(BOTH, (PIXELS, *_MAPS)),
    _arm(_label(ALL, TRAINED), _MAPS, frozen=False),
    _arm(_label(BOTH, TRAINED), (PIXELS, *_MAPS), frozen=False),
    _arm(_label(ALL, NEW), _MAPS, new=True),
    _arm(_label(ALL, NEW, TRAINED), _MAPS, frozen=False, new=True),
)
_PAIRS = (
    *(Pair(_map(name), RAW) for name in _MAPS),
    Pair(ALL, RAW),
    Pair(BOTH, RAW),
    Pair(ALL, _map(LATE)),
    Pair(BOTH, ALL),
    Pair(_label(ALL, TRAINED), ALL),
    Pair(_label(BOTH, TRAINED), BOTH),
    Pair(ALL, _label(ALL, NEW)),
    Pair(_label(ALL, TRAINED), _label(ALL, NEW, TRAINED)),
)


def answer(found: Found) -> str:
    """Return the answer in one line."""

    def told(arm: str, base: str) -> str:
        each = found.difference(arm, base)
        clear = "" if each.is_clear else ", not clear"
        return f"{100 * each.mean:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f}{clear})"

    maps = ", ".join(f"{_map(name)} {told(_map(name), RAW)}" for name in _MAPS)
    text = (
        f"points of accuracy beside raw pixels with a frozen ResNet: {maps}, {ALL} at successive "
        f"attends {told(ALL, RAW)}, {BOTH} {told(BOTH, RAW)}; of {ALL}, training the ResNet, too, "
        f"adds {told(_label(ALL, TRAINED), ALL)}, and its pretraining "
        f"{told(ALL, _label(ALL, NEW))} if it is frozen and "
        f"{told(_label(ALL, TRAINED), _label(ALL, NEW, TRAINED))} if it is trained"
    )
    if LINEAR in found.means:
        text += f"; {LINEAR} has {100 * found.means[LINEAR].mean:.1f} %"
    return text


def _backbone(network: str, num_channels: int) -> dict[str, Any]:
    return {
        "kind": "backbone",
        "module": f"pipeline.studies.works.backbones:{network}",
        "outputs": [PIXELS],
        "num_channels": num_channels,
    }


def _attends() -> dict[str, Any]:
    return {
        f"{_ENCODER}.num_blocks": _NUM_ATTENDS,
        f"{_ENCODER}.num_cross_attends": _NUM_ATTENDS,
        f"{_ENCODER}.share_cross_attends": "none",
    }


def _small(epochs: int) -> dict[str, Any]:
    return {**small_images(epochs), _ADAPTER: _backbone("DigitsResNet", 64), **_attends()}


STUDY = Study(
    name="features",
    question="Feature maps of a pretrained ResNet as keys and values at each attend?",
    arms=(*_ARMS, Arm(LINEAR, work="linear")),
    pairs=(*_PAIRS, Pair(_map(LATE), LINEAR), Pair(ALL, LINEAR)),
    scales={
        "tiny": Scale("digits", {**_small(2), "training.batch_size": 256}, seeds=2),
        "small": Scale("digits", _small(5), seeds=5),
        "full": Scale(
            "imagenet",
            {
                **LARGE_IMAGES,
                "model.pixel_mean": [0.485, 0.456, 0.406],
                "model.pixel_std": [0.229, 0.224, 0.225],
                _ADAPTER: _backbone("ImageNetResNet", 256),
                **_attends(),
            },
            seeds=5,
            needs_data=True,
            arms=_ARMS,
            pairs=_PAIRS,
        ),
    },
    answer=answer,
    notes=(
        f"The Perceiver has {_NUM_ATTENDS} cross-attends with weights of their own. They read one "
        "map each, in the order of the label, and then again from the first. *Early*, *middle* and "
        "*late* are the maps after the three stages of a small ResNet: the image's size, a half "
        "and a quarter of it. Each map, and the pixels, pass a linear layer to as many channels, "
        "and get the Fourier features of their own grid, so that all arms have the same latents "
        "and attends.",
        "The ResNet was trained before on scikit-learn's 1,797 digits, which other people wrote, "
        "of 8 × 8 pixels, enlarged to the size of ours: once for each seed. *Frozen* unless the "
        "label says *trained*; then its weights learn with the rest, and its batch norms keep "
        "their statistics. *New* are random weights, whose batch norms know the statistics of "
        "1,024 training images.",
        f"*{LINEAR.capitalize()}* is logistic regression on the means over places of the late map "
        "of the frozen, pretrained ResNet: what the maps give without a Perceiver. It reads the "
        "same training images. `--scale full` takes images from `--data FOLDER`, and the ResNet-50 "
        "that transformers loads as `microsoft/resnet-50`, of which it reads the last three "
        "stages.",
    ),
    paper=(
        "The papers read no maps of a pretrained network. The Perceiver IO paper (Jaegle et al. "
        "2021, [arXiv 2107.14795](https://arxiv.org/abs/2107.14795)) reports on ImageNet 79.0 % "
        "with Fourier features on pixels, and 82.1 % where a convolution and a maximum over places "
        "come first and are trained with the rest, without intervals."
    ),
    uncontrolled=(
        "The interval is over seeds of both trainings (weights and order of the samples), not over "
        "other test images or data sets.",
        "Maps have other numbers of tokens than pixels: a quarter or a sixteenth. The Perceiver "
        "reads them with as many FLOPs in its latents, and fewer in its cross-attends.",
        "The ResNet learned the same task from other images. Maps of a network that was trained "
        "for another task may help less.",
        "The learning rate and the number of epochs were chosen once, for pixels, and not searched "
        "for any arm; a pretrained network is often trained with a smaller rate than the rest.",
        "The pretrained arms know 1,797 labelled digits more than the others.",
    ),
)
