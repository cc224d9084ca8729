"""Benchmarks against the literal algorithm and the bare drivers; run by ``nox -s bench``."""
