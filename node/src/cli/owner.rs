//! Proof of the owner on this terminal: the PIN, asked without echo. Sessions are never asked.

use std::io::{BufRead, Write};

use instar_state::config::keys;
use instar_state::secret::Secret;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{Agent, Ctx, Exit, Failure};

/// Asks for a line on the terminal without showing it.
pub(crate) fn ask_hidden(prompt: &str) -> Result<Secret<String>, Failure> {
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(std::io::Error::from)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    // What was typed before the question is no answer to it, so it is thrown away before asking.
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(std::io::Error::from)?;
    eprint!("{prompt}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    let restored = tcsetattr(&stdin, OptionalActions::Now, &before);
    eprintln!();
    read?;
    restored.map_err(std::io::Error::from)?;
    let answer = line.trim_end_matches(['\r', '\n']).to_owned();
    Ok(answer.into())
}

/// Asks for a line on the terminal.
pub(crate) fn ask(prompt: &str) -> Result<String, Failure> {
    eprint!("{prompt}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Refuses where no owner can be asked, naming what was wanted.
pub(crate) fn must_be_askable(ctx: &Ctx, action: &str) -> Result<(), Failure> {
    if ctx.in_session() {
        return Err(Failure::new(
            Exit::Refused,
            "user_verification_required",
            format!("{action} needs the owner; a session cannot do it. Ask the owner to run this command"),
        ));
    }
    if !ctx.can_ask() {
        return Err(Failure::new(
            Exit::Refused,
            "user_verification_required",
            format!("{action} needs the owner's PIN; run this command on a terminal"),
        ));
    }
    Ok(())
}

/// Asks for the PIN and compares it with the stored hash, for changes that need no node.
pub(crate) fn prove_offline(ctx: &Ctx, agent: &Agent, action: &str) -> Result<(), Failure> {
    must_be_askable(ctx, action)?;
    let store = agent.secrets();
    let Some(hash) = store.get(keys::DASHBOARD_PIN.path())? else {
        return Err(Failure::refused(
            "this agent has no PIN; set one with `instar secrets set dashboardPin`",
        ));
    };
    let pin = ask_hidden(&format!("{action} needs your PIN: "))?;
    if store.verify_pin(&pin, &hash)? {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, "pin_wrong", "that is not the PIN; nothing was changed"))
}
