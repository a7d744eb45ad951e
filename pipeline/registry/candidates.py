"""The candidate of a promotion: a run's model, and the set that judges it."""

from typing import Any

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.judged_models import Candidate
from pipeline.registry.other_sets import stored_media
from pipeline.registry.run_model import card_of, own_set
from pipeline.registry.served.inference import Predictor
from pipeline.registry.trained_on import trained_on
from pipeline.training.checkpoint_files import Checkpoint
from shards import ShardSet


def candidate_of(
    run: Any,
    config: Config,
    checkpoint: Checkpoint,
    split: str,
    *,
    shards: str | None = None,
    judged_on: str | None = None,
    set_digest: str | None = None,
) -> Candidate:
    """Return a run's model and the set that judges it.

    Args:
        run: The MLflow run.
        config: Its configuration.
        checkpoint: Its best checkpoint.
        split: The split that judges.
        shards: The whole address of the run's own set, if it has a password or a signature.
        judged_on: The folder or URL of the set that judges; None takes the run's own.
        set_digest: The first digits of the digest of the only set that may judge; None for any.

    Raises:
        UserError: Another set is pinned, or the set does not fit the model.
        ShardError: A set cannot be opened.
    """
    trained_set = own_set(run, config, shards)
    card = card_of(config, trained_set)
    judging_set = (
        trained_set if judged_on is None else ShardSet.open(judged_on, config.data.remote_reading)
    )
    if set_digest is not None and not judging_set.digest.startswith(set_digest):
        raise UserError(
            f"{judging_set.location}: has the digest {judging_set.digest}, and registry.set_digest "
            f"pins the set {set_digest}; name that set with --set"
        )
    is_own = judging_set.digest == trained_set.digest
    return Candidate(
        name=f"run {run.info.run_id}",
        predictor=Predictor(card, checkpoint.load_model()),
        record=trained_on(trained_set, card.media),
        shard_set=judging_set,
        split=split,
        max_bad_fraction=config.data.max_bad_fraction,
        verify_samples=config.data.verify_samples,
        skip_corrupt=config.data.corrupt_samples == "skip",
        stored=None if is_own else stored_media(card, judging_set),
        own_set=None if is_own else trained_set,
    )
