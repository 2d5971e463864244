//! Tests of the whole: rules of the workspace, fuzz bodies over their corpus, end-to-end scenarios.

mod chaos;
mod dependencies;
mod deploy;
mod e2e;
mod fuzz_corpus;
mod simulation;
