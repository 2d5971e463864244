//! The walk over every command of a script, and the rules on what a command is given.

use super::Finding;
use super::paths::{Places, Removal};
use super::scripts;
use super::shell::{self, Redirect, Script, Simple, Unreadable, Word};

/// Deepest nesting of scripts handed to shells, and of wrappers.
const MAX_DEPTH: usize = 6;

/// Commands that run the command after them; the options that take a value of their own.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("sudo", &["-u", "-g", "-h", "-p", "-C", "-r", "-t", "-T", "-U", "-D", "-R", "--user", "--group"]),
    ("doas", &["-u", "-C"]),
    ("nice", &["-n", "--adjustment"]),
    ("ionice", &["-c", "-n", "-p"]),
    ("nohup", &[]),
    ("time", &["-f", "-o"]),
    ("setsid", &[]),
    ("stdbuf", &["-i", "-o", "-e"]),
    ("unbuffer", &[]),
    ("command", &[]),
    ("builtin", &[]),
    ("exec", &["-a"]),
    ("busybox", &[]),
    ("strace", &["-e", "-o", "-p", "-s"]),
    ("chronic", &[]),
    ("caffeinate", &["-t", "-w"]),
    ("npx", &["-p", "--package", "-c", "--call"]),
    ("pnpx", &[]),
    ("bunx", &[]),
    (
        "xargs",
        &[
            "-I",
            "-n",
            "-P",
            "-L",
            "-d",
            "-a",
            "-E",
            "-s",
            "--max-args",
            "--max-procs",
            "--delimiter",
            "--arg-file",
        ],
    ),
    ("parallel", &["-j", "--jobs"]),
    ("watch", &["-n", "--interval"]),
    ("uv", &["--with", "--python", "-p"]),
    ("poetry", &[]),
    ("bundle", &[]),
    ("dotenv", &["-e", "-f"]),
];

const SHELLS: [&str; 8] = ["sh", "bash", "zsh", "dash", "ksh", "ash", "fish", "rbash"];
const INTERPRETERS: [(&str, &[&str]); 9] = [
    ("python", &["-c"]),
    ("python2", &["-c"]),
    ("python3", &["-c"]),
    ("node", &["-e", "--eval", "-p", "--print"]),
    ("deno", &["eval"]),
    ("bun", &["-e", "--eval"]),
    ("perl", &["-e", "-E", "-pe", "-ne"]),
    ("ruby", &["-e"]),
    ("php", &["-r"]),
];
const SQL_CLIENTS: [&str; 10] = [
    "psql",
    "mysql",
    "mariadb",
    "sqlite3",
    "sqlite",
    "duckdb",
    "cockroach",
    "clickhouse-client",
    "sqlcmd",
    "usql",
];
/// Commands whose arguments are text to print or to search for.
const DATA: [&str; 14] =
    ["echo", "printf", "grep", "egrep", "fgrep", "rg", "ag", "ack", "cat", "less", "man", "jq", "test", "["];

pub(super) struct Walk<'p> {
    pub(super) findings: Vec<Finding>,
    places: &'p Places,
    /// Working directory at this point of the script, while it is known.
    cwd: Option<String>,
}

impl<'p> Walk<'p> {
    pub(super) fn new(places: &'p Places) -> Self {
        let cwd = (!places.cwd.is_empty()).then(|| places.cwd.clone());
        Self { findings: Vec::new(), places, cwd }
    }

    pub(super) fn always(&mut self, what: &str) {
        self.findings.push(Finding { always: true, what: what.to_owned() });
    }

    fn risky(&mut self, what: &str) {
        self.findings.push(Finding { always: false, what: what.to_owned() });
    }

    pub(super) fn script(&mut self, text: &str, depth: usize) -> Result<(), Unreadable> {
        if depth > MAX_DEPTH {
            return Err(Unreadable::TooDeep);
        }
        let script = shell::read(text)?;
        for simple in &script.commands {
            for redirect in &simple.redirects {
                if let Redirect::Write(target) = redirect {
                    self.write(target);
                }
            }
            let input = Input { script: &script, simple };
            self.command(&simple.words, input, depth)?;
        }
        Ok(())
    }

    /// Judges one command; wrappers are taken off and the command in them judged.
    fn command(&mut self, words: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        if depth > MAX_DEPTH {
            return Err(Unreadable::TooDeep);
        }
        let Some((first, rest)) = words.split_first() else { return Ok(()) };
        let name = first.text.rsplit('/').next().unwrap_or_default().trim_end_matches(".exe");
        if let Some((_, with_value)) = WRAPPERS.iter().find(|(wrapper, _)| *wrapper == name) {
            return self.wrapped(name, with_value, rest, input, depth);
        }
        match name {
            "env" => return self.env(rest, input, depth),
            "timeout" | "flock" | "taskset" | "chrt" | "chroot" => {
                // One operand stands before the command.
                let skip = options(rest, &["-s", "-k", "-w", "--signal", "--kill-after"]);
                if let Some(script) = value_of(rest, &["-c"]) {
                    return self.script(&script.text, depth + 1);
                }
                return self.command(rest.get(skip + 1..).unwrap_or_default(), input, depth + 1);
            }
            "eval" => {
                let joined: Vec<&str> = rest.iter().map(|word| word.text.as_str()).collect();
                return self.script(&joined.join(" "), depth + 1);
            }
            "su" | "runuser" | "script" => {
                if let Some(script) = value_of(rest, &["-c", "--command"]) {
                    return self.script(&script.text, depth + 1);
                }
            }
            "ssh" => {
                let skip = options(
                    rest,
                    &["-p", "-i", "-l", "-o", "-F", "-J", "-L", "-R", "-D", "-b", "-c", "-E", "-W"],
                );
                let remote: Vec<&str> = rest.iter().skip(skip + 1).map(|word| word.text.as_str()).collect();
                return self.script(&remote.join(" "), depth + 1);
            }
            "trap" => {
                if let Some(script) = rest.first() {
                    return self.script(&script.text, depth + 1);
                }
            }
            "npm" | "pnpm" | "yarn" | "bun" => {
                if let Some(at) =
                    rest.iter().position(|word| matches!(word.text.as_str(), "exec" | "dlx" | "x"))
                {
                    let inner = rest.get(at + 1..).unwrap_or_default();
                    return self.command(
                        inner.get(options(inner, &["-p", "--package"])..).unwrap_or_default(),
                        input,
                        depth + 1,
                    );
                }
                if rest.first().is_some_and(|word| word.text == "prisma") {
                    return self.command(rest, input, depth + 1);
                }
            }
            "docker" | "podman" | "nerdctl" | "docker-compose" => self.docker(rest, input, depth)?,
            "kubectl" | "oc" => self.kubectl(rest, input, depth)?,
            "find" | "fd" => self.find(rest, input, depth)?,
            "git" => self.git(rest, input, depth)?,
            _ => {}
        }
        if SHELLS.contains(&name) {
            return self.shell(rest, input, depth);
        }
        let versioned = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        if let Some((_, flags)) = INTERPRETERS.iter().find(|(known, _)| *known == name || *known == versioned)
        {
            self.interpreter(rest, flags, input, depth);
        }
        if SQL_CLIENTS.contains(&name) {
            self.sql_client(name, rest, input);
        }
        self.simple(name, first, rest);
        Ok(())
    }

    fn wrapped(
        &mut self,
        name: &str,
        with_value: &[&str],
        rest: &[Word],
        input: Input<'_>,
        depth: usize,
    ) -> Result<(), Unreadable> {
        if name == "command" && rest.first().is_some_and(|word| matches!(word.text.as_str(), "-v" | "-V")) {
            return Ok(());
        }
        if matches!(name, "npx")
            && let Some(script) = value_of(rest, &["-c", "--call"])
        {
            return self.script(&script.text, depth + 1);
        }
        let mut rest = rest.get(options(rest, with_value)..).unwrap_or_default();
        while rest.first().is_some_and(|word| word.text.contains('=')) {
            rest = rest.get(1..).unwrap_or_default();
        }
        if matches!(name, "uv" | "poetry" | "bundle") {
            // `uv run x`, `poetry run x`, `bundle exec x`; their other commands are their own.
            if !rest.first().is_some_and(|word| matches!(word.text.as_str(), "run" | "exec")) {
                return Ok(());
            }
            rest = rest.get(1..).unwrap_or_default();
            rest = rest.get(options(rest, with_value)..).unwrap_or_default();
        }
        match (name, rest) {
            ("watch" | "parallel", [script]) => self.script(&script.text, depth + 1),
            ("xargs" | "parallel", words) if !words.is_empty() => {
                // What will be appended is not known.
                let mut words = words.to_vec();
                words.push(Word { text: "$1".to_owned(), dynamic: true, ..Word::default() });
                self.command(&words, input, depth + 1)
            }
            (_, words) => self.command(words, input, depth + 1),
        }
    }

    fn env(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        if let Some(script) = value_of(rest, &["-S", "--split-string"]) {
            return self.script(&script.text, depth + 1);
        }
        let mut skip = options(rest, &["-u", "-C", "--unset", "--chdir"]);
        while rest.get(skip).is_some_and(|word| word.text.contains('=')) {
            skip += 1;
        }
        self.command(rest.get(skip..).unwrap_or_default(), input, depth + 1)
    }

    fn shell(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        let flag = rest.iter().position(|word| is_cluster(&word.text, 'c'));
        if let Some(at) = flag {
            let operands = rest.get(at + 1..).unwrap_or_default();
            if let Some(script) = operands.get(options(operands, &["-o", "+o", "-O"])) {
                return self.script(&script.text, depth + 1);
            }
        }
        let file = rest.iter().find(|word| !word.text.starts_with(['-', '+']));
        match file {
            Some(file) if file.text != "/dev/stdin" => Ok(()),
            _ => {
                for text in input.texts() {
                    self.script(&text, depth + 1)?;
                }
                Ok(())
            }
        }
    }

    fn interpreter(&mut self, rest: &[Word], flags: &[&str], input: Input<'_>, depth: usize) {
        let mut bodies = Vec::new();
        if let Some(body) = value_of(rest, flags) {
            bodies.push(body.text.clone());
        } else if rest.iter().all(|word| word.text.starts_with('-')) {
            bodies = input.texts();
        }
        for body in bodies {
            let body = scripts::body(&body);
            for path in &body.removed {
                self.removal(&Word::literal(path.as_str()));
            }
            for path in &body.written {
                self.write(&Word::literal(path.as_str()));
            }
            for text in &body.scripts {
                // A literal that is no script is no command.
                let mut inner = Walk { findings: Vec::new(), places: self.places, cwd: self.cwd.clone() };
                if inner.script(text, depth + 2).is_ok() {
                    self.findings.extend(inner.findings);
                }
            }
        }
    }

    fn sql_client(&mut self, name: &str, rest: &[Word], input: Input<'_>) {
        let mut texts: Vec<String> = input.texts();
        texts.extend(rest.iter().map(|word| word.text.clone()));
        texts.extend(
            rest.iter().filter_map(|word| word.text.split_once('=')).map(|(_, value)| value.to_owned()),
        );
        if let Some(what) = texts.iter().find_map(|text| scripts::sql(text)) {
            self.risky(what);
        }
        let own = rest.iter().any(|word| self.places.guards(word, self.cwd.as_deref()));
        let reads = |text: &String| {
            let text = text.trim_start().to_ascii_lowercase();
            ["select", ".schema", ".tables", ".dump", "pragma", "explain", "-"]
                .iter()
                .any(|start| text.starts_with(start))
        };
        let changes = rest.iter().skip(1).any(|word| !reads(&word.text) && word.text.contains(' '));
        if name.starts_with("sqlite") && own && changes {
            self.always("changes a database of the agent");
        }
    }

    fn docker(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        let words: Vec<&str> =
            rest.iter().map(|word| word.text.as_str()).filter(|word| !word.starts_with('-')).collect();
        if let ["system", "prune", ..] = words.as_slice() {
            self.risky("removes unused containers, images and networks");
        }
        if let Some(at) = rest.iter().position(|word| word.text == "exec") {
            let inner = rest.get(at + 1..).unwrap_or_default();
            let skip = options(inner, &["-e", "-u", "-w", "--env", "--user", "--workdir", "--index"]);
            return self.command(inner.get(skip + 1..).unwrap_or_default(), input, depth + 1);
        }
        Ok(())
    }

    fn kubectl(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        let mut words = rest.iter().map(|word| word.text.as_str()).filter(|word| !word.starts_with('-'));
        if words.clone().any(|word| word == "delete") && !is_dry_run(rest) {
            self.risky("deletes resources of a cluster");
        }
        if words.any(|word| word == "exec")
            && let Some(at) = rest.iter().position(|word| word.text == "--")
        {
            return self.command(rest.get(at + 1..).unwrap_or_default(), input, depth + 1);
        }
        Ok(())
    }

    fn find(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        let operands = rest.iter().take_while(|word| !word.text.starts_with(['-', '(', '!']));
        let mut roots: Vec<Word> = operands.cloned().collect();
        if roots.is_empty() {
            roots.push(Word::literal("."));
        }
        let has = |names: &[&str]| rest.iter().any(|word| names.contains(&word.text.as_str()));
        let filtered = has(&[
            "-name",
            "-iname",
            "-path",
            "-ipath",
            "-regex",
            "-iregex",
            "-maxdepth",
            "-empty",
            "-mtime",
            "-size",
            "-newer",
        ]);
        if has(&["-delete"]) {
            self.found_removed(&roots, filtered);
        }
        let flags = ["-exec", "-execdir", "-ok", "-okdir", "-x", "-X", "--exec"];
        for (at, _) in rest.iter().enumerate().filter(|(_, word)| flags.contains(&word.text.as_str())) {
            let words: Vec<Word> = rest
                .iter()
                .skip(at + 1)
                .take_while(|word| !matches!(word.text.as_str(), ";" | "+"))
                .cloned()
                .collect();
            let removes = words
                .first()
                .is_some_and(|word| matches!(word.text.rsplit('/').next(), Some("rm" | "unlink" | "shred")));
            if removes {
                self.found_removed(&roots, filtered);
            } else {
                self.command(&words, input, depth + 1)?;
            }
        }
        Ok(())
    }

    /// `find` with a filter takes single files; without one it takes the whole tree.
    fn found_removed(&mut self, roots: &[Word], filtered: bool) {
        for root in roots {
            match self.places.removal(root, self.cwd.as_deref()) {
                Removal::Harmless => {}
                Removal::Catastrophic(what) if !filtered => self.always(&format!("removes {what}")),
                _ if filtered && self.places.is_in_project(root, self.cwd.as_deref()) => {}
                _ => self.risky("removes what a search finds"),
            }
        }
    }

    fn git(&mut self, rest: &[Word], input: Input<'_>, depth: usize) -> Result<(), Unreadable> {
        let skip = options(rest, &["-C", "-c", "--git-dir", "--work-tree", "--namespace"]);
        let Some((sub, rest)) = rest.get(skip..).and_then(<[Word]>::split_first) else { return Ok(()) };
        let words: Vec<&str> = rest.iter().map(|word| word.text.as_str()).collect();
        let has = |names: &[&str]| words.iter().any(|word| names.contains(word));
        let cluster = |letter| words.iter().any(|word| is_cluster(word, letter));
        let dry = has(&["--dry-run"]) || cluster('n');
        match sub.text.as_str() {
            "push" if !dry => {
                let forced = has(&["--force", "--mirror", "--force-if-includes"])
                    || cluster('f')
                    || words
                        .iter()
                        .any(|word| word.starts_with("--force-with-lease") || word.starts_with('+'));
                if forced {
                    self.risky("overwrites the history of a remote branch");
                }
            }
            "reset" if has(&["--hard"]) => self.risky("throws away uncommitted changes"),
            "clean" if !dry && (cluster('f') || has(&["--force"])) => {
                self.risky("deletes files that are not in git");
            }
            "checkout" if has(&["."]) || has(&["--force"]) || cluster('f') => {
                self.risky("throws away uncommitted changes");
            }
            "restore" if has(&[".", ":/"]) && (has(&["--worktree"]) || !has(&["--staged"])) => {
                self.risky("throws away uncommitted changes");
            }
            "branch"
                if cluster('D')
                    || ((has(&["--delete"]) || cluster('d')) && (has(&["--force"]) || cluster('f'))) =>
            {
                self.risky("deletes a branch that may not be merged");
            }
            "stash" if has(&["drop", "clear"]) => self.risky("throws away stashed changes"),
            "rebase" => {
                if let Some(script) = value_of(rest, &["-x", "--exec"]) {
                    return self.script(&script.text, depth + 1);
                }
            }
            "bisect" if words.first() == Some(&"run") => {
                return self.command(rest.get(1..).unwrap_or_default(), input, depth + 1);
            }
            "submodule" if words.first() == Some(&"foreach") => {
                let script: Vec<&str> =
                    words.iter().skip(1).copied().filter(|word| !word.starts_with('-')).collect();
                return self.script(&script.join(" "), depth + 1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Rules on a command by its own name and arguments.
    fn simple(&mut self, name: &str, first: &Word, rest: &[Word]) {
        let words: Vec<&str> = rest.iter().map(|word| word.text.as_str()).collect();
        let has = |names: &[&str]| words.iter().any(|word| names.contains(word));
        let operands = || rest.iter().filter(|word| !word.text.starts_with('-') || word.text == "-");
        if !DATA.contains(&name) && name != "git" && has(&["--accept-data-loss"]) {
            self.always("accepts the loss of data in a database");
        }
        if (first.dynamic || first.glob) && is_recursive(&words) && has_letter(&words, 'f') {
            for word in operands() {
                if let Removal::Catastrophic(what) = self.places.removal(word, self.cwd.as_deref()) {
                    self.always(&format!("may remove {what}"));
                }
            }
        }
        match name {
            "cd" | "pushd" => self.change_directory(rest.iter().find(|word| !word.text.starts_with('-'))),
            "rm" | "grm" | "srm" => {
                for word in removed_operands(rest) {
                    if is_recursive(&words) {
                        self.removal(word);
                    } else {
                        self.write(word);
                    }
                }
            }
            "rimraf" | "del-cli" | "trash" => operands().for_each(|word| self.removal(word)),
            "unlink" | "rmdir" | "shred" | "truncate" | "tee" | "touch" | "wipefs" | "blkdiscard"
            | "mkswap" => {
                operands().for_each(|word| self.write(word));
            }
            "cp" | "install" | "ln" | "rsync" | "scp" => {
                if let Some(target) =
                    value_of(rest, &["-t", "--target-directory"]).or_else(|| operands().next_back())
                {
                    self.write(target);
                }
            }
            "mv" => operands().for_each(|word| {
                if let Removal::Catastrophic(what) = self.places.removal(word, self.cwd.as_deref()) {
                    // Moving into a directory that must stay is no harm; its own files are.
                    if self.places.guards(word, self.cwd.as_deref()) || operands().next() == Some(word) {
                        self.always(&format!("moves {what}"));
                    }
                }
            }),
            "sed" | "perl" | "ruby" | "awk" | "gawk" => {
                let in_place = words.iter().any(|word| {
                    word.starts_with("-i") || is_cluster(word, 'i') || word.starts_with("--in-place")
                });
                if in_place {
                    operands().for_each(|word| self.write(word));
                }
            }
            "vi" | "vim" | "nvim" | "nano" | "ed" | "ex" | "emacs" | "code" => {
                operands().for_each(|word| self.write(word));
            }
            "dd" => {
                for target in words.iter().filter_map(|word| word.strip_prefix("of=")) {
                    self.write(&Word::literal(target));
                    if target.starts_with("/dev/") && !is_stream(target) {
                        self.always("writes to a device");
                    }
                }
            }
            "chmod" | "chown" | "chgrp" => {
                let skipped = usize::from(!words.iter().any(|word| word.starts_with("--reference")));
                for word in operands().skip(skipped) {
                    self.write(word);
                    let whole = matches!(
                        self.places.removal(word, self.cwd.as_deref()),
                        Removal::Catastrophic("the root directory" | "a system directory")
                    );
                    if whole && (is_cluster_in(&words, 'R') || has(&["--recursive"])) {
                        self.always("changes the rights of the whole system");
                    }
                }
            }
            "prisma" => match operands().map(|word| word.text.as_str()).collect::<Vec<_>>().as_slice() {
                ["migrate", "reset", ..] => self.always("resets a database"),
                ["migrate", "deploy", ..] | ["db", "push", ..] => {
                    self.risky("changes the schema of a database");
                }
                _ => {}
            },
            "terraform" | "tofu" => {
                let applies = words.contains(&"apply")
                    && words.iter().any(|word| word.trim_start_matches('-') == "auto-approve");
                if (words.contains(&"destroy") && !words.contains(&"plan")) || applies {
                    self.risky("changes or destroys infrastructure");
                }
            }
            "aws" | "gsutil" | "gcloud"
                if has(&["rb"]) && (has(&["--force", "-f"]) || name == "gsutil")
                    || has(&["rm"]) && has(&["--recursive", "-r"]) =>
            {
                self.risky("removes stored objects");
            }
            "crontab" if is_cluster_in(&words, 'r') => self.risky("removes all scheduled jobs"),
            "tmux" => self.tmux(rest, &words),
            "pkill" | "killall" => {
                let ours = |word: &&str| {
                    word.to_ascii_lowercase().contains("instar")
                        || word.trim_start_matches('^').starts_with("tmux")
                };
                if words.iter().any(ours) {
                    self.always("kills the node or its terminal server");
                }
            }
            "kill" if words.last() == Some(&"-1") && words.len() > 1 => {
                self.always("kills every process of this account");
            }
            "systemctl" | "launchctl" | "service" => {
                let stops = has(&["stop", "kill", "disable", "mask", "bootout", "unload", "remove"]);
                if stops && words.iter().any(|word| word.contains("instar")) {
                    self.always("stops the node");
                }
            }
            "instar" => match words.as_slice() {
                ["server", "stop" | "restart", ..] | ["nuke", ..] => {
                    self.always("stops or removes the node this session runs on");
                }
                _ => {}
            },
            _ if name.starts_with("mkfs") || name == "mke2fs" || name == "newfs" => {
                self.always("makes a file system");
            }
            _ => {}
        }
    }

    fn tmux(&mut self, rest: &[Word], words: &[&str]) {
        let server = value_of(rest, &["-L"]).map(|word| word.text.as_str());
        let own = server.is_none_or(|name| name.starts_with("instar"));
        if own && words.iter().any(|word| matches!(*word, "kill-server" | "kill-ser")) {
            self.always("kills the node's terminal server");
        }
        if server.is_some_and(|name| name.starts_with("instar")) && words.contains(&"kill-session") {
            self.always("kills a session of the node");
        }
    }

    fn removal(&mut self, word: &Word) {
        match self.places.removal(word, self.cwd.as_deref()) {
            Removal::Catastrophic(what) => self.always(&format!("removes {what}")),
            Removal::Risky => self.risky(&format!("removes {} and all in it", shown(&word.text))),
            Removal::Harmless => {}
        }
        self.device(word);
    }

    fn write(&mut self, word: &Word) {
        if self.places.guards(word, self.cwd.as_deref()) {
            self.always("changes the agent's own keys, settings or hooks");
        }
        self.device(word);
    }

    fn device(&mut self, word: &Word) {
        const DISKS: [&str; 14] = [
            "sd", "hd", "vd", "xvd", "nvme", "mmcblk", "disk", "rdisk", "loop", "dm-", "md", "mapper/",
            "mem", "kmem",
        ];
        if let Some(name) = word.text.strip_prefix("/dev/")
            && DISKS.iter().any(|disk| name.starts_with(disk))
        {
            self.always("writes to a block device");
        }
    }

    fn change_directory(&mut self, target: Option<&Word>) {
        let target = target.cloned().unwrap_or_else(|| Word::literal("~"));
        self.cwd = if target.dynamic || target.text == "-" {
            None
        } else {
            self.places.path(&target, self.cwd.as_deref())
        };
    }
}

/// What a command may read on its standard input, as far as the script says it.
#[derive(Clone, Copy)]
struct Input<'s> {
    script: &'s Script,
    simple: &'s Simple,
}

impl Input<'_> {
    fn texts(&self) -> Vec<String> {
        let mut texts = self.of(self.simple);
        if let Some(source) = self.simple.piped_from.and_then(|at| self.script.commands.get(at)) {
            texts.extend(self.of(source));
            let words: Vec<&str> = source.words.iter().map(|word| word.text.as_str()).collect();
            if let [name, rest @ ..] = words.as_slice()
                && matches!(name.rsplit('/').next(), Some("echo" | "printf" | "print"))
            {
                let printed: Vec<&str> = rest
                    .iter()
                    .copied()
                    .filter(|word| !matches!(*word, "-n" | "-e" | "-ne" | "-en"))
                    .collect();
                texts.push(printed.join(" "));
            }
        }
        texts
    }

    fn of(&self, simple: &Simple) -> Vec<String> {
        let text = |redirect: &Redirect| match redirect {
            Redirect::HereDoc(index) => self.script.heredocs.get(*index).cloned(),
            Redirect::HereString(word) => Some(word.text.clone()),
            Redirect::Write(_) => None,
        };
        simple.redirects.iter().filter_map(text).collect()
    }
}

/// Number of leading words that are options, values of `with_value` and a closing `--` included.
fn options(words: &[Word], with_value: &[&str]) -> usize {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word.text == "--" {
            return at + 1;
        }
        if !word.text.starts_with('-') || word.text.len() == 1 {
            break;
        }
        at += if with_value.contains(&word.text.as_str()) { 2 } else { 1 };
    }
    at
}

/// The value of the first of these options: the next word, or what stands after `=` or the letter.
fn value_of<'w>(words: &'w [Word], names: &[&str]) -> Option<&'w Word> {
    let at = words.iter().position(|word| {
        let text = word.text.as_str();
        names.iter().any(|name| {
            text == *name
                // `-lc`, `-ec`: the letter ends a cluster.
                || (name.len() == 2 && text.len() <= 5 && !text.starts_with("--") && text.starts_with('-') && text.ends_with(&name[1..]))
        })
    })?;
    words.get(at + 1)
}

/// Whether a word is a cluster of short options with this letter in it.
fn is_cluster(word: &str, letter: char) -> bool {
    word.strip_prefix('-').is_some_and(|letters| {
        !letters.starts_with('-')
            && letters.contains(letter)
            && letters.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

fn is_cluster_in(words: &[&str], letter: char) -> bool {
    words.iter().any(|word| is_cluster(word, letter))
}

fn has_letter(words: &[&str], letter: char) -> bool {
    is_cluster_in(words, letter)
}

/// Whether `rm` would descend: `-r`, `-R`, or an unambiguous start of `--recursive`.
fn is_recursive(words: &[&str]) -> bool {
    let before_operands = words.iter().take_while(|word| **word != "--");
    before_operands.clone().any(|word| is_cluster(word, 'r') || is_cluster(word, 'R'))
        || before_operands.clone().any(|word| word.len() > 3 && "--recursive".starts_with(*word))
}

/// The operands of `rm`, those after `--` whatever they look like.
fn removed_operands(rest: &[Word]) -> impl Iterator<Item = &Word> {
    let end = rest.iter().position(|word| word.text == "--").unwrap_or(rest.len());
    rest.iter()
        .enumerate()
        .filter(move |(at, word)| *at > end || (*at < end && !word.text.starts_with('-')))
        .map(|(_, word)| word)
}

fn is_dry_run(rest: &[Word]) -> bool {
    rest.iter().any(|word| word.text.starts_with("--dry-run") && word.text != "--dry-run=none")
}

fn is_stream(device: &str) -> bool {
    matches!(device, "/dev/null" | "/dev/zero" | "/dev/stdout" | "/dev/stderr" | "/dev/tty" | "/dev/full")
        || device.starts_with("/dev/fd/")
        || device.starts_with("/dev/shm/")
}

fn shown(path: &str) -> String {
    path.chars().take(80).collect()
}
