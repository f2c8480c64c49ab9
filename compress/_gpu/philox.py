"""Random bits: csrc/philox.cu."""

from .device import launch, view

_MOST_WORKERS = 1024


def philox_words(key, start, stream, out):
    view(out, "I")
    calls = out.size // 4
    launch("philox", "philox_words", -(-calls // 256), 256, key, start, stream, out, calls)


def check_workers(worker, workers):
    if not 0 <= worker < workers <= _MOST_WORKERS:
        raise ValueError(f"workers must lie in [1, {_MOST_WORKERS}] and worker below it, got {worker} of {workers}")


def correlated_dither(key, shared, worker, workers, start, out):
    view(out, "I")
    check_workers(worker, workers)
    launch("philox", "correlated_dither", -(-out.size // 256), 256, key, shared, worker, workers, start, out, out.size)
