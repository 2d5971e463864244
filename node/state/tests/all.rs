//! What must hold when a process dies in the middle of writing.

mod kill;
