"""Where the shard set of an MLflow run lies: its address is stored without secrets."""

from pipeline.errors import UserError
from shards.redaction import is_redacted, without_secrets


def whole_address(place: str, given: str | None) -> str | None:
    """The address of a set, with the password or signature that a run does not keep.

    Args:
        place: as the run has it.
        given: the address of a set, with its secrets, or None.

    Returns:
        `given` where it names the same place; None where a secret is missing.
    """
    if given is not None and without_secrets(given) == without_secrets(place):
        return given
    return None if is_redacted(place) else place


def run_shards(run_id: str, place: str, given: str | None) -> str:
    """As `whole_address`, for a set that is needed.

    Raises:
        UserError: its secret is missing.
    """
    address = whole_address(place, given)
    if address is None:
        raise UserError(
            f"run {run_id}: its shard set lies at {place}, whose password or signature is not "
            "kept; give the whole address with --shards"
        )
    return address
