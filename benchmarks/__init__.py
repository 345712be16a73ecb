"""What the package costs, and what one gets for it: `python -m benchmarks`, from the repository.

rivals.py      the clients that are compared, ours among them
server.py      a lean stand-in for the Market, in a process of its own
worker.py      a process that sends messages with one of the clients, on command
processes.py   workers side by side: interleaved rounds, and callgrind
cost.py, limit.py, faults.py, growth.py, decoding.py, imports.py   one benchmark each
suite.py       all of them by name
pydantic_models.py   what decoding is compared with
report.py      the table on the terminal, the JSON, the plots and the page of the docs
"""
