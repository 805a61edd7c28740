"""The measuring process of a checkpoint: `python -m uad.training.torch_worker MODEL BATCH THREADS`.

See `engines.benchmark`.
"""

import sys

from engines.benchmark import serve
from uad.open import open_engine

if __name__ == "__main__":
    path, batch, threads = sys.argv[1:]
    count = int(threads) or None
    serve(lambda: open_engine(path, batch=int(batch) or None, threads=count), count)
