//! What must not compile.

#[test]
fn a_clearance_cannot_be_made_or_copied_outside_the_engine() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
