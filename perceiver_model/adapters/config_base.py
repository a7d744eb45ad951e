"""What every adapter's configuration tells of the tokens that it makes of an input."""

from typing import Any, ClassVar


class AdapterBase:
    """Base of the adapters' configurations: the geometry of the tokens, free of torch.

    The methods take an input's configuration, one of the classes in `reads`; a subclass annotates
    which. `check` is asked first, so that the others may trust it.

    Attributes:
        reads: the classes of inputs that the adapter can read.
        holds_positions: whether its tokens' content tells them apart by itself (points hold their
            own coordinates), so that there are no positions to add.
    """

    reads: ClassVar[tuple[type, ...]]
    holds_positions: ClassVar[bool] = False

    def check(self, media: Any) -> None:
        """Raises ValueError if the adapter's fields don't fit the input's."""

    def token_grid(self, media: Any) -> tuple[int, ...]:
        """Shape of the tokens' positions, whose product is the number of tokens."""
        raise NotImplementedError

    def content_channels(self, media: Any) -> int:
        """Channels of a token before its position features."""
        raise NotImplementedError
