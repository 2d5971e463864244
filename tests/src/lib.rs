//! Doubles of the outside world, end-to-end scenarios, simulation and benches.
