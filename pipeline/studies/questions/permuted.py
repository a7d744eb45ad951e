"""Does the Perceiver need the image's structure? Permuted pixels, as in the paper's Table 2."""

from pipeline.studies.image_data import PERMUTED, SHUFFLED
from pipeline.studies.questions.small import small_images
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

FOURIER, LEARNED = "Perceiver, Fourier", "Perceiver, learned positions"
PEERS = ("ResNet", "ViT")
_LEARNED = {"model.positions": {"kind": "learned", "num_channels": 32, "projected_channels": None}}


def _permuted(label: str) -> str:
    return f"{label}, permuted"


def answer(found: Found) -> str:
    """Return the answer in one line."""
    known = found.difference(_permuted(FOURIER), FOURIER)
    learned = found.difference(_permuted(LEARNED), LEARNED)
    losses = {name: found.difference(_permuted(name), name) for name in PEERS}

    def points(value: float) -> str:
        return f"{100 * value:+.1f}"

    ours = ", ".join(
        f"{points(each.mean)} ({points(each.low)} to {points(each.high)}) {what}"
        for each, what in ((known, "with Fourier features"), (learned, "with learned positions"))
    )
    theirs = ", ".join(
        f"{name} {points(each.mean)} ({points(each.low)} to {points(each.high)})"
        for name, each in losses.items()
    )
    best = max(found.means, key=lambda label: found.means[label].mean)
    return (
        "points of accuracy when the pixels are permuted and their positions stay known: "
        f"Perceiver {ours}; {theirs}; the best of all arms is {best} with "
        f"{100 * found.means[best].mean:.1f} %"
    )


STUDY = Study(
    name="permuted",
    question="Does it need the image's structure?",
    arms=(
        Arm(FOURIER),
        Arm(_permuted(FOURIER), data=PERMUTED),
        Arm("Perceiver, Fourier, positions lost", data=SHUFFLED),
        Arm(LEARNED, _LEARNED),
        Arm(_permuted(LEARNED), _LEARNED, data=PERMUTED),
        *(
            arm
            for name in PEERS
            for arm in (
                Arm(name, peer=name.lower()),
                Arm(_permuted(name), data=PERMUTED, peer=name.lower()),
            )
        ),
    ),
    pairs=(
        *(Pair(_permuted(name), name) for name in (FOURIER, LEARNED, *PEERS)),
        Pair("Perceiver, Fourier, positions lost", FOURIER),
        *(Pair(name, FOURIER) for name in PEERS),
        *(Pair(_permuted(name), _permuted(FOURIER)) for name in PEERS),
    ),
    scales={
        "tiny": Scale("digits", {**small_images(2), "training.batch_size": 256}, seeds=2),
        "small": Scale("digits", small_images(7), seeds=5),
        "full": Scale(
            "imagenet",
            {
                "data.validation": None,
                "data.image.encoding": "raw",  # permuted pixels are no picture for JPEG
                "training.augment": {},
                "training.label_smoothing": 0.0,
                "training.gradient_accumulation_steps": 16,
            },
            seeds=5,
            needs_data=True,
        ),
    },
    answer=answer,
    notes=(
        "One permutation is drawn once and applied to the pixels of every image. With *Fourier* "
        "and *permuted*, each pixel keeps the Fourier features of the place where it was, as in "
        "the paper. With *positions lost*, it has those of the place where it is now. With "
        "*learned positions* the model is told nothing about places.",
        "The ResNet and the ViT read the same features of positions as further channels, permuted "
        "like the pixels, as in the paper. They have as many parameters as the Perceiver within "
        "5 %, and the same batches, optimizer, schedule and clipping.",
        "That a Perceiver with known positions loses nothing has no need of a training: its "
        "cross-attend is a sum over tokens in any order, so the permuted model is the same "
        "function to rounding. The trainings show that the pipeline keeps it, how much another "
        "order of the samples changes, and what the others lose.",
    ),
    paper=(
        "The paper's Table 2 (Jaegle et al. 2021, [arXiv 2103.03206]"
        "(https://arxiv.org/abs/2103.03206)) reports ImageNet top-1 accuracy, raw and permuted, "
        "without intervals: ResNet-50 with Fourier features 73.5 and 39.4, ViT-B-16 with Fourier "
        "features 76.7 and 61.7, a Transformer on 64 × 64 pixels 57.0 and 57.0, Perceiver with "
        "Fourier features 78.0 and 78.0, with learned "
        "positions 70.9 and 70.9."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test images, data sets or permutations.",
        "The learning rate and the number of epochs were chosen once, for the Perceiver, and not "
        "searched for any arm. With more epochs or augmentation the peers' and the Perceiver's "
        "accuracies rise, and their order without permutation may change.",
        "Augmentation is off for all, because most of it assumes the grid. With it, models of a "
        "grid gain more.",
        "Only parameters are equal. FLOPs and seconds differ; the table has them.",
        "A set has its own order of samples for each seed. So a pair shares the seed of the "
        "weights, but not the batches, if its arms are trained on different sets.",
    ),
)
