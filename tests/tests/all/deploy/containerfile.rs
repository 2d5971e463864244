//! The image's recipe.

use super::read;

/// One instruction, comments and continuations resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Upper-case name.
    pub(super) name: String,
    /// The rest of the line.
    pub(super) rest: String,
}

/// What a container of the image is started with.
#[derive(Debug)]
pub(super) struct Image {
    /// Program and first arguments.
    pub(super) entrypoint: Vec<String>,
    /// Environment of the image.
    pub(super) env: Vec<(String, String)>,
    /// User and group id.
    pub(super) user: u32,
    /// The one volume.
    pub(super) volume: String,
    /// Command of the health check.
    pub(super) health: Vec<String>,
}

pub(super) fn instructions(text: &str) -> Vec<Instruction> {
    let mut logical = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if line.trim_start().starts_with('#') || (line.trim().is_empty() && logical.is_empty()) {
            continue;
        }
        if let Some(open) = line.strip_suffix('\\') {
            logical.push_str(open.trim_start());
            continue;
        }
        logical.push_str(line.trim_start());
        let (name, rest) = logical.split_once(' ').unwrap_or((&logical, ""));
        found.push(Instruction { name: name.to_owned(), rest: rest.trim().to_owned() });
        logical.clear();
    }
    assert!(logical.is_empty(), "the last line is continued: {logical}");
    found
}

impl Image {
    /// Reads the last stage.
    pub(super) fn read() -> Self {
        let all = instructions(&read("Containerfile"));
        let last = all.iter().rposition(|i| i.name == "FROM").expect("a stage");
        let stage = &all[last..];
        let only = |name: &str| {
            let mut all = stage.iter().filter(|i| i.name == name);
            let found = all.next().unwrap_or_else(|| panic!("no {name}")).rest.clone();
            assert!(all.next().is_none(), "{name} twice");
            found
        };
        let words = |text: &str| -> Vec<String> {
            serde_json::from_str(text).unwrap_or_else(|_| panic!("not in exec form: {text}"))
        };
        let user = only("USER");
        let (uid, gid) = user.split_once(':').expect("user and group");
        assert_eq!(uid, gid);
        let env = stage.iter().filter(|i| i.name == "ENV").map(|i| {
            let (name, value) = i.rest.split_once('=').expect("NAME=value");
            (name.to_owned(), value.to_owned())
        });
        let volumes = words(&only("VOLUME"));
        assert_eq!(volumes.len(), 1, "one volume");
        let health = only("HEALTHCHECK");
        let (_, command) = health.split_once("CMD ").expect("a command");
        Self {
            entrypoint: words(&only("ENTRYPOINT")),
            env: env.collect(),
            user: uid.parse().expect("a number, so that it can be seen not to be root"),
            volume: volumes[0].clone(),
            health: words(command),
        }
    }
}

#[test]
fn the_image_is_small_and_its_user_is_nobody_in_particular() {
    const KNOWN: [&str; 12] = [
        "ARG",
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "LABEL",
        "ENV",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
    ];
    let all = instructions(&read("Containerfile"));
    for instruction in &all {
        let known = KNOWN.contains(&instruction.name.as_str()) || instruction.name == "ENTRYPOINT";
        assert!(known && !instruction.rest.is_empty(), "{instruction:?}");
    }
    let image = Image::read();
    assert!(image.user > 0);
    assert_eq!(image.volume, "/data");
    assert!(image.env.contains(&("RELAY_DATA_DIR".into(), image.volume.clone())), "{image:?}");
    let program = &image.entrypoint[0];
    assert_eq!(
        image.health,
        [program.as_str(), "health"],
        "the health check asks with the relay's own program"
    );
    let copied = all.iter().any(|i| i.name == "COPY" && i.rest.ends_with(program.as_str()));
    assert!(program.starts_with('/') && copied, "{program} is in the image");
    let last = all.iter().rposition(|i| i.name == "FROM").expect("a stage");
    assert!(all[last..].iter().all(|i| i.name != "RUN"), "the base image has no shell");
}

#[test]
fn the_build_is_one_that_this_workspace_has() {
    let workspace: toml::Table = read("../Cargo.toml").parse().expect("Cargo.toml");
    let all = instructions(&read("Containerfile"));
    let argument = |name: &str| {
        let found = all.iter().find_map(|i| i.rest.strip_prefix(name).filter(|_| i.name == "ARG"));
        found.and_then(|rest| rest.strip_prefix('=')).unwrap_or_else(|| panic!("no ARG {name}")).to_owned()
    };
    let profile = argument("CARGO_PROFILE");
    assert!(workspace["profile"].get(&profile).is_some(), "there is no profile {profile}");
    let version =
        |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().expect("a version")).collect() };
    let needed = workspace["workspace"]["package"]["rust-version"].as_str().expect("rust-version");
    assert!(version(&argument("RUST_VERSION")) >= version(needed));
    let current = workspace["workspace"]["package"]["version"].as_str();
    assert_eq!(Some(argument("VERSION").as_str()), current);
    let build = all.iter().find(|i| i.name == "RUN").expect("a build");
    assert!(
        build.rest.contains("--locked") && build.rest.contains("--package threadline-relay"),
        "{build:?}"
    );
    let builder = all.iter().find(|i| i.name == "FROM").expect("a stage");
    assert!(
        builder.rest.contains("bookworm") && argument("BASE_IMAGE").contains("debian12"),
        "one C library"
    );
}
