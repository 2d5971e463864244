//! Tests of the whole: rules of the workspace, fuzz bodies over their corpus, end-to-end scenarios.

mod dependencies;
mod fuzz_corpus;
