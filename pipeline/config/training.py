"""The section `training`: the schedule, augmentation, optimizer, precision and ZeRO stage."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.deepspeed_keys import check_keys
from cluster.optimizers import DEFAULT_OPTIMIZER, HYPERPARAMETERS, OPTIMIZERS
from pipeline.config.base import ConfigBase
from pipeline.config.early_stopping import EarlyStoppingConfig
from pipeline.config.offload import OffloadConfig
from pipeline.config.schedule import ScheduleConfig
from pipeline.config.stream import StreamConfig

# The optimizer multiplies and divides by these. Beyond them, its numbers are no float32.
MAX_LEARNING_RATE, MAX_WEIGHT_DECAY = 1e30, 1e6
MAX_BETA = 1000.0
"""The largest `mixup` and `cutmix`. The shares are then nearly 1/2."""


class AugmentConfig(ConfigBase):
    """Random changes to training inputs. They depend only on the seed, the epoch and the step.

    A field changes every modality that takes it. A field that no modality of the data takes is
    refused (`pipeline.config.augment`). Tables take none. All frames of a film change in the same
    way.

    Attributes:
        shift_pixels: Images and films move by up to this many pixels each way.
        rotate_degrees: Images and films turn by up to this many degrees each way; points turn about
            a random axis.
        scale: Images and films grow or shrink by a factor drawn from this range; points by one
            factor for each coordinate.
        flip: Images and films are mirrored left to right, and points along their first coordinate,
            with probability 1/2.
        crop_area: The range of the share of the image's area that a random crop keeps. Its aspect
            ratio is 3/4 to 4/3.
        jitter: Points move by normal noise of this standard deviation, as a share of half of the
            cloud's size.
        drop_points: Points are hidden, a share of up to this one. It is drawn for each cloud.
        shift_seconds: Sounds, or their log-mel frames, move by up to this many seconds each way.
        gain_db: Sounds grow louder or softer by up to this many decibels.
        noise: White noise is added to sounds, or to their standardised log-mel frames. Its root
            mean square is drawn between 0 and this share of the recording's own.
        mask_seconds, mask_bands: Log-mel frames lose a stretch of up to this many seconds, and up
            to this many neighbouring bands (SpecAugment, Park et al., arXiv 1904.08779).
        band_gain: The bands of log-mel frames grow louder or softer by a smooth random curve of up
            to this many standard deviations of the frames, as with another microphone (Nam et al.,
            arXiv 2110.03282).
        mask_bytes: This share of a text's bytes, in runs of 6 bytes, is hidden by the mask token.
        randaugment_layers: The number of random operations on each image (RandAugment, Cubuk et
            al., arXiv 1909.13719). 0 applies none.
        randaugment_magnitude: The strength of these operations, above 0 and up to 10.
        brightness, contrast, saturation: Images change by a factor of 1 - value to 1 + value.
        hue: The hue of images turns by up to this share of the colour circle each way.
        erase: The probability that a box of an image is set to 0 (random erasing, Zhong et al.,
            arXiv 1708.04896).
        mixup: Each image, film or sound is blended with another of the batch, and so are their
            classes or labels. The share is drawn from Beta(mixup, mixup) (Zhang et al.,
            arXiv 1710.09412). 0 blends nothing.
        cutmix: A box of each image or film shows another of the batch. The share of the area that
            stays is drawn from Beta(cutmix, cutmix), and classes or labels are blended by it (Yun
            et al., arXiv 1905.04899). With `mixup`, each sample takes one of the two at random.
        views: How many times each sample is in its batch, each time with other random changes
            (Hoffer et al., arXiv 1901.09335). The loss is the mean over all of them. Memory and
            time grow by this factor.
    """

    shift_pixels: float = Field(default=0.0, ge=0)
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    jitter: float = Field(default=0.0, ge=0, le=1)
    drop_points: float = Field(default=0.0, ge=0, lt=1)
    shift_seconds: float = Field(default=0.0, ge=0)
    gain_db: float = Field(default=0.0, ge=0, le=60)
    noise: float = Field(default=0.0, ge=0, le=10)
    mask_seconds: float = Field(default=0.0, ge=0)
    mask_bands: int = Field(default=0, ge=0)
    band_gain: float = Field(default=0.0, ge=0, le=10)
    mask_bytes: float = Field(default=0.0, ge=0, lt=1)
    randaugment_layers: int = Field(default=0, ge=0, le=16)
    randaugment_magnitude: float = Field(default=5.0, gt=0, le=10)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)
    erase: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0, le=MAX_BETA)
    cutmix: float = Field(default=0.0, ge=0, le=MAX_BETA)
    views: int = Field(default=1, ge=1, le=64)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("crop_area", self.crop_area)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; 0 < low <= high is needed")
        if self.randaugment_magnitude != 5 and not self.randaugment_layers:
            raise ValueError("randaugment_magnitude changes nothing without randaugment_layers")
        others = {name: each for name, each in type(self).model_fields.items() if name != "views"}
        if self.views > 1 and all(getattr(self, n) == each.default for n, each in others.items()):
            raise ValueError(
                f"views is {self.views}, but nothing else of augment changes samples, so the views "
                "of a sample would be equal"
            )
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area ends at {self.crop_area[1]}; 1 is the whole image")
        return self


class TrainingConfig(ConfigBase):
    """How a model is trained.

    Attributes:
        epochs: The number of passes over the training samples. If it grows, a finished training
            continues.
        batch_size: The number of samples in one optimizer step, over all workers and accumulation
            steps. So a training is the same on any number of workers.
        gradient_accumulation_steps: The number of forward and backward passes in one optimizer
            step.
        optimizer: The optimizer: `adamw`; `lamb` (You et al., arXiv 1904.00962), with which the
            Perceivers were trained; or `muon` for the matrices of attention and MLPs, with `adamw`
            for the rest, at ZeRO stage 0.
        learning_rate: The highest learning rate of the schedule.
        betas: The decay rates of the optimizer's running means of the gradient and of its square,
            each at least 0 and below 1.
        eps: The number added to the denominator of the optimizer's step; by default 1e-8, and 1e-6
            for `lamb`. A study that searches `optimizer` keeps the `eps` of the configuration.
        momentum: The decay rate of `muon`'s running mean of the gradient; null takes 0.95. No other
            optimizer has it.
        weight_decay: The decoupled weight decay of weights and latents; biases and norms have none.
        gradient_clipping: The largest norm of the whole gradient; null does not clip.
        label_smoothing: The share of the target's probability that is spread evenly over all
            classes.
        balance_classes: How evenly the classes are drawn. Each sample is drawn in proportion to
            `n ** -balance_classes`, where n is the number of training samples of its class. 0 draws
            each sample once in an epoch, 1 draws each class equally often. An epoch has as many
            draws as there are samples.
        schedule: The learning rate over the training.
        augment: The random changes to training inputs.
        precision: The precision of products. `bf16` and `fp16` compute matrix products in bfloat16
            or float16 (autocast) and keep weights, gradients and optimizer state in float32. `bf16`
            also keeps in bfloat16 what attends and MLPs add to, the residual stream, of which
            layer norms compute mean and variance in float32; `bf16_autocast` keeps it in float32.
            `fp8` is `bf16` with the products of the latents' self-attends in 8-bit floats, with a
            scale for each row (`perceiver_model.attention.fp8`); other products stay bfloat16.
            `fp16` also scales the loss, for GPUs without bfloat16 (`cluster.loss_scale`).
        zero_stage: The stage of DeepSpeed ZeRO. Stage 1 shares the optimizer state among the
            workers, stage 2 the gradients as well, and stage 3 the weights as well. `auto` takes
            the lowest stage that shares what can be shared (`stage_for`).
        offload: What ZeRO keeps in the memory or on the disks of the machine.
        overlap_communication: Whether gradients are reduced among the workers while the backward
            pass goes on, in several parts. It is for ZeRO stages 1 to 3 on GPUs.
        deepspeed: Further keys of DeepSpeed's configuration, such as
            `{zero_optimization: {reduce_bucket_size: 50000000}}`. A key that is unknown, or that
            contradicts another field, is refused (`cluster.deepspeed_keys`).
        attention_path: How attention is computed. Every path is the same function to rounding, and
            `auto` takes the cheapest (`perceiver_model.attention.multi_head`).
        activation_checkpointing: The share of the latents' self-attends, 0 to 1, that keep only
            their input for the backward pass and compute the rest again there. It takes less memory
            and more time.
        compile: The mode of torch.compile (`reduce-overhead` and `max-autotune` use CUDA graphs);
            null does not compile. It works at ZeRO stages 0 to 2. Kernels are chosen without
            timing, so that a training repeats, and texts are padded to `max_length`.
        early_stopping: The rule that ends a training whose score no longer improves; null has no
            rule.
        stream: How recordings that are cut into parts are read with the latents carried over from
            part to part; null reads each part alone, in any order.
        ema_decay: The share that the exponential moving average of the weights keeps of itself in
            each optimizer step, such as 0.999; null keeps no average. The average is evaluated,
            saved beside the weights and registered.
        on_bad_step: What happens after an optimizer step whose loss or gradient is NaN or infinite,
            or whose loss is a spike. `fail` ends the training. `skip` leaves the weights as they
            were before the step. `rollback` returns weights and optimizer to the last checkpoint
            and goes on with the next batch.
        max_bad_steps: The largest number of bad steps. A training with more of them ends, as with
            `fail`.
        spike_factor: A loss above this factor times the median of the last `spike_window` good
            steps is a spike; null finds none.
        spike_window: The number of good steps of which the median is taken. Before there are as
            many, no loss counts as a spike.
        checkpoint_steps: The number of optimizer steps between checkpoints within an epoch; null
            saves only after each epoch.
        log_steps: The number of optimizer steps between two logged training metrics.
        canonical_nodes: The number of parts of the set from which each batch is taken in equal
            shares. If it is a multiple of the machines of a training, each machine reads shards of
            its own; with 1, each reads all shards. It divides the samples of a forward pass of all
            workers. The order of the samples depends on it, and not on the machines there are.
        loader_workers: The number of processes that read and decode for each training worker, and
            as many more for its evaluations; 0 reads in the worker itself.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    optimizer: str = DEFAULT_OPTIMIZER
    learning_rate: float = Field(default=1e-3, gt=0, le=MAX_LEARNING_RATE)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0, le=MAX_WEIGHT_DECAY)
    gradient_clipping: float | None = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    balance_classes: float = Field(default=0.0, ge=0, le=1)
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["float32", "bf16", "bf16_autocast", "fp16", "fp8"] = "float32"
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    offload: OffloadConfig = OffloadConfig()
    overlap_communication: bool = False
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    attention_path: Literal["auto", "reference", "fused", "factored", "separable"] = "auto"
    activation_checkpointing: float = Field(default=0.0, ge=0, le=1)
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    early_stopping: EarlyStoppingConfig | None = None
    stream: StreamConfig | None = None
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    on_bad_step: Literal["fail", "skip", "rollback"] = "fail"
    max_bad_steps: int = Field(default=10, ge=1)
    spike_factor: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    spike_window: int = Field(default=50, ge=1, le=10_000)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    log_steps: int = Field(default=10, ge=1)
    canonical_nodes: int = Field(default=1, ge=1)
    loader_workers: int = Field(default=0, ge=0)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(f"is {name!r}; must be {' or '.join(map(repr, OPTIMIZERS))}")
        return name

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Self:
        spec = OPTIMIZERS[self.optimizer]
        if "eps" not in self.model_fields_set:
            object.__setattr__(self, "eps", spec.eps)  # the section is frozen
        defaults = {name: type(self).model_fields[name].default for name in HYPERPARAMETERS}
        for name, default in {**defaults, "eps": spec.eps}.items():
            if name not in spec.uses and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which optimizer {self.optimizer} does not "
                    "have; leave it out"
                )
        if self.zero_stage not in ("auto", 0) and spec.reads == "tensors":
            raise ValueError(
                f"zero_stage is {self.zero_stage}, where no worker has whole tensors, which "
                f"optimizer {self.optimizer} needs; set zero_stage to 0 or auto"
            )
        return self

    def stage_for(self, workers: int) -> int:
        """Return the ZeRO stage of a training with this many workers.

        `auto` is 3 if weights or NVMe are offloaded to, as these need it. It is 0 for an optimizer
        that needs whole tensors, and for one worker, who has nobody to share with, unless another
        field asks for ZeRO. Else it is 2.
        """
        if self.zero_stage != "auto":
            return self.zero_stage
        if self.offload.parameters != "none" or self.offload.uses_nvme:
            return 3
        if OPTIMIZERS[self.optimizer].reads == "tensors":
            return 0
        asks_for_zero = (
            self.offload.offloaded
            or self.overlap_communication
            or self.deepspeed.get("zero_optimization")
        )
        return 2 if workers > 1 or asks_for_zero else 0

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        stage = self.stage_for(workers=2)
        self.offload.check(stage)
        if self.offload.optimizer != "none" and OPTIMIZERS[self.optimizer].reads != "elements":
            raise ValueError(
                f"offload.optimizer is {self.offload.optimizer}, but optimizer {self.optimizer} "
                "sums norms on the device; set offload.optimizer to none, or optimizer to adamw"
            )
        if self.offload.parameters == "nvme" and OPTIMIZERS[self.optimizer].reads != "elements":
            raise ValueError(
                f"offload.parameters is nvme, but optimizer {self.optimizer} sums norms of weights "
                "in memory; set offload.parameters to cpu, or optimizer to adamw"
            )
        if self.offload.optimizer == "nvme" and self.ema_decay is not None:
            raise ValueError(
                f"ema_decay is {self.ema_decay}, and offload.optimizer is nvme: the average is "
                "kept in memory, and the weights are not; set ema_decay to null, or "
                "offload.optimizer to cpu"
            )
        if self.overlap_communication and not stage:
            raise ValueError("overlap_communication is for zero_stage 1 to 3; zero_stage is 0")
        try:
            check_keys(
                self.deepspeed,
                zero_stage=stage,
                offloaded=self.offload.offloaded,
                uses_nvme=self.offload.uses_nvme,
            )
        except ValueError as error:
            raise ValueError(f"deepspeed.{error}") from None
        return self

    @model_validator(mode="after")
    def _nodes_fit(self) -> Self:
        if self.canonical_nodes > 1 and self.balance_classes:
            raise ValueError(
                f"canonical_nodes is {self.canonical_nodes}, and balance_classes draws from the "
                "whole set; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        self.schedule.check(self.epochs)
        if self.compile and self.stage_for(workers=2) == 3:
            raise ValueError("compile is for zero_stage 0 to 2; zero_stage is 3")
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas holds {beta}; each must be at least 0 and below 1")
        return self
