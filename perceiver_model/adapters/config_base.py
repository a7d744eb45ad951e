"""The base of the adapter configurations: the geometry of the tokens."""

from typing import Any, ClassVar


class AdapterBase:
    """The base of the adapter configurations. It does not import torch.

    Each method takes the configuration of an input, an instance of one of the classes in `reads`. A
    subclass annotates which. `check` is called first, so the other methods can rely on it.

    Attributes:
        reads: The classes of the inputs that the adapter can read.
        holds_positions: Whether the content of a token already identifies it, so that no position
            features are added. Points, for example, contain their coordinates.
        is_successive: Whether successive cross-attends read different arrays, such as the feature
            maps of a backbone. All of them have the same number of channels.
    """

    reads: ClassVar[tuple[type, ...]]
    holds_positions: ClassVar[bool] = False
    is_successive: ClassVar[bool] = False

    def check(self, media: Any) -> None:
        """Check that the adapter can read the input.

        Raises:
            ValueError: If a field of the adapter does not fit the input.
        """

    def token_grid(self, media: Any) -> tuple[int, ...]:
        """Return the shape of the token grid; its product is the number of tokens."""
        raise NotImplementedError

    def token_grids(self, media: Any) -> tuple[tuple[int, ...], ...]:
        """Return the shape of the token grid of each array that successive cross-attends read."""
        return (self.token_grid(media),)

    def token_dims(self, media: Any) -> int:
        """Return the number of dimensions of the token grids."""
        return len(self.token_grid(media))

    def content_channels(self, media: Any) -> int:
        """Return the number of channels of a token without its position features."""
        raise NotImplementedError

    def flops(self, media: Any) -> int:
        """Return the FLOPs of the adapter for one sample, counted as `layer_flops` explains."""
        return 0
