"""All benchmarks: `python -m benchmarks` or `make bench`, from the checkout."""

from benchmarks import (
    bench_federation,
    bench_floor,
    bench_masks,
    bench_memory,
    bench_secure,
    bench_secure_runs,
    bench_sparsegpt,
    bench_votes,
)


def main() -> None:
    """Run every benchmark; each prints a table and writes ``benchmarks/out/<name>.json``."""
    for benchmark in (
        bench_masks,
        bench_votes,
        bench_sparsegpt,
        bench_floor,
        bench_memory,
        bench_secure,
        bench_secure_runs,
        bench_federation,
    ):
        benchmark.main()


if __name__ == "__main__":
    main()
