"""Webdataset shards: plain tar files in which the members of one sample stand together and share a name.

`000000017.jpg`, `000000017.txt` and `000000017.json` are one sample with the key `000000017`. This is what img2dataset
writes, what the hub's training sets hold, and what CLIP_benchmark reads (there a sample is an image with `cls` or
`txt`).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffclip.files import written_whole

_BLOCK = 512  # a tar file is made of blocks of this size


class DamagedShard(ValueError):
    """A tar file that ends too early or holds something that is not tar; the samples before the damage are good."""


@dataclass(frozen=True)
class Sample:
    key: str
    files: dict[str, bytes]  # extension, lower case and without its dot -> content
    nbytes: int  # what the sample takes of the tar file, headers and padding included


def index_shard(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Where the files of each sample lie, from the headers alone: (key, {extension: (offset, size)}), in order.

    Raises DamagedShard, after the last sample known to be whole, where the file is cut off or is not tar; Python's
    tarfile by itself takes most such places for the end of the archive, so the end marker is looked for here.
    """
    path = Path(path)
    key, files = None, {}
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, name = os.path.split(member.name)
                    stem, _, extension = name.partition(".")
                    if member.offset_data + member.size > size:
                        raise DamagedShard(f"{path} is cut off inside its member {member.name}")
                    if (this := os.path.join(folder, stem)) != key:
                        if files:
                            yield key, files
                        key, files = this, {}
                    files[extension.lower()] = (member.offset_data, member.size)
                stream.seek(tar.offset)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DamagedShard(f"{path} cannot be read on: {error}") from error
        if stream.read(_BLOCK) != bytes(_BLOCK):
            # The last sample may lack its caption: only what came before it is known to be whole.
            raise DamagedShard(f"{path} stops without the end marker of a tar file")
    if files:
        yield key, files


def read_shard(path: str | os.PathLike) -> Iterator[Sample]:
    """Yield the samples of a shard in order. Raises DamagedShard as `index_shard` does."""
    with open(path, "rb") as stream:
        for key, places in index_shard(path):
            files, nbytes = {}, 0
            for extension, (offset, size) in places.items():
                stream.seek(offset)
                files[extension] = stream.read(size)
                nbytes += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
            yield Sample(key, files, nbytes)


def write_shard(path: str | os.PathLike, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write (key, {extension: content}) pairs as one tar file, whole or not at all; returns how many were written.

    The same samples give the same bytes on every machine: no times, owners or modes of this one are recorded.
    """
    count = 0
    with written_whole(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count
