//! `instar threadline pair|pairings`: servers that are reached without a relay.

use clap::Subcommand;
use serde_json::{Value, json};

use super::reply::{one_line, table};
use super::session::word;
use super::{Agent, CommandResult, Ctx, Reply, node};
use crate::client::{Call, encode};

/// A handshake asks another server twice.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(45);

#[derive(Debug, Subcommand)]
pub(crate) enum Pairings {
    /// The other owner sees the same words: trust that server's agent as verified
    Confirm {
        /// Name of the other agent
        name: String,
    },
    /// Forget a pairing; the level stays
    Remove {
        /// Name of the other agent
        name: String,
    },
}

pub(crate) fn pair(ctx: &Ctx, agent: &Agent, url: &str) -> CommandResult {
    let call = Call::post("/threadline/pairings", json!({"url": url})).patience(PATIENCE);
    let value = node::call(ctx, agent, call)?;
    let name = one_line(&word(&value["agent"]), 64);
    let text = format!(
        "Paired with {name} ({}). Compare these words with the other owner, by voice or face to face:\n\n    {}\n\n\
         They see them with `instar threadline pairings`. If they are the same: instar threadline pairings confirm {name}",
        word(&value["displayFingerprint"]),
        words(&value["words"])
    );
    Ok(Reply::new(value, text))
}

pub(crate) fn pairings(ctx: &Ctx, agent: &Agent, command: Option<Pairings>) -> CommandResult {
    match command {
        None => {
            let value = node::call(ctx, agent, Call::get("/threadline/pairings"))?;
            let text = list(&value["pairings"]);
            Ok(Reply::new(value, text))
        }
        Some(Pairings::Confirm { name }) => {
            let path = format!("/threadline/pairings/{}/confirm", encode(&name));
            let value = node::call(ctx, agent, Call::post(path, json!({})))?;
            let text = format!("{} is {}", one_line(&word(&value["agent"]), 64), word(&value["level"]));
            Ok(Reply::new(value, text))
        }
        Some(Pairings::Remove { name }) => {
            let path = format!("/threadline/pairings/{}", encode(&name));
            let value = node::call(ctx, agent, Call::new(http::Method::DELETE, path))?;
            let text = format!("{} is not paired any more", one_line(&word(&value["agent"]), 64));
            Ok(Reply::new(value, text))
        }
    }
}

/// Shows the safety number of an agent, or stores what came of comparing it.
pub(crate) fn verify(ctx: &Ctx, agent: &Agent, whom: &str, matches: Option<bool>) -> CommandResult {
    let path = format!("/threadline/agents/{}/safety", encode(whom));
    let call = match matches {
        None => Call::get(path),
        Some(matches) => Call::post(path, json!({"matches": matches})),
    };
    let value = node::call(ctx, agent, call)?;
    let text = safety(&value, whom, matches);
    Ok(Reply::new(value, text))
}

fn safety(value: &Value, whom: &str, matches: Option<bool>) -> String {
    let name = one_line(&word(&value["name"]), 64);
    match matches {
        Some(true) => format!("{name} is verified: you compared the number of this very key"),
        Some(false) => format!("{name} is blocked: the numbers differ, so someone may sit between you"),
        None => {
            let number = word(&value["number"]);
            let rows: Vec<String> = number
                .as_bytes()
                .chunks(20)
                .map(|row| row.chunks(5).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" "))
                .collect();
            let state = match value["verifiedAt"].as_str() {
                Some(at) => format!("You compared it on {at}."),
                None => format!(
                    "Compare it with the owner of {name}, by voice or face to face. If it is the same:\n\
                     instar threadline verify {whom} --matches (else --differs)"
                ),
            };
            format!("Safety number with {name}:\n\n    {}\n\n{state}", rows.join("\n    "))
        }
    }
}

fn list(pairings: &Value) -> String {
    let rows: Vec<[String; 5]> = pairings
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            [
                one_line(&word(&row["agent"]), 32),
                word(&row["displayFingerprint"]),
                word(&row["level"]),
                if row["confirmedAt"].is_null() { "not compared".into() } else { "compared".into() },
                words(&row["words"]),
            ]
        })
        .collect();
    table(["agent", "key", "trust", "words are", ""], &rows, "no server is paired")
}

fn words(list: &Value) -> String {
    list.as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_a_safety_number() {
        let value = json!({"name": "bob", "number": "0123456789".repeat(6), "verifiedAt": null});
        let text = safety(&value, "bob", None);
        assert!(text.contains("    01234 56789 01234 56789\n"), "{text}");
        assert_eq!(text.matches("01234 56789 01234 56789").count(), 3);
        assert!(text.ends_with("instar threadline verify bob --matches (else --differs)"));
        let compared = json!({"name": "bob", "number": "0", "verifiedAt": "2026-01-01"});
        assert!(safety(&compared, "bob", None).ends_with("You compared it on 2026-01-01."));
        assert!(safety(&value, "bob", Some(false)).starts_with("bob is blocked"));
    }

    #[test]
    fn people_read_pairings() {
        insta::assert_snapshot!(list(&json!([{"agent": "bob", "displayFingerprint": "5dad6253ee280392",
            "level": "untrusted", "confirmedAt": null,
            "words": ["extend", "milk", "pulp", "scout", "gravity", "gun"]}])));
    }
}
