//! Identity files and the context blocks that hooks inject.
