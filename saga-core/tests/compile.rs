//! What the compiler says about the usual mistakes. `TRYBUILD=overwrite` writes the snapshots anew; read them before you commit.

#[test]
fn the_usual_mistakes_do_not_compile_and_the_message_helps() {
    trybuild::TestCases::new().compile_fail("tests/compile/*.rs");
}
