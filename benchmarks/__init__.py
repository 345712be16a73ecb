"""Benchmarks of the package: run `python -m benchmarks` in the repository.

rivals.py      the clients under comparison, including this package
server.py      a minimal server that stands in for the Market, in its own process
worker.py      a process that sends messages with one of the clients, on command
processes.py   runs workers side by side in interleaved turns, and callgrind
cost.py, limit.py, faults.py, growth.py, decoding.py, imports.py   one benchmark each
suite.py       all benchmarks by name
pydantic_models.py   the pydantic models that the decoding benchmark compares with
report.py      the tables on the terminal, the JSON, the plots and the page of the docs
"""
