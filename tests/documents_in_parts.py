"""Documents in parts, whose class or number only their first part tells."""

import builtins
import hashlib
import re
from pathlib import Path
from pydoc_data.topics import topics
from zoneinfo import available_timezones

import numpy as np

from pipeline.config.tree import Config
from pipeline.preprocess.identity import set_identity
from shards import Sample, encode_npy, publish, write_shard

LENGTH = 32
"""The bytes of a part."""


def write_documents(folder: Path, number: int = 360) -> None:
    """Documents of 2 to 6 parts."""
    random = np.random.default_rng(0)
    manual = re.sub(r"\s+", " ", " ".join(topics.values())).encode("ascii", "ignore").decode()
    texts = {
        "zones": " ".join(sorted(available_timezones())),
        "builtins": " ".join(dir(builtins)),
        "manual": manual,
    }
    for index in range(number):
        name = [*texts][index % 3]
        first = cut(texts[name], random, LENGTH)
        rest = cut(manual, random, LENGTH * (1 + int(random.integers(5))))
        path = folder / name / f"{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(first + rest)


def cut(text: str, random: np.random.Generator, length: int) -> str:
    start = int(random.integers(len(text) - length))
    return text[start : start + length]


def write_counts(folder: Path, config: Config, count: int = 300) -> None:
    """A shard set of passages of the manual. The first part ends in up to 32 digits."""
    random = np.random.default_rng(1)
    manual = re.sub(r"[^A-Za-z ]+", "", " ".join(topics.values()))
    staging = folder / "staging"
    for number, split in enumerate(("train", "validation")):
        samples = []
        for index in range(count if split == "train" else count // 4):
            digits = int(random.integers(LENGTH + 1))
            first = cut(manual, random, LENGTH - digits) + "7" * digits
            texts = [first, *(cut(manual, random, LENGTH) for _ in range(3))]
            key = hashlib.sha256(f"{split}{index}".encode()).hexdigest()[:24]
            for part, text in enumerate(texts):
                members = {
                    "text.npy": encode_npy(np.frombuffer(text.encode(), np.uint8)),
                    "target.npy": encode_npy(np.array([digits], np.float32)),
                }
                name = f"{key}-{part:05d}" if part else key
                samples.append(Sample(name, members, None, f"{split}/{index}.txt", "0" * 64))
        write_shard(staging, number, split, samples)
    publish(
        staging, Path(config.shards_folder), numbers=range(2), config=set_identity(config),
        input_digest="", classes=(),
    )  # fmt: skip
