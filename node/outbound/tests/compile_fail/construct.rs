use instar_outbound::{Cleared, Verdict};

fn forge(text: String, verdict: Verdict) -> Cleared<String> {
    Cleared { value: text, verdict }
}

fn main() {}
