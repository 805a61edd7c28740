"""Which photographs are the same, whatever their names and folders: by what their files hold."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Sequence

from engines.metadata import DIGEST
from uad.data.folder import Sample
from uad.data.reading import DECODERS


def digests_of(samples: Sequence[Sample], progress: Callable[[], object] = lambda: None) -> List[str]:
    """The digest of each file: the first `DIGEST` hexadecimal digits of the SHA-256 of its content.

    Raises:
        OSError: a file cannot be read.
    """

    def digest(sample: Sample) -> str:
        content = hashlib.sha256(sample.path.read_bytes()).hexdigest()[:DIGEST]
        progress()
        return content

    with ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(digest, samples))
