"""A simulation of programs, the Market and all that may go wrong, in which a seed decides all.

    python -m benchmarks simulate --seeds 1000 --from 1
    python -m benchmarks simulate --replay 17

A story says what happens (`story`, `generate`). It is played in virtual time over the sandbox
(`world`, `play`), and what stands in the chats is compared with what the programs were told
(`judge`). A story that fails is made shorter (`shrink`). Mutants show that the judge sees faults
of the product (`mutants`).
"""
