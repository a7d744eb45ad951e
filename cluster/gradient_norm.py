"""The norm of the whole gradient of a DeepSpeed engine, at steps where it is logged.

ZeRO stages 1 to 3 compute it in every step, clipped or not, to find values that are not finite. At
stage 0 DeepSpeed keeps none, so it is computed from the gradients, only where it is asked for.
"""

from typing import Any

import torch

from cluster.engine_state import base_optimizer


class GradientNorm:
    """Reads the norm of the gradient of one step, before it is clipped.

    Args:
        engine: DeepSpeed's engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._norm: torch.Tensor | None = None

    def before_step(self) -> None:
        """Prepare to read the norm of the step that the engine is about to take.

        This adds no wait for the device.
        """
        if (
            self._engine.zero_optimization_stage()
            or self._engine.get_global_grad_norm() is not None
        ):
            return
        groups = base_optimizer(self._engine).param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm([each.detach() for each in gradients])
            scaler = getattr(self._engine, "torch_autocast_z0_gradscaler", None)
            self._norm = norm / scaler.get_scale() if scaler else norm

    def read(self) -> float | None:
        """Return the norm of the step that was just taken; None if it is not known.

        This waits for the device.
        """
        found = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        self._norm = None
        return None if found is None else float(found)
