"""Find the address of an MLflow run's shard set. The run stores it without secrets."""

from pipeline.errors import UserError
from shards.redaction import is_redacted, without_secrets


def whole_address(stored: str, given: str | None) -> str | None:
    """Return the address of a set, with the password or signature that a run does not store.

    Args:
        stored: The address as the run stores it.
        given: The address of a set with its secrets, or None.

    Returns:
        `given` if it names the same set; `stored` if it needs no secret; None if a secret is
            missing.
    """
    if given is not None and without_secrets(given) == without_secrets(stored):
        return given
    return None if is_redacted(stored) else stored


def run_shards(run_id: str, stored: str, given: str | None) -> str:
    """Return the same as `whole_address`, but raise an error if a secret is missing.

    Args:
        run_id: The MLflow run, for the error.
        stored: The address as the run stores it.
        given: The address of a set with its secrets, or None.

    Raises:
        UserError: A password or signature is missing.
    """
    address = whole_address(stored, given)
    if address is None:
        raise UserError(
            f"run {run_id}: its shard set lies at {stored}, whose password or signature is not "
            "kept; give the whole address with --shards"
        )
    return address
