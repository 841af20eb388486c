"""A seeded simulation: management nodes and hosts in one process, on a virtual clock and a network in memory.

    SEED=17 python -m caelum.testing.simulation

Everything that a program may not know beforehand (times, delays, random numbers, faults) is drawn from the seed, so one
seed makes one history. See docs/development/simulation.md.
"""
