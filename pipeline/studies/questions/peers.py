"""Slower than a ResNet of equal size? Beside ViT, a Transformer and PointNet++, with costs."""

from typing import Any

from pipeline.studies.costs import TIMES
from pipeline.studies.point_data import POINTS
from pipeline.studies.questions.small import LARGE_CLOUDS, SMALL_CLOUDS, small_images
from pipeline.studies.study import Arm, Found, Pair, Scale, Study

OURS, RESNET, VIT, TRANSFORMER = "Perceiver", "ResNet", "ViT", "Transformer"
PEERS = (RESNET, VIT, TRANSFORMER)
CLOUDS, POINTNET = "Perceiver, points", "PointNet++, points"
_WARMUP = "training.schedule.warmup_epochs"
_LONGER = {RESNET: 2, VIT: 4, TRANSFORMER: 0.25, POINTNET: 0.625}
"""By how much the epochs change so that a training takes about as long as the Perceiver's."""


def _as_long(peer: str) -> str:
    return f"{peer}, as long"


def _longer(peer: str) -> dict[str, float]:
    """Return the factors of the epochs and of the parts of the schedule."""
    factor = _LONGER[peer]
    return {
        "training.epochs": factor,
        "training.schedule.flat_epochs": factor,
        _WARMUP: min(factor, 1),
    }


def _small(epochs: int) -> dict[str, Any]:
    return {**small_images(epochs), _WARMUP: 1}


def answer(found: Found) -> str:
    """Return the answer in one line."""

    def told(label: str, ours: str = OURS, name: str = "") -> str:
        each = found.difference(label, ours)
        clear = "" if each.is_clear else ", not clear"
        ends = f"{100 * each.low:+.1f} to {100 * each.high:+.1f}{clear}"
        return f"{name or label} {100 * each.mean:+.1f} ({ends})"

    equal = ", ".join(map(told, PEERS))
    as_long = ", ".join(told(_as_long(peer), name=peer) for peer in PEERS)
    text = (
        f"points of accuracy beside the Perceiver with as many parameters and epochs: {equal}; "
        f"trained for about as long: {as_long}; beside the Perceiver on clouds of points: "
        f"{told(POINTNET, CLOUDS, 'PointNet++')}, for as long "
        f"{told(_as_long(POINTNET), CLOUDS, 'PointNet++')}"
    )
    if found.numbers.get(OURS, {}).get("step_ms_x1"):
        text += f"; {_costs_told(found)}"
    return text


def _costs_told(found: Found) -> str:
    """Return how a step's time compares at the smallest size, and how it grows to the largest."""
    first, last = f"step_ms_x{TIMES[0]}", f"step_ms_x{TIMES[-1]}"
    ours = found.numbers[OURS]
    parts = []
    for label in PEERS:
        theirs = found.numbers[label]
        parts.append(
            f"{label} {theirs[first] / ours[first]:.2f} (and {theirs[last] / ours[last]:.2f} with "
            f"{TIMES[-1] ** 2} times as many pixels)"
        )
    return f"time of a training step as a multiple of the Perceiver's: {', '.join(parts)}"


def section(found: Found) -> str:
    """Return the section on costs at growing sizes."""
    kinds = (("step_ms", "step, ms"), ("infer_ms", "inference, ms"), ("step_mib", "memory, MiB"))
    columns = {
        f"{name}_x{times}": f"{title}, {_pixels(times)}" for name, title in kinds for times in TIMES
    }
    rows = [_row("model", list(columns.values())), "|---" * (1 + len(columns)) + "|"]
    for label in (OURS, *PEERS):
        rows.append(_row(label, [f"{found.numbers[label][name]:.3g}" for name in columns]))
    return "\n".join(["## Time and memory as the image grows", "", *rows, "", _MEASURED])


_MEASURED = """\
All are of one image, in batches of 8, with new weights, in the precision of the trainings, and
means over the seeds. Inference is the faster of torch's two ways for encoder layers. A step is a
forward and a backward pass. Memory is the most that its tensors take, without weights and without
gradients of weights that are finished. At each size, a peer has as many parameters as the Perceiver
within 5 %."""


def _row(first: str, cells: list[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _pixels(times: int) -> str:
    return "1 × pixels" if times == 1 else f"{times**2} ×"


STUDY = Study(
    name="peers",
    question="Is it slower than a ResNet of equal size? And ViT, a Transformer, PointNet++?",
    arms=(
        Arm(OURS, costs=True),
        *(Arm(peer, peer=peer.lower(), costs=True) for peer in PEERS),
        *(Arm(_as_long(peer), factors=_longer(peer), peer=peer.lower()) for peer in PEERS),
        Arm(CLOUDS, data=POINTS),
        Arm(POINTNET, data=POINTS, peer="pointnet++"),
        Arm(_as_long(POINTNET), factors=_longer(POINTNET), data=POINTS, peer="pointnet++"),
    ),
    pairs=(
        *(Pair(peer, OURS) for peer in PEERS),
        *(Pair(_as_long(peer), OURS) for peer in PEERS),
        Pair(POINTNET, CLOUDS),
        Pair(_as_long(POINTNET), CLOUDS),
    ),
    scales={
        "tiny": Scale(
            "digits",
            {
                **_small(4),
                "data.image.height": 8,
                "data.image.width": 8,
                "training.batch_size": 256,
            },
            seeds=2,
            by_data={POINTS: SMALL_CLOUDS},
        ),
        "small": Scale("digits", _small(8), seeds=5, by_data={POINTS: SMALL_CLOUDS}),
        "full": Scale(
            "imagenet",
            {
                "data.validation": None,
                "data.image.height": 64,
                "data.image.width": 64,
                "model.positions": {"num_bands": 64, "max_resolution": [64, 64]},
                "training.augment": {},
                "training.label_smoothing": 0.0,
                "training.gradient_accumulation_steps": 16,
            },
            seeds=5,
            needs_data=True,
            by_data={POINTS: {**LARGE_CLOUDS, "training.gradient_accumulation_steps": 1}},
        ),
    },
    answer=answer,
    section=section,
    notes=(
        "All models have as many parameters as the Perceiver within 5 %, and the same batches, "
        "optimizer, schedule and clipping. The ResNet has three stages of 3 × 3 convolutions, the "
        "ViT patches of 4 × 4 pixels (16 × 16 at the full scale), and the Transformer a token for "
        "each pixel and attention between all of them. All read the features of positions as "
        "channels; the ViT learns others in addition.",
        "*As long* changes the number of epochs so that the training takes about as long as the "
        "Perceiver's on two CPU cores: twice the epochs for the ResNet, four times for the ViT, a "
        "quarter for the Transformer, five eighths for PointNet++. The table has the seconds.",
        "*Points* are the ink of the same digits, each a cloud of up to 128 points with three "
        "coordinates in the unit cube. PointNet++ (Qi et al. 2017, [arXiv 1706.02413]"
        "(https://arxiv.org/abs/1706.02413)) has two levels of centres that see their neighbours, "
        "and one over all. It reads coordinates only; the Perceiver reads their Fourier features, "
        "too.",
    ),
    paper=(
        "The paper (Jaegle et al. 2021, [arXiv 2103.03206](https://arxiv.org/abs/2103.03206)) "
        "reports on ImageNet, without intervals: Perceiver 78.0 %, ResNet-50 77.6 % and ViT-B-16 "
        "77.9 %, these two without Fourier features (table 1), and on 64 × 64 pixels a Transformer "
        "57.0 % (table 2). On ModelNet40, PointNet++ has 91.9 % and the Perceiver 85.7 % (table "
        "4): PointNet++ was trained with further geometric features and stronger augmentation. The "
        "paper has no times. Its appendix counts 707 GFLOPs for the Perceiver; a "
        "ResNet-50 has 4.1."
    ),
    uncontrolled=(
        "The interval is over seeds of the training (weights and order of the samples), not over "
        "other test images or data sets.",
        "The learning rate was chosen once, for the Perceiver, and not searched for any peer. The "
        "ViT and the Transformer learn few digits slowly without augmentation and with this rate.",
        "Times are those of torch on the machine named below. On a GPU small models wait for their "
        "launches, convolutions and attention have kernels of their own, and the order may change.",
        "Width, depth and patches of the peers are one choice among many that have as many "
        "parameters.",
        "PointNet++ knows what is near, and the Perceiver has to learn it. On few clouds this "
        "helps; with as many points as ModelNet40 or more, and with augmentation, the distance may "
        "change.",
        "*As long* is only about as long, and on another machine it may be longer or shorter.",
    ),
)
