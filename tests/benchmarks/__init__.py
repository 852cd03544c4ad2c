"""How fast, measured: ``python -m tests.benchmarks webhook``. No tests: two noisy cores."""
