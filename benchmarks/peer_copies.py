"""Make a peer's own copy of a set: `python -P peer_copies.py KIND TARS TARGET SHARD_BYTES`.

It runs under the Python that has the peer installed. Nothing of this project is imported.
"""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path


def streaming(tars: Path, target: Path, shard_bytes: int) -> None:
    """Write MDS files, as mosaicml-streaming reads them."""
    from streaming import MDSWriter

    columns = {"key": "str", "jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(target), columns=columns, size_limit=shard_bytes) as writer:
        for key, members in _samples(tars):
            row = {"key": key, "jpg": members["jpg"], "cls": int(members["cls"])}
            writer.write(row)


def _samples(tars: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            key, members = "", dict[str, bytes]()
            for member in tar:
                own_key, _, name = member.name.partition(".")
                if members and own_key != key:
                    yield key, members
                    members = {}
                file = tar.extractfile(member)
                assert file is not None, "the set has files only"
                key, members[name] = own_key, file.read()
            yield key, members


KINDS = {"streaming": streaming}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
