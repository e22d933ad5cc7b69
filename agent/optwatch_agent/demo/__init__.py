"""The demo's trainings: real data, a few seconds each, with a fault that is injected on purpose."""
